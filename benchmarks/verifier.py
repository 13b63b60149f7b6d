r"""Does the verifier give 1 to right answers and 0 to wrong ones, on real answer sets and on labelled pairs?

    python -m benchmarks.verifier --dapo FILE.parquet --math500 FILE.parquet

Every ground truth is boxed as its own response (must score 1) and scored against wrong ones (must score 0): itself
plus one where it is an integer, and the nearest later rows' answers with another text. The labelled pairs ship with
the tests and are scored by plain Math-Verify too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from benchmarks.report import print_table, write_result
from sppo_ray.config import RewardSettings
from sppo_ray.rewards.pool import VerifierPool
from sppo_ray.types import ScoreRequest, Verdict

PAIRS = Path(__file__).parent.parent / "tests" / "unit" / "test_rewards_pairs.jsonl"
OTHER_ROWS = 3
SAME_BY_REVIEW = frozenset({("5", "x=5")})
"""(truth, answer) of different rows that say the same, found by this benchmark and read by a person: no wrong answers."""


@dataclass(frozen=True)
class Case:
    """One answer against one ground truth, and the reward that is due."""

    kind: str
    truth: str
    answer: str
    due: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dapo", help="DAPO-Math-17k parquet file")
    parser.add_argument("--math500", help="MATH-500 parquet file")
    options = parser.parse_args()
    sets = {"labelled pairs": labelled_pairs()}
    for name, path in (("dapo-math-17k", options.dapo), ("math-500", options.math500)):
        if path:
            sets[name] = answer_cases(ground_truths(path))
    rows, exceptions = [], []
    for name, cases in sets.items():
        verdicts, seconds = asyncio.run(score(cases))
        rows += summarise(name, "sppo-ray", cases, verdicts, seconds)
        exceptions += find_exceptions(name, cases, verdicts)
    pairs = sets["labelled pairs"]
    verdicts, seconds = math_verify_alone(pairs)
    rows += summarise("labelled pairs", "math-verify alone", pairs, verdicts, seconds)
    print_table(rows)
    for exception in exceptions:
        print(json.dumps(exception, ensure_ascii=False))
    print(write_result("verifier", rows, targets(rows), {"exceptions": exceptions}))


def ground_truths(path: str) -> list[str]:
    column = parquet.read_table(path, columns=["reward_model"]).column("reward_model")
    return [model["ground_truth"] for model in column.to_pylist()]


def labelled_pairs() -> list[Case]:
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return [Case("equivalent" if r["same"] else "different", r["truth"], r["answer"], float(r["same"])) for r in rows]


def answer_cases(truths: Sequence[str]) -> list[Case]:
    cases = [Case("own answer", truth, truth, 1.0) for truth in truths]
    cases += [Case("plus one", truth, str(int(truth) + 1), 0.0) for truth in truths if truth.lstrip("-").isdecimal()]
    for row, truth in enumerate(truths):
        later = (truths[(row + step) % len(truths)] for step in range(1, len(truths)))
        different = (answer for answer in later if answer.strip() != truth.strip() and (truth, answer) not in SAME_BY_REVIEW)
        cases += [Case("another row's", truth, next(different), 0.0) for _ in range(OTHER_ROWS)]
    return cases


async def score(cases: Sequence[Case]) -> tuple[list[Verdict], float]:
    """Verdicts in order, and the wall-clock seconds of it, start of the processes left out."""
    pool = VerifierPool(RewardSettings(processes=2))
    await pool.ready()
    started = time.perf_counter()
    try:
        requests = (ScoreRequest(f"The answer is \\boxed{{{c.answer}}}.", c.truth, c.kind, "", {}) for c in cases)
        verdicts = await asyncio.gather(*(pool.score(request) for request in requests))
    finally:
        await pool.close()
    return list(verdicts), time.perf_counter() - started


def math_verify_alone(cases: Sequence[Case]) -> tuple[list[Verdict], float]:
    """Math-Verify as its documentation uses it, in this process's main thread, where its own timeout works."""
    from math_verify import parse, verify

    started, verdicts = time.perf_counter(), []
    for case in cases:
        equal = verify(parse(f"${case.truth}$"), parse(f"The answer is $\\boxed{{{case.answer}}}$."))
        verdicts.append(Verdict(float(equal), "", 0.0))
    return verdicts, time.perf_counter() - started


def summarise(
    name: str, verifier: str, cases: Sequence[Case], verdicts: Sequence[Verdict], seconds: float
) -> list[dict[str, Any]]:
    """A row for each kind of case."""
    rows = []
    for kind, count in Counter(case.kind for case in cases).items():
        mine = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if case.kind == kind]
        rows.append(
            {
                "set": name,
                "verifier": verifier,
                "cases": kind,
                "due": mine[0][0].due,
                "number": count,
                "as_due": sum(verdict.reward == case.due for case, verdict in mine),
                "errors": sum(verdict.is_error for _, verdict in mine),
                "rate": sum(verdict.reward == case.due for case, verdict in mine) / count,
                "set_samples_per_s": len(cases) / seconds,
            }
        )
    return rows


def find_exceptions(name: str, cases: Sequence[Case], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [
        {"set": name, "cases": case.kind, "truth": case.truth, "answer": case.answer, "due": case.due,
         "reward": verdict.reward, "reason": verdict.reason}
        for case, verdict in zip(cases, verdicts, strict=True)
        if verdict.reward != case.due
    ]  # fmt: skip


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every right answer scores 1 and every wrong one 0, on the sets that were scored by this project's verifier."""
    return [
        {
            "what": f"share that scores {row['due']:g}: {row['set']}, {row['cases']}",
            "target": 1.0,
            "figure": row["rate"],
            "met": row["rate"] == 1.0,
        }
        for row in rows
        if row["verifier"] == "sppo-ray"
    ]


if __name__ == "__main__":
    main()
