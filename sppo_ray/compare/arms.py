"""The arms of a comparison: named sets of overrides on one recipe, made from the recipe's own batch
sizes.

With S the samples of one of the recipe's steps, M its minibatch size and N = 8 samples a group:

    arm                  prompts   samples a prompt   minibatch   generated a step   optimizer steps
                                                                  a step
    sppo ppo sao spo
    reinforce(-pp)       S         1                  M           S                  S / M
    grpo rloo            S / 8     8                  M           S                  S / M
    grpo-equal-prompts   S         8                  8 M         8 S                S / M
    remax                S / 2     1 (+ 1 greedy)     M / 2       S                  S / M

A warm-up of the learning rate, which settings count in optimizer steps, spans as many generated
samples for every arm. All other settings are the recipe's, the same for all arms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sppo_ray.algorithms.base import AlgorithmSettings
from sppo_ray.config import RunConfig
from sppo_ray.errors import UserError

GROUP = 8  # samples a prompt of the group methods, as in the paper
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

SHARED: Mapping[str, str] = {
    "seed": "it is what --seeds varies",
    "loop.budget_s": "give --budget",
    "loop.steps": "runs end at --budget",
    "eval": "every arm is evaluated alike; give it for all arms",
    "data.train": "every arm draws from the same prompts; give it for all arms",
    "data.held_out": "every arm is evaluated on the same prompts; give it for all arms",
    "learner.model": "every arm starts from the same weights; give it for all arms",
    "rollout": "every arm has the same engines; give it for all arms",
    "reward": "every arm has the same verifier; give it for all arms",
    "environment": "every arm has the same environment; give it for all arms",
}
"""Settings that an arm may not change, and the remedy."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison."""

    name: str  # also the name of its run directories
    # "section.key=value" on the recipe: the only difference between arms
    overrides: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """An arm's batch sizes, in samples."""

    prompts: int
    samples: int
    minibatch: int


def make_arms(names: Sequence[str], base: RunConfig) -> list[Arm]:
    """Build arms from names, or from definitions `NAME:[BUILT-IN,]section.key=value,...`.

    `base` is the recipe with the overrides that all arms share. Raises UserError for an unknown or
    repeated name, a setting that an arm may not change, or batch sizes that do not divide.
    """
    arms = [_defined(name, base) if ":" in name else _built_in(name, base) for name in names]
    if not arms:
        raise UserError("a comparison needs at least one arm, e.g. --arms sppo,grpo")
    repeated = sorted({arm.name for arm in arms if sum(other.name == arm.name for other in arms) > 1})
    if repeated:
        raise UserError(
            f"arm {repeated[0]}: given twice; give the second a name of its own, --arm NAME:{repeated[0]},..."
        )
    return arms


# -------------------------------------------------------------------------------- the built-in ones


def _single(base: RunConfig, name: str) -> Shape:
    return Shape(base.data.samples_per_step, 1, base.data.minibatch_size)


def _groups(base: RunConfig, name: str) -> Shape:
    samples, minibatch = base.data.samples_per_step, base.data.minibatch_size
    _require_multiple(
        name, "the samples of a step (data.prompts_per_step x data.samples_per_prompt)", samples, GROUP
    )
    _require_multiple(name, "data.minibatch_size", minibatch, GROUP)
    return Shape(samples // GROUP, GROUP, minibatch)


def _groups_equal_prompts(base: RunConfig, name: str) -> Shape:
    return Shape(base.data.samples_per_step, GROUP, base.data.minibatch_size * GROUP)


def _halves(base: RunConfig, name: str) -> Shape:
    samples, minibatch = base.data.samples_per_step, base.data.minibatch_size
    _require_multiple(
        name, "the samples of a step (data.prompts_per_step x data.samples_per_prompt)", samples, 2
    )
    _require_multiple(name, "data.minibatch_size", minibatch, 2)
    return Shape(samples // 2, 1, minibatch // 2)


def _require_multiple(name: str, what: str, number: int, of: int) -> None:
    if number % of:
        fits = " or ".join(str(near) for near in (number // of * of, (number // of + 1) * of) if near)
        raise UserError(
            f"arm {name}: {what} is {number} and has to be a multiple of {of}: make it {fits}, for all arms"
        )


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    algorithm: str
    shape: Callable[[RunConfig, str], Shape]
    settings: tuple[str, ...] = ()
    note: str = ""


BUILT_IN: Mapping[str, _BuiltIn] = {
    "sppo": _BuiltIn("sppo", _single, note="one sample a prompt, critic on the prompt"),
    "grpo": _BuiltIn("grpo", _groups, note=f"{GROUP} samples a prompt, as many samples a step as the others"),
    "grpo-equal-prompts": _BuiltIn(
        "grpo",
        _groups_equal_prompts,
        note=f"{GROUP} samples a prompt and as many prompts a step as the others, so {GROUP} times the "
        "samples; the minibatch "
        f"is {GROUP} times larger, so the updates a step are equal; the learning rate warms up over as many "
        "samples",
    ),
    "rloo": _BuiltIn("rloo", _groups, note=f"{GROUP} samples a prompt, as many samples a step as the others"),
    "ppo": _BuiltIn("ppo", _single, ("algorithm.lam=1.0",), note="critic on prompt and response, lambda 1"),
    "ppo-lam95": _BuiltIn(
        "ppo", _single, ("algorithm.lam=0.95",), note="critic on prompt and response, lambda 0.95"
    ),
    "ppo-bce": _BuiltIn(
        "ppo",
        _single,
        ("algorithm.lam=1.0", "algorithm.critic_loss=bce"),
        note="critic on prompt and response, lambda 1, trained by binary cross-entropy",
    ),
    "sao": _BuiltIn(
        "sao",
        _single,
        ("critic.updates_per_minibatch=2",),
        note="critic on prompt and response, length-adaptive lambda, two-sided mask, two critic updates each",
    ),
    "spo": _BuiltIn("spo", _single, note="one sample a prompt, the prompt's past rewards as baseline"),
    "remax": _BuiltIn(
        "remax",
        _halves,
        note="half the prompts a step: each has a sampled and a greedy response, and the two together make "
        "the others' number "
        "of responses; the minibatch is halved too, so the updates a step are equal",
    ),
    "reinforce": _BuiltIn(
        "reinforce", _single, note="one sample a prompt, the batch's mean reward as baseline"
    ),
    "reinforce-pp": _BuiltIn(
        "reinforce++", _single, note="one sample a prompt, rewards scaled over the batch"
    ),
}
"""The built-in arms."""


def _built_in(name: str, base: RunConfig) -> Arm:
    if name not in BUILT_IN:
        raise UserError(
            f"unknown arm {name!r}: there are {', '.join(BUILT_IN)}; define others as --arm "
            "NAME:section.key=value,..."
        )
    kind = BUILT_IN[name]
    shape = kind.shape(base, name)
    sizes = {
        "prompts_per_step": shape.prompts,
        "samples_per_prompt": shape.samples,
        "minibatch_size": shape.minibatch,
    }
    changed = [f"data.{key}={size}" for key, size in sizes.items() if getattr(base.data, key) != size]
    overrides = [
        _algorithm(kind.algorithm, base),
        *kind.settings,
        *changed,
        *_same_warmup(shape, base),
        *_room_for_token_critic(kind.algorithm, base),
    ]
    return Arm(name, tuple(overrides), kind.note)


def _algorithm(name: str, base: RunConfig) -> str:
    """Return the override that chooses an algorithm, without settings that only the recipe's
    algorithm has.
    """
    given = base.algorithm.model_dump(mode="json", exclude_unset=True, exclude={"type"})
    shared = {key: value for key, value in given.items() if key in AlgorithmSettings.model_fields}
    if name == base.algorithm.type or given == shared:
        return f"algorithm.type={name}"
    return f"algorithm={{type: {name}{''.join(f', {key}: {_yaml(value)}' for key, value in shared.items())}}}"


def _yaml(value: object) -> str:
    import yaml

    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    )


def _same_warmup(shape: Shape, base: RunConfig) -> list[str]:
    """Scale the warm-up: an arm with larger steps makes fewer of them, and would spend more of its
    budget at a low learning rate.
    """
    warmup = base.learner.optimizer.lr_warmup_steps
    times = shape.prompts * shape.samples // base.data.samples_per_step
    return [f"learner.optimizer.lr_warmup_steps={max(1, warmup // times)}"] if warmup and times > 1 else []


def _room_for_token_critic(algorithm: str, base: RunConfig) -> list[str]:
    """Enlarge micro-batches for a token critic; the recipe's may only fit a prompt critic."""
    if algorithm not in ("ppo", "sao") or base.critic.max_tokens_per_microbatch >= base.context_tokens:
        return []
    return [f"critic.max_tokens_per_microbatch={base.learner.max_tokens_per_microbatch}"]


# ----------------------------------------------------------------------------------- the user's own


def _defined(definition: str, base: RunConfig) -> Arm:
    name, _, text = definition.partition(":")
    if not NAME.fullmatch(name):
        raise UserError(
            f"arm {definition!r}: its name {name!r} has to be letters, digits, '.', '_' or '-', as it names "
            "directories"
        )
    parts = _split(text)
    kin = _built_in(parts.pop(0), base) if parts and "=" not in parts[0] else None
    for part in parts:
        if "=" not in part:
            raise UserError(
                f"arm {name}: {part!r} is not an override: write section.key=value, after the name of at "
                "most one built-in arm"
            )
        require_own(name, part)
    if not parts and kin is None:
        raise UserError(f"arm {name}: names no settings: write --arm {name}:section.key=value,...")
    return Arm(name, (*(kin.overrides if kin else ()), *parts), kin.note if kin and not parts else "")


def require_own(name: str, override: str) -> None:
    """Raise UserError when an override changes a setting that all arms must share."""
    key = override.removeprefix("--").partition("=")[0]
    for shared, remedy in SHARED.items():
        if key == shared or key.startswith(f"{shared}."):
            raise UserError(f"arm {name}: {key} cannot differ between arms: {remedy}")
        if shared.startswith(f"{key}."):
            raise UserError(
                f"arm {name}: {key} as a whole would change {shared}, which cannot differ between arms: name "
                "single settings"
            )


def _split(text: str) -> list[str]:
    """Split at commas outside brackets: "a=[1,2],b=3" is two parts."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
