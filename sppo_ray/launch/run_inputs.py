"""Gather the inputs of a run before any actor exists: checkpoints, tokenizers, prompts. All errors
in the data are raised here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sppo_ray.config import DataSettings, EnvironmentSettings, RewardSettings, RunConfig, UserReward
from sppo_ray.errors import UserError
from sppo_ray.models.hub import commit_of, hub_model
from sppo_ray.planning.preflight import check_reward_model
from sppo_ray.protocols import PromptSource
from sppo_ray.types import Prompt, ScoreRequest

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from sppo_ray.config.evaluation import EvaluationConfig
    from sppo_ray.data.encoder import ToolList
    from sppo_ray.environments.base import StepResult
    from sppo_ray.environments.observations import ObservationEncoder
    from sppo_ray.environments.resets import Resets
    from sppo_ray.protocols import EnvironmentClient
    from sppo_ray.rollout.episodes import Episodes, Generator
    from sppo_ray.rollout.scoring import Decode

Report = Callable[[str], None]
SHOWN_CHARACTERS = 300  # of a prompt


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Inputs of a run: checkpoints, tokenizer, prompts."""

    policy_path: Path
    critic_path: Path
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSource
    held_out: Mapping[str, Sequence[Prompt]]
    observations: ObservationEncoder | None  # None without an environment
    tools: ToolList | None  # what the prompts say of an environment's tools

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return stop_token_ids_of(self.policy_path, self.tokenizer)


def stop_token_ids_of(policy_path: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the checkpoint's eos tokens, which end a response. Raises UserError when it names
    none.
    """
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(policy_path).eos_token_id
    except OSError:  # the checkpoint ships no generation_config.json
        ids = None
    ids = ids if ids is not None else tokenizer.eos_token_id
    if ids is None:
        raise UserError(
            f"{policy_path}: neither generation_config.json nor the tokenizer names an eos token: set "
            "eos_token_id"
        )
    return tuple(ids) if isinstance(ids, (list, tuple)) else (ids,)


def gather_inputs(config: RunConfig, report: Report) -> RunInputs:
    """Find or make the models and read the data. All errors in the data are raised here, before an
    actor starts.
    """
    from sppo_ray.data.mixing import open_prompts
    from sppo_ray.data.prompts import PromptEncoder, load_held_out
    from sppo_ray.evaluation.critic_card import check_warm_start
    from sppo_ray.models.exported_critic import check_value_head

    policy_path, critic_path = model_paths(config, report)
    tokenizer, critic_tokenizer = load_tokenizers(config, policy_path, critic_path)
    if config.has_critic:
        check_value_head(critic_path, required=False)
    observations = observation_encoder(
        config.environment, tokenizer, stop_token_ids_of(policy_path, tokenizer)
    )
    begun = try_environment(config.environment)
    if config.has_critic:
        check_warm_start(critic_path, config.data, critic_tokenizer.chat_template, begun.tools)
    encoder = PromptEncoder(
        tokenizer, critic_tokenizer, config.data, tools=begun.tools, reset=begun.reset
    )
    held_out = load_held_out(config.data, encoder, config.eval.prompts)
    # Disjoint from ALL held-out prompts, so that eval.prompts may change on resume.
    prompts = open_prompts(config.data, encoder, config.seed)
    first = prompts.cohort(0)[0]
    begin_episode(config.environment, first)
    if tokenizer.chat_template is None:
        report(
            f"the policy's tokenizer has no chat template: messages are joined as plain text; prompt "
            f"{first.id} is read as {first.text[:SHOWN_CHARACTERS]!r}"
        )
    try_rewards(config.reward, ScoreRequest.of(first, ""), first.id, config.rollout.max_response_tokens)
    return RunInputs(policy_path, critic_path, tokenizer, prompts, held_out, observations, begun.tools)


def load_tokenizers(
    config: RunConfig, policy_path: Path, critic_path: Path
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Return the tokenizers with which policy and critic read prompts. A token critic reads the
    policy's prompts, whatever its own chat template. Raises UserError.
    """
    from sppo_ray.models.tokenizers import load_tokenizer

    policy, critic = load_tokenizer(policy_path), load_tokenizer(critic_path)
    if config.spec.critic != "token":
        return policy, critic
    if critic.get_vocab() != policy.get_vocab():
        raise UserError(
            f"critic.model {config.critic.model}: the token-level critic of {config.algorithm.type} reads "
            "the policy's response tokens, and its vocabulary differs from that of "
            f"learner.model {config.learner.model}: use a critic of the same family"
        )
    return policy, policy


def reads_files(data: DataSettings) -> bool:
    """Return whether any rows come from files of the user's."""
    return any(source.type in ("jsonl", "parquet", "hf-disk") for source in (*data.train, *data.held_out))


def observation_encoder(
    settings: EnvironmentSettings | None,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: tuple[int, ...],
) -> ObservationEncoder | None:
    """Return how observations become tokens; None without an environment. Raises UserError when the
    chat template does not say it.
    """
    if settings is None:
        return None
    from sppo_ray.environments.observations import ObservationEncoder, observation_formats

    return ObservationEncoder(tokenizer, observation_formats(tokenizer, settings, stop_token_ids))


@dataclass(frozen=True, slots=True)
class EpisodeStart:
    """What an environment adds to prompts."""

    tools: ToolList | None = None  # what they say of its tools
    reset: Resets | None = None  # makes their first messages


def try_environment(settings: EnvironmentSettings | None) -> EpisodeStart:
    """Build the environment in a process of its own, and return what it adds to prompts. Raises
    UserError when it cannot be built.
    """
    if settings is None or settings.type == "guess-number":
        return EpisodeStart()
    from sppo_ray.environments.pool.process import EnvironmentProcess
    from sppo_ray.environments.resets import Resets

    async def started() -> EnvironmentProcess:
        process = await EnvironmentProcess.start(settings)
        await process.close()
        return process

    found = asyncio.run(started())
    is_told = settings.type == "tools" and settings.describe_tools
    return EpisodeStart(found.tools if is_told else None, Resets(settings) if found.resets else None)


def begin_episode(settings: EnvironmentSettings | None, prompt: Prompt) -> None:
    """Begin an episode of a custom environment with a prompt. Raises UserError when that fails, or
    when `reset` makes other messages than when the row was read.
    """
    if settings is None or settings.type != "custom":
        return
    from sppo_ray.environments.base import Row, StepRequest
    from sppo_ray.environments.pool.pool import EnvironmentPool
    from sppo_ray.environments.replies import begin_alike

    async def begun() -> StepResult:
        pool = EnvironmentPool(settings.model_copy(update={"processes": 1}))
        try:
            return await pool.step(StepRequest("first", Row.of(prompt), 1, ()))
        finally:
            await pool.close()

    result = asyncio.run(begun())
    error = result.error
    if result.messages and not begin_alike(result.messages, prompt.messages):
        error = "reset makes other messages when it is called again: let row and seed alone determine them"
    if error:
        raise UserError(
            f"environment.environment {settings.environment!r}: an episode of prompt {prompt.id} does not "
            f"begin: {error}"
        )


def episodes_of(
    config: RunConfig | EvaluationConfig,
    fleet: Generator,
    environment: EnvironmentClient,
    observations: ObservationEncoder | None,
    decode: Decode,
) -> Episodes:
    """Connect fleet and environment."""
    from sppo_ray.rollout.episodes import Episodes

    assert config.environment is not None and observations is not None
    limit = config.rollout.max_response_tokens
    return Episodes(fleet, environment, observations, decode, config.environment, max_response_tokens=limit)


def try_rewards_at_once(config: RunConfig) -> None:
    """Call the user's reward functions on the first row, where that is read quickly: without a
    tokenizer, before Ray starts. Raises UserError.
    """
    from sppo_ray.data.sources import first_example

    if not any(isinstance(leaf, UserReward) for _, leaf in config.reward.leaves):
        return
    row = first_example(config.data.train)
    if row is not None:
        prompt = "\n".join(message["content"] for message in row.messages)
        request = ScoreRequest("", row.ground_truth, row.source, prompt, row.extra, row.messages)
        try_rewards(config.reward, request, row.id, config.rollout.max_response_tokens)


ORDINARY = "I do not know."
"""A response that a policy may well write: no number, no JSON, no box."""
CHARACTERS_PER_TOKEN = 4  # about, of English text
LONGEST_TRIAL = 100_000  # characters


def try_rewards(settings: RewardSettings, row: ScoreRequest, name: str, max_tokens: int) -> None:
    """Call each reward function of the user's on the row called `name`, with responses of up to
    about `max_tokens` tokens. Raises UserError when one fails, or returns what is no reward.
    """
    for path, leaf in settings.leaves:
        if isinstance(leaf, UserReward) and ".routes." not in path:  # a route's may refuse another's rows
            asyncio.run(_try_reward(settings.model_copy(update={"function": leaf}), row, name, max_tokens))


async def _try_reward(settings: RewardSettings, row: ScoreRequest, name: str, max_tokens: int) -> None:
    """Score an ordinary sentence, a long text of such sentences, an empty response and the row's
    ground truth. A function may fail on one of them, but on the long text only where it fails on
    the sentence too; and on all but the ground truth where such responses may be left out.
    """
    from sppo_ray.rewards.pool.pool import VerifierPool

    length = min(CHARACTERS_PER_TOKEN * max_tokens, LONGEST_TRIAL)
    long = f"{ORDINARY} " * max(1, length // (len(ORDINARY) + 1))
    sentence, long_text = f"the response {ORDINARY!r}", f"a response of {len(long):,} characters"
    texts = {
        sentence: ORDINARY,
        long_text: long,
        "an empty one": "",
        "its ground truth as the response": row.ground_truth,
    }
    pool = VerifierPool(settings.model_copy(update={"processes": 1}))
    try:
        verdicts = await pool.score_all([replace(row, response=text) for text in texts.values()])
    finally:
        await pool.close()
    failed = {
        what: verdict.reason.removeprefix("error: ")
        for what, verdict in zip(texts, verdicts, strict=True)
        if verdict.reward is None
    }
    scores_some = verdicts[-1].reward is not None
    only_when_long = long_text in failed and sentence not in failed
    if sentence in failed:  # for the same reason, most likely
        failed.pop(long_text, None)
    if (len(failed) < 2 and not only_when_long) or (scores_some and settings.max_error_rate == 1.0):
        return
    remedy = "let it return a number for every text"
    if scores_some:
        remedy += ", or set reward.max_error_rate to 1 to leave such responses out"
    raise UserError(
        f"the reward function fails on prompt {name} with {', with '.join(failed)}: "
        f"{next(iter(failed.values()))}: {remedy}"
    )


def model_paths(config: RunConfig, report: Report) -> tuple[Path, Path]:
    """Return the starting checkpoints of policy and critic; without a critic both are the policy's.
    Raises UserError.
    """
    from sppo_ray.models.bundled import resolve_model
    from sppo_ray.models.exported_critic import critic_directory

    policy_path = resolve_model(config.learner.model, report)
    critic_path = (
        resolve_model(str(critic_directory(config.critic.model)), report)
        if config.has_critic
        else policy_path
    )
    return policy_path, critic_path


def pin_models(config: RunConfig, commits: Mapping[str, str]) -> RunConfig:
    """Return the config with the known commit in the name of each model of the hub."""
    roles = {"learner": config.learner, "critic": config.critic}
    pinned: dict[str, Any] = {
        role: settings.model_copy(update={"model": _pinned(settings.model, commits)})
        for role, settings in roles.items()
    }
    return config.model_copy(update=pinned | {"reward": pin_reward_models(config.reward, commits)})


def pin_reward_models(reward: RewardSettings, commits: Mapping[str, str]) -> RewardSettings:
    """Return the settings with the known commit in the name of each reward model of the hub."""

    def pin(tree: Any) -> Any:
        if isinstance(tree, list | tuple):
            return [pin(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if tree.get("type") == "model":
            return tree | {"model": _pinned(tree["model"], commits)}
        return {name: pin(value) for name, value in tree.items()}

    if not any(model.model in commits for model in reward.models):
        return reward
    return RewardSettings.model_validate(pin(reward.model_dump()))


def _pinned(model: str, commits: Mapping[str, str]) -> str:
    return f"{model.partition('@')[0]}@{commits[model]}" if model in commits else model


def commits_of(directories: Mapping[str, Path]) -> dict[str, str]:
    """Return the commits of the hub's models by their setting. `directories`: the checkpoints of
    models by their setting.
    """
    found = {name: commit_of(path) for name, path in directories.items() if hub_model(name) is not None}
    return {name: commit for name, commit in found.items() if commit is not None}


def check_reward_models(
    reward: RewardSettings,
    report: Report,
    environment: EnvironmentSettings | None = None,
    commits: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Path]:
    """Reach the judges, and find or make the reward models and check that they are such, and that
    they read the turns of `environment`. `commits`: of the hub's models, where they are known.
    Returns the checkpoints of the reward models by their setting. Raises UserError.
    """
    from sppo_ray.models.bundled import resolve_model
    from sppo_ray.rewards.build import judge_keys
    from sppo_ray.rewards.judge import require_judge

    keys = judge_keys(reward)
    for judge in reward.judges:
        require_judge(judge, keys.get(judge.key_variable or ""))
    scores_turns = environment is not None and environment.asks_reward_function
    names = {model.model for model in reward.models}
    found = {name: resolve_model(_pinned(name, commits), report) for name in sorted(names)}
    for name, directory in found.items():
        check_reward_model(directory, name)
        if scores_turns and "tool" in environment.roles:
            _require_tool_messages(directory, name)
    return found


def _require_tool_messages(directory: Path, name: str) -> None:
    """Raise UserError for a reward model whose chat template refuses or leaves out what tools
    say.
    """
    from jinja2 import TemplateError

    from sppo_ray.data.render_guard import bounded_rendering
    from sppo_ray.models.tokenizers import load_tokenizer

    texts = {"user": "a", "assistant": "b", "tool": "Zk9"}
    asked = [{"role": role, "content": texts[role]} for role in ("user", "assistant", "tool", "assistant")]
    try:
        with bounded_rendering(1):
            rendered = load_tokenizer(directory).apply_chat_template(asked, tokenize=False)
    except TemplateError as error:
        problem = f"refuses messages of role tool ({error})"
    else:
        if texts["tool"] in rendered:
            return
        problem = "leaves out messages of role tool"
    raise UserError(
        f"reward model {name}: its chat template {problem}, and of an episode it reads all turns: let the "
        "environment write its observations as the user (environment.format tagged, or environment.role "
        "user), or use another reward model"
    )


def decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """The texts of responses, without special tokens."""

    def decode(responses: Sequence[np.ndarray]) -> list[str]:
        # One array a call: `batch_decode` walks lists token by token, which takes as long again.
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]

    return decode
