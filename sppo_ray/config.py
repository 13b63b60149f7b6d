"""The one source of settings: a frozen pydantic tree, read from a YAML recipe and `--a.b=c` overrides.

Importing this module imports neither torch nor Ray, so that a typo costs a millisecond and not a minute. An unknown
key is an error that names the nearest valid one; a setting that cannot work is refused with the remedy.
All batch sizes are in SAMPLES over all ranks (one response = one sample).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import Field, field_validator, model_validator

from sppo_ray.algorithms import ALGORITHMS
from sppo_ray.algorithms.base import AlgorithmSpec
from sppo_ray.algorithms.shaping import shaped_reward
from sppo_ray.algorithms.sppo import SPPOSettings
from sppo_ray.guardrail_settings import GuardrailSettings
from sppo_ray.settings import PositiveInt, Probability, Settings

Dtype = Literal["float32", "bfloat16"]
Algorithm = Annotated[Union[tuple(spec.settings for spec in ALGORITHMS.values())], Field(discriminator="type")]  # type: ignore[valid-type]


# -------------------------------------------------------------------------------------------------------- data


class RunningSumData(Settings):
    """The package's own task: add up labelled numbers step by step (`sppo_ray.tasks.running_sum`)."""

    type: Literal["running-sum"] = "running-sum"
    name: str = "running-sum"
    size: PositiveInt = 100_000
    """Number of prompts; prompt i is generated from (seed, i), and short ones come more than once."""
    seed: Annotated[int, Field(ge=0)] = 0
    max_operands: Annotated[int, Field(ge=2, le=26)] = 8


class ParquetData(Settings):
    """The field's format: data_source, prompt (chat messages), reward_model.ground_truth, extra_info."""

    type: Literal["parquet"] = "parquet"
    name: str | None = None
    """Overrides `data_source` in metrics when given."""
    path: str
    """A file, a directory of files, or a glob."""


class JsonlData(Settings):
    """One JSON object a line: `prompt` (a string or chat messages) and `ground_truth` (keys configurable)."""

    type: Literal["jsonl"] = "jsonl"
    name: str | None = None
    path: str
    prompt_key: str = "prompt"
    ground_truth_key: str = "ground_truth"


class HFDiskData(Settings):
    """A Hugging Face dataset written by `save_to_disk`."""

    type: Literal["hf-disk"] = "hf-disk"
    name: str | None = None
    path: str
    split: str | None = None
    prompt_key: str = "prompt"
    ground_truth_key: str = "ground_truth"


class ReasoningGymData(Settings):
    """A procedural task of the reasoning-gym package, scored by its own verifier."""

    type: Literal["reasoning-gym"] = "reasoning-gym"
    task: str
    size: PositiveInt = 10_000
    seed: Annotated[int, Field(ge=0)] = 0
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Handed to `reasoning_gym.create_dataset`."""

    @property
    def name(self) -> str:
        return f"reasoning-gym/{self.task}"


DataSource = Annotated[Union[RunningSumData, ParquetData, JsonlData, HFDiskData, ReasoningGymData], Field(discriminator="type")]


class CurriculumSettings(Settings):
    """Prefer prompts whose outcome is open: drawn without replacement in proportion to (V (1 - V)) ** sharpness."""

    candidates: Annotated[int, Field(ge=2)] = 4
    """Prompts that the critic reads for each one that is trained on."""
    sharpness: Annotated[float, Field(gt=0)] = 1.0


class DataSettings(Settings):
    train: tuple[DataSource, ...]
    held_out: tuple[DataSource, ...] = ()
    """Evaluation sets; see held_out_overlap."""
    held_out_overlap: Literal["refuse", "drop", "allow"] = "refuse"
    """A training prompt of a file that is also held out: stop and name it, leave it out of training and count it, or
    train on it. Procedural sources always leave it out."""
    prompts_per_step: PositiveInt = 256
    samples_per_prompt: PositiveInt = 1
    """N. One is enough where the baseline is no other sample (sppo, ppo, remax, reinforce); grpo and rloo need 2 or more."""
    minibatch_size: PositiveInt = 64
    """Samples an optimizer step, over all learner ranks."""
    max_prompt_tokens: PositiveInt = 1024
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """A prompt longer than max_prompt_tokens: stop and name it, or leave it out and count it. Never cut."""
    shuffle: bool = True
    curriculum: CurriculumSettings | None = None
    """Which prompts of the shuffled order a step trains on; null = all, as they come. Needs a prompt critic (sppo)."""
    system_prompt: str | None = None
    """Put in front of messages that have no system message."""
    prompt_suffix: str | None = None
    """Appended to the last user message, e.g. how to mark the final answer."""

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def minibatches_per_step(self) -> int:
        return self.samples_per_step // self.minibatch_size

    @model_validator(mode="after")
    def _batches_divide(self) -> DataSettings:
        if not self.train:
            raise ValueError("train names no data source: give at least one")
        if self.samples_per_step % self.minibatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} does not divide the {self.samples_per_step} samples of a step "
                "(prompts_per_step x samples_per_prompt): nearest that do are "
                f"{_near_divisors(self.samples_per_step, self.minibatch_size)}"
            )
        return self


# ------------------------------------------------------------------------------------------------------ models


class OptimizerSettings(Settings):
    """AdamW and its schedule. Steps of the schedule are optimizer steps (minibatches)."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Global gradient norm bound; null = no clipping."""
    schedule: Literal["constant", "linear"] = "constant"
    final_lr_fraction: Probability = 0.1
    """linear: the learning rate falls in a straight line to this fraction of lr at the last of the updates that the run has room
    for. A minibatch without samples (dropped by dynamic sampling, or none of it scored) makes no update, so that such a run ends
    above it; one that is skipped for a gradient that is not finite counts."""
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0


class ModelSettings(Settings):
    model: str
    """A Transformers checkpoint directory, or `builtin:NAME` for one that the package makes (sppo-ray prepare)."""
    dtype: Dtype = "float32"
    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"
    optimizer: OptimizerSettings = OptimizerSettings()
    ranks: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    offload_optimizer: bool = False
    gradient_checkpointing: bool = False
    max_tokens_per_microbatch: PositiveInt = 8192
    """Padded tokens of one forward on one rank; gradient accumulation follows from it."""
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """A rank that does not answer one call (an update, a checkpoint) for so long is taken for dead, though it answers probes."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> ModelSettings:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs a partitioned optimizer: set zero_stage to 1, 2 or 3, or turn it off")
        return self


class LearnerSettings(ModelSettings):
    """The policy and its optimizer."""


class CriticSettings(ModelSettings):
    """The value model. sppo's reads the prompt only: any Transformers causal LM, of any size and with any tokenizer, or an
    exported critic (or the directory of the run that exported it). ppo's reads responses too: the policy's vocabulary."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start in which only the critic learns."""


class ReferenceSettings(Settings):
    """The frozen starting policy of algorithm.kl: one copy for each learner rank, only when its coefficient is above 0."""

    dtype: Dtype = "float32"
    cpus_per_rank: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0


# ----------------------------------------------------------------------------------------------------- rollout


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


# ----------------------------------------------------------------------------------------------------- rewards


class MathReward(Settings):
    """Final answer in \\boxed{} compared by math-verify."""

    type: Literal["math"] = "math"


class RunningSumReward(Settings):
    """Exact final answer of the running sum."""

    type: Literal["running-sum"] = "running-sum"


class ReasoningGymReward(Settings):
    """The task's own verifier of reasoning-gym; `full_only` turns partial credit into 0."""

    type: Literal["reasoning-gym"] = "reasoning-gym"
    full_only: bool = True


class CodeReward(Settings):
    """The last Python block of the response against the row's unit tests, in a sandbox without network (docs/rewards.md)."""

    type: Literal["code"] = "code"
    timeout_s: Annotated[float, Field(gt=0)] = 8.0
    """For all tests of a response together; what takes longer scores 0. Less than reward.deadline_s, which counts errors."""
    memory_mib: Annotated[int, Field(ge=64)] = 512
    """Address space of a program, the interpreter's 30 MiB included."""
    full_only: bool = True
    """1 when every test passes, else 0. false: the share of tests that pass."""


class CustomReward(Settings):
    """A function of your own: `def f(response: str, ground_truth: str, extra: dict) -> float`."""

    type: Literal["custom"] = "custom"
    function: str
    """Import path "package.module:function" of a module in the working directory, or elsewhere on a PYTHONPATH of yours."""
    packages: tuple[str, ...] = ()
    """Installed packages that the function may come from; none by default, and never the standard library."""
    range: tuple[float, float] = (0.0, 1.0)
    """The declared range of the reward. A critic trained by binary cross-entropy (sppo; ppo with critic_loss bce) needs
    [0, 1]."""

    @field_validator("function")
    @classmethod
    def _is_an_import_path(cls, given: str) -> str:
        module, separator, name = given.partition(":")
        if not separator or not all(part.isidentifier() for part in (*module.split("."), name)):
            raise ValueError(f"{given!r} is no import path: write it as package.module:function, without slashes or file names")
        return given


RewardFunction = Annotated[
    Union[MathReward, RunningSumReward, ReasoningGymReward, CodeReward, CustomReward], Field(discriminator="type")
]


class RewardSettings(Settings):
    function: RewardFunction = MathReward()
    processes: PositiveInt = 1
    """Verifier processes; each can be killed and replaced without harm to the others."""
    deadline_s: Annotated[float, Field(gt=0)] = 10.0
    """A sample that takes longer is counted as a reward error and its process is replaced."""
    memory_mib: PositiveInt = 2048
    """Address-space growth that one process may use on a sample."""
    max_error_rate: Probability = 0.1
    """The run stops when more of a step's samples than this are reward errors."""
    cpus: Annotated[float, Field(gt=0)] = 1.0

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest reward that the function declares."""
        return getattr(self.function, "range", (0.0, 1.0))

    @model_validator(mode="after")
    def _range_is_one(self) -> RewardSettings:
        low, high = self.range
        if low >= high:
            raise ValueError(f"function.range is [{low}, {high}]: give the lowest reward first, then the highest")
        return self

    @model_validator(mode="after")
    def _programs_end_first(self) -> RewardSettings:
        if isinstance(self.function, CodeReward) and self.function.timeout_s >= self.deadline_s:
            raise ValueError(
                f"function.timeout_s is {self.function.timeout_s:g} and deadline_s {self.deadline_s:g}: a program that hangs "
                "would count as an error and not as wrong, so set deadline_s to timeout_s and 2 s or more"
            )
        return self


# -------------------------------------------------------------------------------------------------------- loop


class LoopSettings(Settings):
    steps: PositiveInt = 100
    budget_s: Annotated[float, Field(gt=0)] | None = None
    """End after the step in which so many seconds of training are over (evaluations and checkpoints not counted), even if
    steps are left."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Policy versions that a sample may lie behind the learner. 0 = synchronous; on CPUs, with minibatch_order dispatch,
    reproducible bit for bit."""
    minibatch_order: Literal["dispatch", "finish"] = "dispatch"
    """What a step's minibatches are made of. dispatch = the prompts in their (random) order; reproducible with any number
    of rollout workers. finish = the next samples that finish: the first update starts earlier, but short responses then
    come first and long ones last, and a minibatch is no fair sample of the prompts (docs/architecture.md)."""


class EvalSettings(Settings):
    every: Annotated[int, Field(ge=0)] = 10
    """Steps between evaluations; 0 = only at the start and the end."""
    every_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds of training between evaluations, in place of `every`; for comparisons at equal time."""
    prompts: PositiveInt | None = None
    """First so many prompts of each held-out set; null = all."""
    samples_per_prompt: PositiveInt = 1
    """k of avg@k, pass@k and maj@k."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """null = as in training."""
    at_start: bool = True

    @model_validator(mode="after")
    def _samples_differ(self) -> EvalSettings:
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"at temperature 0 the {self.samples_per_prompt} samples of a prompt are one and the same response: set "
                "samples_per_prompt to 1, or the temperature above 0"
            )
        return self


class CheckpointSettings(Settings):
    every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0 = only at the end, so that a run whose learner is lost begins anew."""
    keep: PositiveInt = 2
    export: bool = True
    """Write policy and critic as plain Transformers checkpoints at the end."""


class RecoverySettings(Settings):
    """What happens when a rank of the learner or the critic, the reference, the verifier or the last engine is lost: the run goes
    back to its newest whole checkpoint by itself, with training processes made anew."""

    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often in a row, without a step further than before; then the run ends with exit code 3. 0 = at the first one."""
    backoff_s: Annotated[float, Field(ge=0)] = 1.0
    """Before the first restart in a row; doubled before each further one, up to a minute."""
    probe_every_s: Annotated[float, Field(gt=0)] = 5.0
    """Each process of these is asked for a sign of life so often, whatever it does (engines: rollout.probe_every_s)."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """One that answers no probe for so long (frozen, swapped out, cut off) is taken for dead; while it reads or writes a
    checkpoint, twice as long."""
    stall_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """A rank that answers probes but works on one micro-batch for so long is taken for dead."""


class LoggingSettings(Settings):
    tensorboard: bool = True
    trajectories: bool = True
    progress: Literal["auto", "live", "plain", "off"] = "auto"

    @field_validator("progress", mode="before")
    @classmethod
    def _off_is_a_word(cls, given: Any) -> Any:
        return "off" if given is False else given  # YAML reads an unquoted off as false


class ClusterSettings(Settings):
    address: str | None = None
    """A Ray cluster to join ("auto" or host:port). null = $RAY_ADDRESS when set (a Ray job), else a local one."""
    local_cpus: PositiveInt | None = None
    """Logical CPUs of the local cluster; null = all of the machine."""
    placement: Literal["pack", "spread"] = "pack"
    """pack: the actors on as few nodes as they fit on; ranks of a group exchange gradients. spread: on as many as there are, the
    largest first, e.g. one engine a node."""
    ready_timeout_s: Annotated[float, Field(gt=0)] = 600.0


class RunConfig(Settings):
    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = cuda when the Ray cluster has GPUs, else cpu."""
    algorithm: Algorithm = SPPOSettings()
    data: DataSettings
    learner: LearnerSettings
    critic: CriticSettings
    """Not loaded by algorithms without a critic (grpo, rloo, remax, reinforce)."""
    reference: ReferenceSettings = ReferenceSettings()
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    weight_sync: WeightSyncSettings = WeightSyncSettings()
    loop: LoopSettings = LoopSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    recovery: RecoverySettings = RecoverySettings()
    guardrails: GuardrailSettings = GuardrailSettings()
    logging: LoggingSettings = LoggingSettings()
    cluster: ClusterSettings = ClusterSettings()

    @field_validator("algorithm", mode="before")
    @classmethod
    def _sppo_by_default(cls, given: Any) -> Any:
        return {"type": "sppo", **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _possible_together(self) -> RunConfig:
        self._check_algorithm()
        if self.learner.ranks > self.data.minibatch_size:
            raise ValueError(
                f"learner.ranks {self.learner.ranks} exceeds data.minibatch_size {self.data.minibatch_size}: a rank would "
                "have no sample; raise the minibatch or lower the ranks"
            )
        if self.has_critic and self.critic.warmup_steps >= self.loop.steps:
            raise ValueError(
                f"critic.warmup_steps {self.critic.warmup_steps} leaves none of the {self.loop.steps} steps to the "
                "policy: lower it, "
                "or raise loop.steps"
            )
        self._check_devices()
        longest = self.data.max_prompt_tokens + self.rollout.max_response_tokens
        if self.learner.max_tokens_per_microbatch < longest:
            raise ValueError(
                f"learner.max_tokens_per_microbatch {self.learner.max_tokens_per_microbatch} is less than the longest "
                f"sample, {longest} tokens "
                "(data.max_prompt_tokens + rollout.max_response_tokens): raise it to at least that, or shorten either"
            )
        read, what = self.critic_reads_at_most()
        if self.has_critic and self.critic.max_tokens_per_microbatch < read:
            raise ValueError(
                f"critic.max_tokens_per_microbatch {self.critic.max_tokens_per_microbatch} is less than {what} {read}: raise it"
            )
        return self

    @property
    def spec(self) -> AlgorithmSpec:
        return ALGORITHMS[self.algorithm.type]

    @property
    def has_critic(self) -> bool:
        return self.spec.critic != "none"

    @property
    def has_reference(self) -> bool:
        return self.algorithm.kl.coefficient > 0

    @property
    def critic_warmup_steps(self) -> int:
        """Steps at the start in which the policy does not learn; 0 without a critic."""
        return self.critic.warmup_steps if self.has_critic else 0

    @property
    def prompt_rounds(self) -> int:
        """Cohorts of the prompt stream that belong to one step: more than one with a curriculum or dynamic sampling."""
        if self.data.curriculum is not None:
            return self.data.curriculum.candidates
        dynamic = getattr(self.algorithm, "dynamic_sampling", None)
        return dynamic.max_rounds if dynamic is not None else 1

    @property
    def critic_needs_probabilities(self) -> bool:
        """Whether the critic is trained by binary cross-entropy, which is defined for rewards in [0, 1]."""
        return self.spec.critic == "prompt" or getattr(self.algorithm, "critic_loss", None) == "bce"

    def shaped(self, reward: float, num_tokens: int) -> float:
        """What advantage and critic are told of a response of so many tokens: its reward after overlong shaping."""
        floor = 0.0 if self.critic_needs_probabilities else None
        return shaped_reward(reward, num_tokens, self.rollout.max_response_tokens, self.algorithm.overlong, floor=floor)

    def critic_reads_at_most(self) -> tuple[int, str]:
        """Longest input of the critic in tokens, and the setting that it follows from."""
        if self.spec.critic == "token":
            longest = self.data.max_prompt_tokens + self.rollout.max_response_tokens
            return longest, "data.max_prompt_tokens + rollout.max_response_tokens"
        return self.data.max_prompt_tokens, "data.max_prompt_tokens"

    def _check_algorithm(self) -> None:
        name = self.algorithm.type
        if self.spec.needs == "group":
            self._check_groups()
        if name == "reinforce" and self.data.samples_per_step < 2:
            raise ValueError(
                "algorithm reinforce takes the mean reward of a step for its baseline, and a step of one sample is its own mean: "
                "every advantage would be 0; raise data.prompts_per_step or data.samples_per_prompt"
            )
        if self.spec.needs == "step" and self.loop.minibatch_order == "finish":
            raise ValueError(
                f"loop.minibatch_order finish trains while samples are still missing, and {name} needs all samples of a step "
                "before it knows an advantage: set it to dispatch"
            )
        if self.data.curriculum is not None and self.spec.critic != "prompt":
            raise ValueError(
                f"data.curriculum chooses prompts by the prompt critic's value, and {name} has none: set algorithm.type to sppo, "
                "or data.curriculum to null"
            )
        low, high = self.reward.range
        if self.critic_needs_probabilities and (low < 0.0 or high > 1.0):
            raise ValueError(
                f"reward.function.range is [{low:g}, {high:g}], but the critic of {name} is trained by binary cross-entropy and "
                "needs rewards in [0, 1]: rescale the function, e.g. (r - low) / (high - low), and declare [0, 1]"
            )
        overlong = self.algorithm.overlong
        if overlong is not None and overlong.buffer_tokens > self.rollout.max_response_tokens:
            raise ValueError(
                f"algorithm.overlong.buffer_tokens {overlong.buffer_tokens} exceeds rollout.max_response_tokens "
                f"{self.rollout.max_response_tokens}: lower it"
            )

    def _check_groups(self) -> None:
        name, samples = self.algorithm.type, self.data.samples_per_prompt
        if samples < 2:
            raise ValueError(
                f"data.samples_per_prompt is {samples}, but {name} compares the samples of a prompt with each other: "
                "set it to 2 or more, e.g. 8"
            )
        if self.data.minibatch_size % samples:
            raise ValueError(
                f"data.minibatch_size {self.data.minibatch_size} cuts groups of data.samples_per_prompt {samples} apart: "
                "make it a multiple"
            )
        if self.loop.minibatch_order == "finish":
            raise ValueError(
                f"loop.minibatch_order finish takes samples one by one, and {name} needs whole groups: set it to dispatch"
            )

    def _check_devices(self) -> None:
        shares = {
            "rollout.gpus_per_worker": self.rollout.gpus_per_worker,
            "learner.gpus_per_rank": self.learner.gpus_per_rank,
            "critic.gpus_per_rank": self.critic.gpus_per_rank,
            "reference.gpus_per_rank": self.reference.gpus_per_rank,
        }
        for name, share in shares.items():
            if self.device == "cpu" and share > 0:
                raise ValueError(f"{name} is {share:g}, but device is cpu: set it to 0, or device to cuda")
        if self.device == "cuda" and self.rollout.gpus_per_worker == 0:
            raise ValueError(
                "device is cuda, but rollout.gpus_per_worker is 0: give each engine its GPUs, e.g. 1, or set device to cpu"
            )
        tensor_parallel, gpus = self.rollout.tensor_parallel_size, self.rollout.gpus_per_worker
        if gpus > 0 and tensor_parallel > 1 and gpus < tensor_parallel:
            raise ValueError(
                f"rollout.tensor_parallel_size {tensor_parallel} needs as many GPUs a worker, rollout.gpus_per_worker "
                f"is {gpus:g}: set it to "
                f"{tensor_parallel}"
            )
        for name, model in (("learner", self.learner), ("critic", self.critic)):
            if model.attention == "flash_attention_2" and model.dtype == "float32":
                raise ValueError(
                    f"{name}.attention flash_attention_2 works in bfloat16 only: set {name}.dtype to bfloat16, or "
                    "attention to sdpa"
                )

    def derived(self) -> dict[str, Any]:
        """The numbers that follow from the settings, printed at the start of a run and by --dry-run."""
        data, loop = self.data, self.loop
        return {
            "samples a step": data.samples_per_step,
            "minibatches a step (optimizer steps)": data.minibatches_per_step,
            "samples a rank and minibatch": data.minibatch_size / self.learner.ranks,
            "optimizer steps in all": data.minibatches_per_step * loop.steps,
            "samples in all": data.samples_per_step * loop.steps,
            "samples in flight at most": (loop.max_staleness + 1) * data.samples_per_step,
            "context of an engine (tokens)": data.max_prompt_tokens + self.rollout.max_response_tokens,
            "rollout slots (workers x sequences)": self.rollout.workers * self.rollout.max_sequences,
            "logical CPUs": self.logical_cpus(),
            "GPUs": self.logical_gpus(),
        }

    def logical_cpus(self) -> float:
        return round(
            self.rollout.workers * self.rollout.cpus_per_worker
            + self.learner.ranks * self.learner.cpus_per_rank
            + self.has_critic * self.critic.ranks * self.critic.cpus_per_rank
            + self.has_reference * self.learner.ranks * self.reference.cpus_per_rank
            + self.reward.cpus,
            4,
        )

    def logical_gpus(self) -> float:
        return round(
            self.rollout.workers * self.rollout.gpus_per_worker
            + self.learner.ranks * self.learner.gpus_per_rank
            + self.has_critic * self.critic.ranks * self.critic.gpus_per_rank
            + self.has_reference * self.learner.ranks * self.reference.gpus_per_rank,
            4,
        )


def _near_divisors(total: int, near: int) -> str:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return ", ".join(str(d) for d in sorted(sorted(divisors, key=lambda d: abs(d - near))[:3]))
