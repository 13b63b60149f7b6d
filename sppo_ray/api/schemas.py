"""Request and response models of the REST API, each with an example. No logic."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sppo_ray.rundir import status
from sppo_ray.rundir.commands import MAX_WORKERS
from sppo_ray.rundir.layout import RUN_NAME

Scalar = str | int | float | bool | None
RunName = Annotated[
    str,
    Field(pattern=RUN_NAME, description="Letters, digits, dot, dash and underscore; becomes a directory."),
]


class Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", from_attributes=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class JobState(StrEnum):
    PENDING = "PENDING"  # submitted, its trainer has not started
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"  # asked to stop, ends after the current step
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"  # ended early on request, resumable
    FAILED = "FAILED"
    LOST = "LOST"  # its process is gone without a final status, resumable

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.STOPPED, JobState.FAILED, JobState.LOST)


class FieldError(Model):
    path: str
    """Place in the request, e.g. body.overrides.rollout.workers"""
    message: str


class Problem(Model):
    """RFC 9457 problem document, served as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []


class Worker(Model):
    """State of a rollout worker in the fleet."""

    name: str
    state: str
    """PENDING, RESTARTING, STALE, HEALTHY, SUSPECT, DRAINING, DEAD, RETIRED"""
    version: int | None = None
    """Policy version that the worker serves."""
    restarts: int = 0
    in_flight: int = 0
    """Requests."""
    finished: int = 0


class Actor(Model):
    """A process of the run: learner-0, critic-0, reference-0, reward, rollout-0."""

    name: str
    restarts: int = 0
    """Number of restarts. A loss of any learner or critic rank restarts all ranks of both from the
    newest checkpoint.
    """
    node_ip: str | None = None
    pid: int | None = None
    """Process id on its node; null while it waits for its place or starts."""


class PendingWorker(status.PendingRow, Model):
    pass


class Checkpoint(Model):
    step: int
    time: float
    bytes: int


class LastError(status.ErrorRow, Model):
    pass


class Alert(status.Alert, Model):
    """A current alarm of a guardrail."""


class Command(Model):
    """A command to a trainer, with its outcome."""

    id: str
    kind: str
    by: str | None = None
    time: float | None = None
    rollout_workers: int | None = None
    outcome: Literal["waiting", "done", "refused"] = "waiting"
    detail: str | None = None


class Job(Model):
    """A training job, from its run directory and Ray."""

    id: str
    """Ray's submission id, or the run id when the run was started without Ray's job server."""
    run_id: str | None = None
    """Name of the run directory; null when a bare `ray job submit` has not created one yet, or
    created it elsewhere.
    """
    name: str
    state: JobState
    phase: str
    stage: str | None = None
    """What the loop waits for now."""
    step: int = 0
    """Steps done."""
    steps: int | None = None
    budget_s: float | None = None
    """Seconds of training after which the run ends, even if steps are left (loop.budget_s); compare
    with `seconds`.
    """
    eta_s: float | None = None
    """Estimate of the seconds left; null while the job is paused and after its end."""
    reward: float | None = None
    """Mean reward of the newest step."""
    accuracy: float | None = None
    """Newest held-out accuracy."""
    best_accuracy: float | None = None
    tokens_per_second: float | None = None
    policy_version: int | None = None
    staleness: dict[str, int] = {}
    """Age in policy versions -> samples of the newest step."""
    workers: list[Worker] = []
    wanted_workers: int | None = None
    pending: list[PendingWorker] = []
    actors: list[Actor] = []
    """Every process of the run; empty once it has ended."""
    commands: list[Command] = []
    """The newest commands, oldest first."""
    restarts: int = 0
    """Restarts of engines, of the run after the loss of another worker, and of its driver."""
    checkpoints: list[Checkpoint] = []
    alerts: list[Alert] = []
    """Current alarms. A run that a guardrail paused continues with PATCH {"paused": false}."""
    last_error: LastError | None = None
    algorithm: str | None = None
    recipe: str | None = None
    """Name of the recipe, or the name of its file without directories."""
    seed: int | None = None
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    updated: float | None = None
    """When the trainer last wrote its status (Unix time)."""
    submission_id: str | None = None
    submitted_by: str | None = None
    metadata: dict[str, str] = {}
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Seconds of training over all incarnations."""


class JobList(Model):
    jobs: list[Job]
    next_cursor: str | None = None
    total: int
    """Number of jobs that match the filter."""
    ray: Literal["up", "down"]
    """Whether Ray's job server answers; otherwise states come only from the run directories."""


class JobRequest(Model):
    """A job to submit: a recipe with overrides, or a whole config."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "recipe": "quickstart",
                    "overrides": {"loop.steps": 20, "rollout.workers": 2},
                    "run_name": "first",
                    "seed": 1,
                },
                {"run_name": "first", "resume": True},
            ]
        },
    )

    recipe: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """A shipped recipe, or a .yaml file below one of the server's allowed directories."""
    overrides: Annotated[dict[str, Any], Field(max_length=500)] = {}
    """Setting -> value, e.g. {"loop.steps": 20}."""
    config: dict[str, Any] | None = None
    """A whole settings tree instead of a recipe."""
    run_name: RunName | None = None
    """Name of the run directory; the default is made from recipe, seed and time."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    resume: bool = False
    """Continue the run `run_name` from its newest checkpoint with its own settings; no other field
    may be given.
    """
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=1000)]],
        Field(max_length=50),
    ] = {}
    """Stored with the job, for your own use."""


class JobPatch(Model):
    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"rollout_workers": 2}, {"paused": True}]},
    )

    rollout_workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | None = None
    paused: bool | None = None


class MetricRows(Model):
    """Rows of metrics.jsonl: {"step", "time", name: number or null}. A row has only the metrics
    that were recorded at its step.
    """

    names: list[str]
    rows: list[dict[str, float | int | None]]
    next_from: int | None = None
    """The step to continue from when `limit` cut the answer."""


class Turn(Model):
    """An action of the policy in an episode, or the environment's observation after it."""

    is_action: bool
    text: str
    tokens: int
    reward: float | None
    """The environment's part of the reward for an action."""


class Sample(Model):
    """One training sample of a step."""

    index: int
    """Row in the step's file."""
    request_id: str
    prompt_id: str
    source: str
    prompt: str
    ground_truth: str
    response: str
    turns: list[Turn]
    """Of an episode, in order; empty without an environment."""
    tokens: int
    finish_reason: str
    reward: float
    reason: str
    value: float | None
    surprise: float | None
    """|reward - value|"""
    advantage: float
    staleness: int
    policy_version: int
    worker: str
    seconds: float


class SamplePage(Model):
    step: int
    first_step: int
    last_step: int
    total: int
    items: list[Sample]
    next_cursor: str | None = None


class Evaluations(Model):
    evaluations: list[dict[str, Any]]
    """As in evaluations/step-*.json, by step."""


class RunSettings(Model):
    yaml: str
    settings: dict[str, Any]


class Download(Model):
    name: str
    """File name that a browser suggests."""
    bytes: int
    """Of the files; an archive is a little larger."""
    files: int


class Downloads(Model):
    export: Download | None = None
    """The exported models; null before the run has finished."""
    report: Download | None = None
    """What `sppo-ray report` wrote; null without it."""


class Recipe(Model):
    name: str
    summary: str
    algorithm: str
    model: str
    cpus: float
    gpus: float


class Recipes(Model):
    recipes: list[Recipe]


class Health(Model):
    status: Literal["ok", "degraded"]
    checks: dict[str, str] = {}
    version: str
