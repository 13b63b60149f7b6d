"""The sections `rollout` and `weight_sync`: the engines that generate responses, and how the policy's weights reach them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sppo_ray.config.models import Dtype
from sppo_ray.settings import PositiveInt, Probability, Settings


class AutoscaleSettings(Settings):
    """One rollout worker more or fewer, by the share of the training time that the learner waits for generation."""

    busy_above: Probability = 0.5
    """A worker is added when the learner waited longer than this share."""
    idle_below: Probability = 0.1
    """A worker is drained when the learner waited less than this share."""
    every_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds of training that a decision looks at; counted anew whenever the number of workers changed."""

    @model_validator(mode="after")
    def _thresholds_leave_room(self) -> AutoscaleSettings:
        if self.idle_below >= self.busy_above:
            raise ValueError(
                f"idle_below {self.idle_below:g} is not less than busy_above {self.busy_above:g}: workers would come and go; "
                "leave room between them, e.g. 0.1 and 0.5"
            )
        return self


class RolloutSettings(Settings):
    workers: PositiveInt = 1
    """At the start; `sppo-ray scale` changes it while the run goes on."""
    min_workers: PositiveInt = 1
    max_workers: PositiveInt | None = None
    """Bounds of scaling; null = no upper bound."""
    autoscale: AutoscaleSettings | None = None
    """null = the number of workers changes on request only."""
    drain_grace_s: Annotated[float, Field(ge=0)] = 60.0
    """A worker that is taken out may finish its responses for so long; the rest is generated anew by the others."""
    tensor_parallel_size: PositiveInt = 1
    max_response_tokens: PositiveInt = 8192
    temperature: Annotated[float, Field(gt=0)] = 1.0
    dtype: Dtype = "float32"
    max_sequences: PositiveInt = 256
    """Responses that one engine generates at the same time."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = 1.0
    """CPU only: size of the KV cache of one engine, null = vLLM's choice. GPUs: gpu_memory_utilization."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    block_size: PositiveInt = 32
    enforce_eager: bool = True
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    probe_every_s: Annotated[float, Field(gt=0)] = 5.0
    """Each worker is asked for a sign of life so often, whatever it does."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """A worker that answers no probe for so long (frozen, cut off) is taken for dead; after half of it, it gets no more work."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """A worker that has work and makes no token for so long is taken for dead, though it answers probes."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts of one worker within restart_window_s before it is retired; the run stops when none is left."""
    restart_window_s: Annotated[float, Field(gt=0)] = 3600.0

    @model_validator(mode="after")
    def _workers_within_bounds(self) -> RolloutSettings:
        if self.workers < self.min_workers:
            raise ValueError(
                f"workers {self.workers} is less than min_workers {self.min_workers}: raise the one or lower the other"
            )
        if self.max_workers is not None and self.workers > self.max_workers:
            raise ValueError(
                f"workers {self.workers} is more than max_workers {self.max_workers}: lower the one or raise the other"
            )
        if self.autoscale is not None and self.max_workers is None:
            raise ValueError("autoscale without max_workers could take the whole cluster: set max_workers")
        return self


class WeightSyncSettings(Settings):
    """Weights travel as one flat buffer a version through Ray's object store, by vLLM's weight-transfer API."""

    verify: bool = True
    """Compare digest, parameter count and a probe's log-probs on every engine at every sync, and the log-probs of the first
    minibatch after it."""
    max_probe_difference: Annotated[float, Field(gt=0)] | None = None
    """Largest allowed |engine - learner| of the probe's log-probs. None = 1e-3 in float32, 1.0 (mean 0.2) in bfloat16."""
    max_first_batch_difference: Annotated[float, Field(gt=0)] | None = None
    """Largest allowed mean |engine - learner| of the log-probs that one engine sampled in a step's first minibatch. Above it
    nothing of the step is trained on: the engine is replaced and the run goes back to its checkpoint. None = 1e-3 in float32,
    0.2 in bfloat16, divided by a temperature below 1. Off without `verify`."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
