"""The sections `recovery`, `logging` and `cluster`: restarts, logs and the Ray cluster of a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from sppo_ray.settings import PositiveInt, Settings


class RecoverySettings(Settings):
    """Recovery from the loss of a learner or critic rank, the reference, the verifier or the last
    engine: the run restarts its training processes and continues from its newest whole checkpoint.
    """

    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts in a row without progress beyond the earlier losses; the next loss ends the run with
    exit code 3. 0 = the first loss ends it.
    """
    backoff_s: Annotated[float, Field(ge=0)] = 1.0
    """Wait before the first restart in a row; doubled before each further one, up to a minute."""
    probe_every_s: Annotated[float, Field(gt=0)] = 5.0
    """Interval between probes of each of these processes (engines: rollout.probe_every_s)."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """A process that answers no probe for this long (frozen, swapped out, cut off) counts as dead;
    the limit is doubled while it reads or writes a checkpoint.
    """
    stall_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """A rank that answers probes but works on one micro-batch for this long counts as dead."""


def _list_if_one(given: object) -> object:
    return (given,) if isinstance(given, str) else given


class LoggingSettings(Settings):
    tensorboard: bool = True
    """Write the metrics as TensorBoard's event files into the run directory."""
    trackers: Annotated[tuple[str, ...], BeforeValidator(_list_if_one)] = ()
    """More experiment trackers, e.g. [wandb, mlflow] (in the checkout: pip install '.[trackers]'),
    also those that an installed package registers; tensorboard is the setting above. See
    docs/tools.md.
    """
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")] = "sppo-ray"
    """The run's project in W&B, its experiment in MLflow."""
    trajectories: bool = True
    """Write each step's samples as Parquet; the page's samples and replay need them."""
    progress: Literal["auto", "live", "plain", "off"] = "auto"
    """live = a table that is redrawn; plain = a line a step; off = none; auto = live on a
    terminal, else plain.
    """
    trace: bool = False
    """Write trace.json: what each process did when, for ui.perfetto.dev (short form: --trace)."""

    @field_validator("progress", mode="before")
    @classmethod
    def _off_is_a_word(cls, given: Any) -> Any:
        return "off" if given is False else given  # YAML reads an unquoted off as false


class ClusterSettings(Settings):
    address: str | None = None
    """A Ray cluster to join ("auto" or host:port). null = $RAY_ADDRESS when set (a Ray job), else a
    local one.
    """
    local_cpus: PositiveInt | None = None
    """Logical CPUs of the local cluster; null = all of the machine."""
    layout: Literal["separate", "colocated"] = "separate"
    """separate: each role has devices of its own. colocated: engine i, learner rank i and critic
    rank i share a GPU in turns (docs/gpu.md). Give each the share 1, as if the GPU were its own;
    equally many engines and learner ranks; rollout.kv_cache_gib.
    """
    placement: Literal["pack", "spread"] = "pack"
    """pack: actors on as few nodes as possible, because ranks of a group exchange gradients.
    spread: on as many nodes as possible, the largest actors first, e.g. one engine per node.
    """
    ready_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Limit of the wait for processors and GPUs, and of the start of an actor other than an
    engine.
    """
    actor_output: bool = False
    """Print what the actors print, e.g. DeepSpeed's warnings and C++ lines, among the run's lines
    (short form: --verbose). Ray's logs have it in any case.
    """
