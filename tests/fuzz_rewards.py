r"""Fuzzing the mathematical verifier through real verifier processes: `python -m tests.fuzz_rewards
--cases 5000`.

Answers come from a grammar of LaTeX, from the labelled pairs of the tests with characters and
pieces changed, and from pieces that have no order at all. What must hold: each gets 0, 1 or an
error that says so, within the deadline; an answer that is its truth, in whatever decoration, gets
1; the same answer never gets 0 in one process and 1 in another. Then wrong programs for the
verifier of code (`tests.fuzz_rewards_code`): none is paid, and each gets its 0. Then a quarter as
many answers to reasoning-gym that try to run (`tests.fuzz_reasoning_gym`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from sppo_ray.config import MathReward, RewardSettings
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.types import ScoreRequest, Verdict
from tests.fuzz_reasoning_gym import run as fuzz_reasoning_gym
from tests.fuzz_rewards_code import draw_programs, find_paid, score_programs

DEADLINE_S = 1.0
MARGIN_S = 3.0
PAIRS = Path(__file__).parent / "unit" / "rewards" / "math_pairs.jsonl"


@dataclass(frozen=True)
class Case:
    """A response, its ground truth, and the reward that it must get; None = whatever is decided."""

    response: str
    truth: str
    due: float | None


# --------------------------------------------------------------------------------------- strategies

_ATOMS = st.one_of(
    st.integers(-10_000, 10_000).map(str),
    st.decimals(-1000, 1000, places=3).map(str),
    st.sampled_from(
        [
            "x",
            "y",
            "n",
            "k",
            "i",
            "e",
            r"\pi",
            r"\infty",
            r"\theta",
            "x_1",
            r"\sqrt2",
            "0",
            "1",
            "a",
            "A",
            "BA",
            r"\vec b",
            "B^{-1}",
            "x^T",
            "z",
            "\\%",
            "½",
        ]
    ),
)


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, min_size=1, max_size=4)
    between = st.sampled_from(
        ["+", "-", r"\cdot ", r"\times ", "/", "^", "=", "<", r"\le ", r"\pm ", ":", " ", " or "]
    )
    functions = st.sampled_from(
        [r"\sin", r"\cos", r"\ln", r"\log_2", r"\tan", r"\sum_{k=1}^{9}", r"\int_0^1"]
    )
    units = st.sampled_from([r"\text{ cm}", "^\\circ", r"\%", r"\text{ or }", " apples", r"\text{ m/s}"])
    return st.one_of(
        st.tuples(inner, between, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
        st.tuples(inner, inner).map(lambda pair: f"{{{pair[0]}}}^{{{pair[1]}}}"),
        inner.map(lambda one: rf"\sqrt{{{one}}}"),
        inner.map(lambda one: rf"\left({one}\right)"),
        inner.map(lambda one: rf"\left|{one}\right|"),
        inner.map(lambda one: f"{one}!"),
        st.tuples(functions, inner).map(" ".join),
        several.map(", ".join),
        several.map(lambda many: r"\{" + ",".join(many) + r"\}"),
        st.tuples(st.sampled_from("(["), several.map(",".join), st.sampled_from(")]")).map("".join),
        several.map(lambda many: r"\begin{pmatrix}" + r"\\".join(many) + r"\end{pmatrix}"),
        st.tuples(inner, units).map("".join),
        st.tuples(inner, inner).map(lambda pair: rf"({pair[0]},{pair[1]})\cup[{pair[1]},\infty)"),
    )


LATEX = st.recursive(_ATOMS, _compound, max_leaves=12)
_TEX = r"\boxed{ \text{ \frac \sqrt \left( \right) \begin{pmatrix} \end{pmatrix} \{ \} \\ \% \text{and}"
_SIGNS = "{}()[]^_&$,.;:=<>!/|+-~#'３⅓💥² \n\x00\u200d\u202e\ud800"
_PIECES = st.sampled_from([*_TEX.split(), *_SIGNS, "34", "9^{9}", "nan", "__import__('os')", "e\u0301"])
JUMBLE = st.lists(_PIECES, min_size=1, max_size=40).map("".join)


@st.composite
def mutated(draw: st.DrawFn, texts: Sequence[str]) -> str:
    """A real answer after a few cuts, repetitions, swaps and insertions."""
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 8)))
        piece = draw(
            st.one_of(_PIECES, st.just(text[start:end] * draw(st.integers(0, 12))), st.sampled_from(texts))
        )
        text = text[:start] + piece + text[end:]
    return text


DECORATIONS = (
    "{}",
    " {} ",
    "${}$",
    r"\({}\)",
    r"\displaystyle {}",
    "{}.",
    r"\ {}",
    "{{{}}}",
    "\u200b{}",
    r"{}\,",
    r"\boxed{{{}}}",
)


def cases() -> st.SearchStrategy[Case]:
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    truths = sorted({row["truth"] for row in rows})
    plain = [truth for truth in truths if not set(truth) & set("${},.;:") and " " not in truth]
    answers = sorted({row["answer"] for row in rows} | set(truths))
    any_truth = st.one_of(st.sampled_from(truths), LATEX)
    hostile = st.one_of(LATEX, mutated(answers), JUMBLE)
    decorated = st.tuples(st.sampled_from(plain), st.sampled_from(DECORATIONS))
    return st.one_of(
        st.builds(lambda one, truth: Case(f"\\boxed{{{one}}}", truth, None), hostile, any_truth),
        st.builds(lambda one, truth: Case(one, truth, None), JUMBLE, any_truth),
        decorated.map(lambda both: Case(f"so \\boxed{{{both[1].format(both[0])}}}", both[0], 1.0)),
        st.builds(lambda one: Case(f"\\boxed{{{one}}}", one, 1.0), st.sampled_from(truths)),
    )


# ------------------------------------------------------------------------------------------ running


def draw_cases(number: int, *, seed: int) -> list[Case]:
    """So many cases, the same for the same seed."""
    drawn: list[Case] = []
    collect(drawn, number, seed)
    return drawn[:number]


def collect(drawn: list[Case], number: int, with_seed: int) -> None:
    @seed(with_seed)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def run(case: Case) -> None:
        drawn.append(case)

    run()


async def score_cases(drawn: Sequence[Case]) -> list[Verdict]:
    pool = VerifierPool(
        RewardSettings(function=MathReward(), processes=2, deadline_s=DEADLINE_S, memory_mib=1024)
    )
    try:
        await pool.ready()
        return list(
            await asyncio.gather(*(pool.score(ScoreRequest(c.response, c.truth, "", "", {})) for c in drawn))
        )
    finally:
        await pool.close()


def find_faults(drawn: Sequence[Case], verdicts: Sequence[Verdict]) -> list[str]:
    """What breaks a promise. An error is none where 1 is due: a loaded machine may miss the
    deadline; a 0 is.
    """
    return [
        f"{case}: {verdict}"
        for case, verdict in zip(drawn, verdicts, strict=True)
        if _is_fault(case, verdict)
    ]


def _is_fault(case: Case, verdict: Verdict) -> bool:
    counted = verdict.reason.startswith("error: ") if verdict.reward is None else verdict.reward in (0.0, 1.0)
    in_time = verdict.seconds < DEADLINE_S + MARGIN_S
    return not counted or not in_time or (case.due is not None and verdict.reward not in (case.due, None))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--programs", type=int, default=250, help="wrong programs for the verifier of code")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn = draw_cases(options.cases, seed=options.seed)
    verdicts = asyncio.run(score_cases(drawn))
    again = asyncio.run(score_cases(drawn[::5]))
    faults = find_faults(drawn, verdicts)
    for case, first, second in zip(drawn[::5], verdicts[::5], again, strict=True):
        if None not in (first.reward, second.reward) and first.reward != second.reward:
            faults.append(f"{case}: {first.reward} and then {second.reward}")
    rewarded = sum(verdict.reward == 1.0 for verdict in verdicts)
    errors = sum(verdict.is_error for verdict in verdicts)
    print(f"{len(drawn)} cases: {rewarded} rewarded, {errors} errors counted, {len(faults)} faults")
    programs = draw_programs(options.programs, seed=options.seed)
    scored = asyncio.run(score_programs(programs))
    paid = find_paid(programs, scored)
    print(f"{len(programs)} wrong programs: {len(paid)} paid or without a verdict")
    for fault in faults + paid:
        print(fault.encode("ascii", "backslashreplace").decode())
    return max(1 if faults or paid else 0, fuzz_reasoning_gym(options.cases // 4, options.seed))


if __name__ == "__main__":
    sys.exit(main())
