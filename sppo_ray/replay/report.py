"""Compare recorded and re-derived quantities, in the order in which they depend on each other.

starting weights, weights before --> log-probs, values --> shaped rewards, returns, advantages
    --> metrics --> weights after

A quantity is `equal` (every bit), `close` (within its tolerance), `differs`, or `unknown` (the run
did not record it). Engine and learner never agree to the last bit, so log-probs are `close` at
best. On CPUs, with the machine and threads of the run, everything else is equal. Elsewhere kernels
round differently; the tolerances limit the rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from sppo_ray.config import RunConfig
from sppo_ray.replay.records import RecordedStep, Start
from sppo_ray.replay.replay import Rederived
from sppo_ray.rollout.weight_sync import ProbeTolerance
from sppo_ray.rundir.jsonlines import finite_json
from sppo_ray.rundir.weights_log import WeightRecord
from sppo_ray.types import TrainingSample

Verdict = Literal["equal", "close", "differs", "unknown"]
LOGPROBS, BEFORE, AFTER = "log-probs", "weights before the step", "weights after the step"
SHOWN_METRICS = (
    "policy/loss",
    "policy/grad_norm",
    "policy/lr",
    "critic/loss",
    "critic/grad_norm",
    "critic/lr",
)


class Tolerance(NamedTuple):
    """|recorded - re-derived| <= absolute + relative * |recorded| is close."""

    absolute: float
    relative: float = 0.0

    def allowed(self, recorded: float) -> float:
        return self.absolute + self.relative * abs(recorded)


# float64 formulas of recorded numbers; another libm may round its last bit differently
PURE = Tolerance(1e-12, 1e-12)
# log-probs of the probe, after updates on both sides
PROBE = {"float32": Tolerance(1e-3), "bfloat16": Tolerance(0.3)}
VALUE = {"float32": Tolerance(1e-4, 1e-3), "bfloat16": Tolerance(0.05, 0.05)}  # likewise
# losses, norms and other metrics of an update
UPDATE = {"float32": Tolerance(1e-6, 1e-3), "bfloat16": Tolerance(1e-3, 0.05)}


class Pair(NamedTuple):
    """One pair of numbers and its place, e.g. "step-2/7/0, token 3", or of an episode "step-2/7/0,
    turn 2, token 3"; NaN = not finite, None = missing.
    """

    where: str
    recorded: float | None
    rederived: float | None


@dataclass(frozen=True, slots=True)
class Quantity:
    """One row of the report."""

    name: str
    verdict: Verdict
    count: int = 0  # numbers compared
    differing: int = 0  # of them
    where: str = ""  # the first that differs, else where the difference is largest
    recorded: float | str | None = None  # there
    rederived: float | str | None = None
    largest_difference: float | None = None  # of all; None if not a number
    allowed: float | None = None  # there


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a replay."""

    run: str
    step: int
    start: Start
    quantities: tuple[Quantity, ...]
    first_wrong_version: int | None  # the first version whose weights came out differently

    @property
    def matches(self) -> bool:
        return not any(quantity.verdict == "differs" for quantity in self.quantities)

    @property
    def is_exact(self) -> bool:
        """Whether every quantity that can be bit-identical is."""
        return (
            all(quantity.verdict == "equal" for quantity in self.quantities if quantity.name != LOGPROBS)
            and self.matches
        )

    def to_dict(self) -> dict[str, Any]:
        head = {"run": self.run, "step": self.step, "matches": self.matches, "bit_for_bit": self.is_exact}
        start = {"from": self.start.name, "step": self.start.state.step}
        rows = [asdict(quantity) for quantity in self.quantities]
        return finite_json(
            head | {"start": start, "first_wrong_version": self.first_wrong_version, "quantities": rows}
        )


def make_report(
    run: str,
    config: RunConfig,
    target: RecordedStep,
    start: Start,
    recorded: Mapping[int, WeightRecord],
    found: Rederived,
) -> Report:
    """Compare the run's records of the target step, and of the weights before it, with the replay's
    results.
    """
    first, last = start.state.policy_version, target.step
    probe = PROBE[config.learner.dtype]
    # Loading does not round: the starting weights are the run's bytes, or different ones.
    quantities = [_weights("starting weights", recorded.get(first), found.weights[first], Tolerance(0.0))]
    if first < last - 1:
        quantities.append(_weights(BEFORE, recorded.get(last - 1), found.weights[last - 1], probe))
    quantities += [_logprobs(config, target.samples, found), *_values(config, target.samples, found)]
    quantities += _estimates(target.samples, found.samples)
    quantities += _metrics(config, target.metrics, found.metrics)
    quantities.append(_weights(AFTER, recorded.get(last), found.weights[last], probe))
    compared = (version for version in sorted(found.weights) if version in recorded)
    wrong = (v for v in compared if _weights("", recorded[v], found.weights[v], probe).verdict == "differs")
    return Report(run, target.step, start, tuple(quantities), next(wrong, None))


def compare(name: str, pairs: Iterable[Pair], tolerance: Tolerance) -> Quantity:
    """Compare one quantity; `unknown` without numbers."""
    rows = [(pair, *_judged(pair, tolerance)) for pair in pairs]
    if not rows:
        return Quantity(name, "unknown")
    wrong = [row for row in rows if row[1] == "differs"]
    pair, verdict, _ = wrong[0] if wrong else max(rows, key=lambda row: row[2])
    if not wrong and any(row[1] == "close" for row in rows):
        verdict = "close"
    return Quantity(
        name,
        verdict,
        count=len(rows),
        differing=len(wrong),
        where=pair.where,
        recorded=pair.recorded,
        rederived=pair.rederived,
        largest_difference=max(row[2] for row in rows),
        allowed=tolerance.allowed(pair.recorded) if pair.recorded is not None else None,
    )


def _judged(pair: Pair, tolerance: Tolerance) -> tuple[Verdict, float]:
    """Return the verdict on one number and its difference."""
    recorded, rederived = pair.recorded, pair.rederived
    if recorded is None or rederived is None:
        return ("equal", 0.0) if recorded is rederived else ("differs", math.inf)
    if recorded == rederived or (math.isnan(recorded) and math.isnan(rederived)):
        return "equal", 0.0
    if not (math.isfinite(recorded) and math.isfinite(rederived)):
        return "differs", math.inf
    difference = abs(recorded - rederived)
    return ("close" if difference <= tolerance.allowed(recorded) else "differs"), difference


def _weights(name: str, recorded: WeightRecord | None, found: WeightRecord, tolerance: Tolerance) -> Quantity:
    """Compare weights by their digest; if it differs and the tolerance allows rounding, by the
    log-probs of the probe.
    """
    if recorded is None:
        return Quantity(name, "unknown", rederived=found.digest, where=f"version {found.version}")
    verdict: Verdict = "equal" if recorded.digest == found.digest else "differs"
    ours, theirs = found.probe_logprobs, recorded.probe_logprobs
    probe = compare(
        name,
        [Pair(str(i), old, new) for i, (old, new) in enumerate(zip(theirs, ours, strict=True))],
        tolerance,
    )
    if verdict == "differs" and tolerance.absolute > 0 and probe.verdict != "differs":
        verdict = "close"
    return Quantity(
        name,
        verdict,
        count=1,
        differing=int(verdict == "differs"),
        where=f"version {found.version}, digest; difference of its probe",
        recorded=recorded.digest,
        rederived=found.digest,
        largest_difference=probe.largest_difference,
        allowed=probe.allowed,
    )


def _logprobs(config: RunConfig, samples: Sequence[TrainingSample], found: Rederived) -> Quantity:
    bound = ProbeTolerance.for_dtype(config.rollout.dtype).largest / min(1.0, config.rollout.temperature)
    return compare(LOGPROBS, _logprob_pairs(samples, found), Tolerance(bound))


def _logprob_pairs(samples: Sequence[TrainingSample], found: Rederived) -> Iterator[Pair]:
    """Pair each token with the nearest policy that may have sampled it, because the place of a sync
    within a response is not recorded.
    """
    for index, sample in enumerate(samples):
        trajectory = sample.scored.trajectory
        by_version = [rows[index].tolist() for rows in found.logprobs.values() if len(rows[index])]
        engines = zip(_places(sample), trajectory.response_logprobs.tolist(), strict=False)
        for token, (place, recorded) in enumerate(engines):
            candidates = [row[token] for row in by_version]
            nearest = min(candidates, key=lambda own, engine=recorded: abs(own - engine), default=None)
            yield Pair(place, recorded, nearest)


def _values(config: RunConfig, samples: Sequence[TrainingSample], found: Rederived) -> list[Quantity]:
    tolerance = VALUE[config.critic.dtype]
    if config.spec.critic == "token":
        return [
            compare(
                "token values",
                _token_pairs(samples, [s.token_values for s in samples], found.token_values),
                tolerance,
            )
        ]
    if config.spec.critic == "none":
        return []
    scored = [
        (str(s.scored.trajectory.request_id), s.scored.value, found.values.get(s.scored.group))
        for s in samples
    ]
    logits = (Pair(name, old and old.value_logit, new and new.value_logit) for name, old, new in scored)
    values = (Pair(name, old and old.value, new and new.value) for name, old, new in scored)
    return [compare("value logits", logits, tolerance), compare("values", values, tolerance)]


def _estimates(recorded: Sequence[TrainingSample], found: Sequence[TrainingSample]) -> list[Quantity]:
    """Compare the quantities computed from recorded rewards and values."""
    pairs = list(zip(recorded, found, strict=True))
    shaped = (
        Pair(str(old.scored.trajectory.request_id), old.shaped_reward, new.shaped_reward)
        for old, new in pairs
    )
    rows = [compare("shaped rewards", shaped, PURE)]
    if any(len(sample.returns) for sample in found):
        rows.append(
            compare(
                "returns",
                _token_pairs(recorded, [s.returns for s in recorded], [s.returns for s in found]),
                PURE,
            )
        )
    if any(isinstance(sample.advantage, np.ndarray) for sample in found):
        old, new = [s.token_advantages for s in recorded], [s.token_advantages for s in found]
        advantages = _token_pairs(recorded, old, new)
    else:
        advantages = (
            Pair(str(o.scored.trajectory.request_id), o.mean_advantage, n.mean_advantage)
            for o, n in pairs
        )
    return [*rows, compare("advantages", advantages, PURE)]


def _token_pairs(
    samples: Sequence[TrainingSample], recorded: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> Iterator[Pair]:
    for sample, old, new in zip(samples, recorded, found, strict=True):
        numbers = itertools.zip_longest(old.tolist(), new.tolist())
        for place, (before, after) in zip(_places(sample), numbers, strict=False):
            yield Pair(place, before, after)


def _places(sample: TrainingSample) -> Iterator[str]:
    """Name the action tokens, of an episode by turn (from 1) and place in its action. Endless, for
    records with too many numbers.
    """
    trajectory = sample.scored.trajectory
    if trajectory.turns is not None:
        for turn, length in enumerate(trajectory.turns.lengths[:, 0].tolist(), start=1):
            for token in range(length):
                yield f"{trajectory.request_id}, turn {turn}, token {token}"
    for token in itertools.count(trajectory.num_actions if trajectory.turns is not None else 0):
        yield f"{trajectory.request_id}, token {token}"


def _metrics(config: RunConfig, recorded: Mapping[str, Any], found: Mapping[str, float]) -> list[Quantity]:
    """Compare losses, gradient norms and learning rates in separate rows, other metrics in one."""
    pairs = {name: _metric(name, recorded, found) for name in found if not name.endswith("/seconds")}
    dtypes = {"policy": config.learner.dtype} | ({"critic": config.critic.dtype} if config.has_critic else {})
    tolerances = {
        f"{role}/{name}": UPDATE[dtype] for role, dtype in dtypes.items() for name in ("loss", "grad_norm")
    }
    tolerances |= {f"{role}/lr": PURE for role in dtypes}
    rows = [compare(name, [pairs.pop(name)], tolerances[name]) for name in SHOWN_METRICS if name in pairs]
    loosest = max(UPDATE[dtype] for dtype in dtypes.values())
    return rows + ([compare("other metrics", pairs.values(), loosest)] if pairs else [])


def _metric(name: str, recorded: Mapping[str, Any], found: Mapping[str, float]) -> Pair:
    """Return a metric; a non-finite one is None in metrics.jsonl and NaN here, a missing one is
    None.
    """
    old = recorded.get(name)
    if name in recorded and old is None:
        old = math.nan
    new = found.get(name)
    return Pair(name, old, math.nan if new is not None and not math.isfinite(new) else new)
