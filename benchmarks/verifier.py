r"""Does the verifier give 1 to right answers and 0 to wrong ones, on labelled pairs and on real
answer sets?

    python -m benchmarks.verifier [--show] [--dapo FILE.parquet] [--math500 FILE.parquet]

The labelled pairs are scored by this project's verifier and by Math-Verify alone, category by
category:

- `benchmarks/data/verifier_pairs.jsonl`, labelled from mathematics before any verifier saw them.
  Two halves, by a hash of the
  pair: on one, what was wrong may be read (`--show`) and mended; the other, held out, gives figures
  only.
- `benchmarks/data/verifier_kinds.jsonl`, whole responses of the kinds that broke verifiers in about
  20 public reports; written
  and labelled by somebody who had not seen this one. Its first run had 922 of 948 as labelled and 4
  wrong answers rewarded.
- `tests/unit/rewards/math_pairs.jsonl`, written beside the verifier's corrections: all of it must
  be right.

A pair is the same when a person who grades with the truth as the reference would accept the answer:
the same number, set or object in any form. A unit may be left out, not exchanged. An approximation
is no exact value. Order matters in tuples and intervals, not in sets and lists. Text ignores case
and style.

Of a parquet file every ground truth is boxed as its own response (must score 1) and scored against
wrong ones (must score 0): itself plus one where it is an integer, and the nearest later rows'
answers with another text.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from benchmarks.report import RESULTS, print_table, write_result
from sppo_ray.config import RewardSettings
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.types import ScoreRequest, Verdict

PAIRS = Path(__file__).parent.parent / "tests" / "unit" / "rewards" / "math_pairs.jsonl"
KINDS = Path(__file__).parent / "data" / "verifier_kinds.jsonl"
CATEGORIES = Path(__file__).parent / "data" / "verifier_pairs.jsonl"
TABLE = RESULTS / "verifier.md"
OTHER_ROWS = 3
SAME_BY_REVIEW = frozenset({("5", "x=5")})
"""(truth, answer) of different rows that say the same, found by this benchmark and read by a
person: no wrong answers.
"""


NOTE = """\
Open and held out: 500 pairs that were labelled before any verifier saw them, in two halves; only the wrong ones of the open
half were read. Kinds of public reports: 948 responses of the kinds that broke verifiers of other systems, labelled by somebody
who had not seen this one; the first run had 922 of them as labelled and 4 wrong answers rewarded, then what was wrong was
mended by kind. `2^10` for `2^{10}` is the wrong one that is left: TeX reads 2¹0, most people mean 2¹⁰."""  # noqa: E501


@dataclass(frozen=True)
class Case:
    """One answer against one ground truth, and the reward that is due."""

    kind: str
    truth: str
    answer: str
    due: float
    prompt: str = ""
    whole: str = ""  # the response, where it is more than the answer in a box

    @property
    def response(self) -> str:
        return self.whole or f"The answer is \\boxed{{{self.answer}}}."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dapo", help="DAPO-Math-17k parquet file")
    parser.add_argument("--math500", help="MATH-500 parquet file")
    parser.add_argument(
        "--show", action="store_true", help="print what went wrong, the held-out half left out"
    )
    options = parser.parse_args()
    by_category = [row for half in (False, True) for row in category_rows(half, show=options.show)]
    by_category += kind_rows(show=options.show)
    sets = {"beside the fixes": labelled_pairs()}
    for name, path in (("dapo-math-17k", options.dapo), ("math-500", options.math500)):
        if path:
            sets[name] = answer_cases(ground_truths(path))
    rows, exceptions = [], []
    for name, cases in sets.items():
        verdicts, seconds = asyncio.run(score(cases))
        rows += summarise(name, "sppo-ray", cases, verdicts, seconds)
        exceptions += find_exceptions(name, cases, verdicts)
    pairs = sets["beside the fixes"]
    verdicts, seconds = math_verify_alone(pairs)
    rows += summarise("beside the fixes", "math-verify alone", pairs, verdicts, seconds)
    print_table(by_category)
    print_table(rows)
    for exception in exceptions:
        print(json.dumps(exception, ensure_ascii=False))
    goals = targets(rows) + category_targets(by_category)
    print(write_result("verifier", rows, goals, {"categories": by_category, "exceptions": exceptions}))
    TABLE.write_text(markdown(by_category), encoding="utf-8")


# --------------------------------------------------------------------------------------- categories


def is_held_out(truth: str, answer: str) -> bool:
    return hashlib.sha256(f"{truth}\t{answer}".encode()).digest()[0] % 2 == 1


def category_rows(held_out: bool, *, show: bool) -> list[dict[str, Any]]:
    """A row for each category of one half, and one for all: precision and recall of both
    verifiers.
    """
    pairs = [json.loads(line) for line in CATEGORIES.read_text(encoding="utf-8").splitlines()]
    cases = [
        Case(pair["category"], pair["truth"], pair["answer"], float(pair["same"]))
        for pair in pairs
        if is_held_out(pair["truth"], pair["answer"]) == held_out
    ]
    return _rows("held out" if held_out else "open", cases, show=show and not held_out)


def kind_rows(*, show: bool) -> list[dict[str, Any]]:
    """A row for each kind of public report, and one for all."""
    rows = [json.loads(line) for line in KINDS.read_text(encoding="utf-8").splitlines()]
    cases = [
        Case(row["kind"], row["truth"], "", float(row["same"]), row.get("prompt", ""), row["response"])
        for row in rows
    ]
    return _rows("kinds of public reports", cases, show=show)


def _rows(half: str, cases: Sequence[Case], *, show: bool) -> list[dict[str, Any]]:
    ours, _ = asyncio.run(score(cases))
    theirs, _ = math_verify_alone(cases)
    if show:
        for exception in find_exceptions("", cases, ours):
            print(json.dumps(exception, ensure_ascii=False))
    return [
        {"half": half, "category": category}
        | _figures("", [(c, v) for c, v in zip(cases, ours, strict=True) if category in ("all", c.kind)])
        | _figures(
            "math_verify_",
            [(c, v) for c, v in zip(cases, theirs, strict=True) if category in ("all", c.kind)],
        )
        for category in [*dict.fromkeys(case.kind for case in cases), "all"]
    ]


def _figures(prefix: str, scored: Sequence[tuple[Case, Verdict]]) -> dict[str, Any]:
    """Precision: of the answers that got 1, how many are right. Recall: of the right ones, how many
    got 1. None = of none.
    """
    right = [verdict.reward == 1.0 for case, verdict in scored if case.due == 1.0]
    rewarded = [case.due == 1.0 for case, verdict in scored if verdict.reward == 1.0]
    return {
        **({"same": len(right), "different": len(scored) - len(right)} if not prefix else {}),
        f"{prefix}precision": sum(rewarded) / len(rewarded) if rewarded else None,
        f"{prefix}recall": sum(right) / len(right) if right else None,
        f"{prefix}errors": sum(verdict.is_error for _, verdict in scored),
    }


def category_targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neither figure below Math-Verify's, over all categories of a half."""
    return [
        {
            "what": f"{figure} on the labelled categories, {row['half']}; the target is Math-Verify's alone",
            "target": row[f"math_verify_{figure}"],
            "figure": row[figure],
            "met": row[figure] >= row[f"math_verify_{figure}"],
        }
        for row in rows
        if row["category"] == "all"
        for figure in ("precision", "recall")
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The figures of both halves as tables."""
    lines = ["# The mathematical verifier, category by category", ""]
    lines += [
        "Written by `python -m benchmarks.verifier`; its docstring says what counts as the same. Errors: no "
        "verdict.",
        "",
        NOTE,
        "",
    ]
    for half in dict.fromkeys(row["half"] for row in rows):
        lines += [
            f"## {half.capitalize()}",
            "",
            "| category | same | different | precision | recall | errors |",
        ]
        lines[-1] += " Math-Verify: precision | recall | errors |"
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        keys = ["category", "same", "different", "precision", "recall", "errors"]
        keys += ["math_verify_precision", "math_verify_recall", "math_verify_errors"]
        lines += [
            "| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in rows if row["half"] == half
        ]
        lines += [""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------- real answers


def ground_truths(path: str) -> list[str]:
    column = parquet.read_table(path, columns=["reward_model"]).column("reward_model")
    return [model["ground_truth"] for model in column.to_pylist()]


def labelled_pairs() -> list[Case]:
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return [
        Case(
            "equivalent" if r["same"] else "different",
            r["truth"],
            r["answer"],
            float(r["same"]),
            r.get("prompt", ""),
        )
        for r in rows
    ]


def answer_cases(truths: Sequence[str]) -> list[Case]:
    cases = [Case("own answer", truth, truth, 1.0) for truth in truths]
    cases += [
        Case("plus one", truth, str(int(truth) + 1), 0.0) for truth in truths if truth.lstrip("-").isdecimal()
    ]
    for row, truth in enumerate(truths):
        later = (truths[(row + step) % len(truths)] for step in range(1, len(truths)))
        different = (
            answer
            for answer in later
            if answer.strip() != truth.strip() and (truth, answer) not in SAME_BY_REVIEW
        )
        cases += [Case("another row's", truth, next(different), 0.0) for _ in range(OTHER_ROWS)]
    return cases


async def score(cases: Sequence[Case]) -> tuple[list[Verdict], float]:
    """Verdicts in order, and the wall-clock seconds of it, start of the processes left out."""
    pool = VerifierPool(RewardSettings(processes=2))
    await pool.ready()
    started = time.perf_counter()
    try:
        requests = (ScoreRequest(c.response, c.truth, c.kind, c.prompt, {}) for c in cases)
        verdicts = await asyncio.gather(*(pool.score(request) for request in requests))
    finally:
        await pool.close()
    return list(verdicts), time.perf_counter() - started


def math_verify_alone(cases: Sequence[Case]) -> tuple[list[Verdict], float]:
    """Math-Verify as its documentation uses it, in this process's main thread, where its own
    timeout works.
    """
    from math_verify import parse, verify

    started, verdicts = time.perf_counter(), []
    for case in cases:
        equal = verify(
            parse(f"${case.truth}$"), parse(case.whole or f"The answer is $\\boxed{{{case.answer}}}$.")
        )
        # what it could not decide is "not equal" there
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
    """Every right answer scores 1 and every wrong one 0, on the sets that were scored by this
    project's verifier.
    """
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
