"""The sections `rollout` and `weight_sync`: the engines, and the transfer of weights to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo_ray.config.devices import BY_DEVICE, ByDevice
from sppo_ray.config.models import Dtype
from sppo_ray.settings import PositiveInt, Probability, Settings


class AutoscaleSettings(Settings):
    """Adds or removes one rollout worker at a time, by the share of training time in which the
    learner waits for generation.
    """

    busy_above: Probability = 0.5
    """A worker is added when the share is above this."""
    idle_below: Probability = 0.1
    """A worker is drained when the share is below this."""
    every_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds of training that a decision is based on; the count restarts when the number of
    workers changes.
    """

    @model_validator(mode="after")
    def _thresholds_leave_room(self) -> AutoscaleSettings:
        if self.idle_below >= self.busy_above:
            raise ValueError(
                f"idle_below {self.idle_below:g} is not less than busy_above {self.busy_above:g}: workers "
                "would come and go; "
                "leave room between them, e.g. 0.1 and 0.5"
            )
        return self


class RolloutSettings(Settings):
    workers: PositiveInt = 1
    """Workers at the start; `sppo-ray scale` changes the number during the run."""
    min_workers: PositiveInt = 1
    """Lower bound of scaling."""
    max_workers: PositiveInt | None = None
    """Bounds of scaling; null = no upper bound."""
    autoscale: AutoscaleSettings | None = None
    """null = the number of workers changes only on request."""
    drain_grace_s: Annotated[float, Field(ge=0)] = 60.0
    """Time that a removed worker has to finish its responses; the other workers generate the rest
    again.
    """
    tensor_parallel_size: PositiveInt = 1
    """Devices that share one engine's model."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """0 = the engines run on CPUs; else tensor_parallel_size, or a fraction for an engine that
    shares its GPU with other roles.
    """
    max_response_tokens: PositiveInt = 8192
    """Longest response; a longer one is cut off and counts as truncated. Of an episode: actions
    and observations together.
    """
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling. Log-probs are of softmax(logits / temperature), in the learner too."""
    dtype: Annotated[Dtype, ByDevice] = BY_DEVICE
    """Of the engine's weights and computations."""
    max_sequences: PositiveInt = 256
    """Responses that one engine generates at the same time."""
    kv_cache_gib: Annotated[Annotated[float, Field(gt=0)] | None, ByDevice] = BY_DEVICE
    """Size of the KV cache on each device of an engine. null on a GPU: vLLM measures what
    gpu_memory_utilization leaves; an engine that shares its GPU cannot measure that and needs a
    number.
    """
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Not used with kv_cache_gib."""
    block_size: PositiveInt = 32
    """Tokens of a block of vLLM's KV cache."""
    enforce_eager: Annotated[bool, ByDevice] = BY_DEVICE
    """true = no CUDA graphs and no compilation."""
    async_scheduling: Annotated[bool, ByDevice] = BY_DEVICE
    """The engine schedules a step while the one before runs. GPUs only."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs that Ray reserves for an engine."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """An engine that takes longer to start counts as dead."""
    probe_every_s: Annotated[float, Field(gt=0)] = 5.0
    """Interval between probes of each worker."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """A worker that answers no probe for this long (frozen, cut off) counts as dead; after half of
    this time it gets no more work.
    """
    stall_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """A worker that has work but generates no token for this long counts as dead even if it answers
    probes.
    """
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts of one worker within restart_window_s before it is retired. When all are retired,
    the run goes back to its checkpoint (recovery.max_restarts).
    """
    restart_window_s: Annotated[float, Field(gt=0)] = 3600.0
    """Period of max_restarts."""

    @model_validator(mode="after")
    def _workers_within_bounds(self) -> RolloutSettings:
        if self.workers < self.min_workers:
            raise ValueError(
                f"workers {self.workers} is less than min_workers {self.min_workers}: raise workers or "
                "lower min_workers"
            )
        if self.max_workers is not None and self.workers > self.max_workers:
            raise ValueError(
                f"workers {self.workers} is more than max_workers {self.max_workers}: lower workers or "
                "raise max_workers"
            )
        if self.autoscale is not None and self.max_workers is None:
            raise ValueError("autoscale without max_workers could take the whole cluster: set max_workers")
        return self


class WeightSyncSettings(Settings):
    """How weights reach the engines, and how that is verified. All transports load through vLLM's
    weight-transfer API.
    """

    transport: Literal["auto", "flat", "nccl", "ipc"] = "auto"
    """flat = one buffer per version through host memory and Ray's object store. nccl = the learner
    broadcasts to all engines, in chunks; on CPUs over gloo. ipc = engines copy chunks out of the
    learner's memory on the same GPU; on CPUs out of shared memory. auto = flat on CPUs; on GPUs
    nccl when learner and engines have GPUs of their own, ipc when one GPU is shared, else flat. An
    engine that a broadcast does not reach, or that starts later, gets the version by flat.
    """
    chunk_mib: Annotated[float, Field(gt=0)] = 256.0
    """Size of a chunk of nccl and ipc in MiB, or of the largest parameter if that is larger."""
    transfer_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """A group of nccl or ipc that takes longer to form, or to transfer a version, is given up, and
    the version is sent by flat.
    """
    verify: bool = True
    """Compare digest, parameter count and a probe's log-probs on every engine at every sync, and
    the log-probs of the next minibatch.
    """
    max_probe_difference: Annotated[float, Field(gt=0)] | None = None
    """Largest allowed |engine - learner| of the probe's log-probs. None = 1e-3 in float32, 1.0
    (mean 0.2) in bfloat16.
    """
    max_first_batch_difference: Annotated[float, Field(gt=0)] | None = None
    """Largest allowed mean |engine - learner| of the log-probs that one engine sampled in a step's
    first minibatch. Above it the step is not trained on: the engine is replaced and the run goes
    back to its checkpoint. None = 1e-3 in float32, 0.2 in bfloat16, divided by a temperature below
    1. Off without `verify`.
    """
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Limit of one engine's pull of a version, or of its proof."""
