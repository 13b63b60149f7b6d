"""What goes over the wire: the models behind the OpenAPI document, with an example each. No logic."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sppo_ray.trainer.control import MAX_WORKERS

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Scalar = str | int | float | bool | None
RunName = Annotated[str, Field(pattern=RUN_NAME, description="Letters, digits, dot, dash and underscore; becomes a directory.")]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class JobState(StrEnum):
    PENDING = "PENDING"  # submitted, its trainer has not begun
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"  # asked to stop, ends after the step under way
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"  # ended early on request, resumable
    FAILED = "FAILED"
    LOST = "LOST"  # its process is gone without a word, resumable

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.STOPPED, JobState.FAILED, JobState.LOST)


class FieldError(Model):
    path: str
    """Where in the request: body.overrides.rollout.workers"""
    message: str


class Problem(Model):
    """RFC 9457 problem document, served as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []


class Worker(Model):
    """A rollout worker as the fleet sees it."""

    name: str
    state: str
    """PENDING, RESTARTING, STALE, HEALTHY, SUSPECT, DRAINING, DEAD, RETIRED"""
    version: int | None = None
    """Policy version that it serves."""
    restarts: int = 0
    in_flight: int = 0
    """Requests."""
    finished: int = 0


class Actor(Model):
    """A process of the run: learner-0, critic-0, reference-0, reward, rollout-0."""

    name: str
    restarts: int = 0
    """How often it was made anew. A loss of any rank of learner or critic makes all of both anew, from the newest checkpoint."""
    node_ip: str | None = None
    pid: int | None = None
    """On its node; null while it waits for its place, or starts."""


class PendingWorker(Model):
    worker: str
    waiting_for: str
    since: float | None = None
    """Unix time."""


class Checkpoint(Model):
    step: int
    time: float
    bytes: int


class LastError(Model):
    actor: str | None = None
    message: str
    stack: str | None = None


class Alert(Model):
    """An alarm of a guardrail that is up: what was seen in the figures of the run's steps."""

    detector: str
    """The setting guardrails.<detector> holds its limit."""
    step: int
    """Steps done when it was raised."""
    since: int
    """The first odd step."""
    action: str
    """What it did to the run: warn, pause or stop."""
    message: str
    """What was seen, what it usually means, what to do."""


class Command(Model):
    """A command to a trainer and what became of it."""

    id: str
    kind: str
    by: str | None = None
    time: float | None = None
    rollout_workers: int | None = None
    outcome: Literal["waiting", "done", "refused"] = "waiting"
    detail: str | None = None


class Job(Model):
    """A training job: what its run directory and Ray say."""

    id: str
    """Ray's submission id; of a run that was started without Ray's job server, its run id."""
    run_id: str | None = None
    """Name of the run directory; null while a bare `ray job submit` has not made one, or made it elsewhere."""
    name: str
    state: JobState
    phase: str
    stage: str | None = None
    """What the loop waits for right now."""
    step: int = 0
    """Steps done."""
    steps: int | None = None
    budget_s: float | None = None
    """Seconds of training after which the run ends, even if steps are left (loop.budget_s); compare with `seconds`."""
    eta_s: float | None = None
    reward: float | None = None
    """Mean of the newest step."""
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
    """Of engines, of the run after a loss of another worker, and of its driver."""
    checkpoints: list[Checkpoint] = []
    alerts: list[Alert] = []
    """A run that a guardrail paused goes on with PATCH {"paused": false}."""
    last_error: LastError | None = None
    algorithm: str | None = None
    recipe: str | None = None
    """Its name; of a file, the file's name alone."""
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
    """Of training, over all incarnations."""


class JobList(Model):
    jobs: list[Job]
    next_cursor: str | None = None
    total: int
    """Jobs that the filter leaves."""
    ray: Literal["up", "down"]
    """Whether Ray's job server answers; without it states come from the run directories alone."""


class JobRequest(Model):
    """A job to submit: a recipe with overrides, or a whole config."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {"recipe": "quickstart", "overrides": {"loop.steps": 20, "rollout.workers": 2}, "run_name": "first", "seed": 1},
                {"run_name": "first", "resume": True},
            ]
        },
    )

    recipe: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """A recipe that ships, or a .yaml file below one of the server's allowed directories."""
    overrides: Annotated[dict[str, Any], Field(max_length=500)] = {}
    """Setting -> value, e.g. {"loop.steps": 20}."""
    config: dict[str, Any] | None = None
    """A whole settings tree instead of a recipe."""
    run_name: RunName | None = None
    """Name of the run directory; left out, one is made from the recipe, the seed and the time."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    resume: bool = False
    """Continue the run `run_name` from its newest checkpoint, with the settings that it had; nothing else may be given."""
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=1000)]], Field(max_length=50)
    ] = {}
    """Kept with the job, for your own use."""


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
    """Rows of metrics.jsonl: {"step", "time", name: number or null}. A row has only the metrics that were taken at its step."""

    names: list[str]
    rows: list[dict[str, float | int | None]]
    next_from: int | None = None
    """Where to go on when `limit` cut the answer: a step."""


class Sample(Model):
    """One sample of a step as it was trained on."""

    index: int
    """Row in the step's file."""
    request_id: str
    prompt_id: str
    source: str
    prompt: str
    ground_truth: str
    response: str
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
