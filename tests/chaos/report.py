"""chaos.json and chaos.md: the figures of the matrix with the machine and the commit that they were
taken on.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sppo_ray.rundir.environment import environment
from sppo_ray.rundir.jsonlines import write_atomically
from tests.chaos.cells import matrix
from tests.chaos.outcomes import CellOutcome, Ledger, RunOutcome

EXPLANATION = """\
Each row is one fault in a real run (`make chaos`): the victim is frozen as soon as status.json shows the state, looked at
again, and then killed or left frozen. *heal* is the time from the fault until every worker served again and a step was
finished. *lost*, *repeated* and *wrong version* count samples of all steps around the fault, from the trajectory log: each
request of a step has to be there once, sampled by versions that the staleness allows. *by*: the run healed itself, or its
trainer had to be started again with `--resume`.
"""  # noqa: E501


def write_report(ledger: Ledger, path: Path) -> None:
    """Write `path`.json and `path`.md."""
    machine = environment()
    content = {
        "environment": machine,
        "cells": [asdict(cell) for cell in ledger.cells],
        "runs": [asdict(run) for run in ledger.runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    write_atomically(path.with_suffix(".md"), _markdown(ledger, machine))


def _markdown(ledger: Ledger, machine: dict[str, Any]) -> str:
    good = [cell for cell in ledger.cells if cell.is_good]
    lines = ["# Faults injected into real runs", "", EXPLANATION, _summary(ledger, good), ""]
    lines += [
        "| role | state | fault | heal | lost | repeated | wrong version | by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(cell) for cell in ledger.cells]
    lines += [
        "",
        "## Whole runs",
        "",
        "After their last fault the runs were ended by SIGTERM. Synchronous ones are compared with an",
    ]
    lines += [
        "undisturbed run of the same seed: all samples of all steps, and the digest of each version of the "
        "weights.",
        "",
    ]
    lines += [
        "| run | faults | steps | resumed | compared steps | difference | end |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_run_row(run) for run in ledger.runs]
    return "\n".join([*lines, "", f"Taken on: {_machine(machine)}", ""])


def _summary(ledger: Ledger, good: list[CellOutcome]) -> str:
    if not good:
        return "No cell is good yet."
    heals = [cell.heal_s for cell in good]
    cost = [
        sum(getattr(cell.cost, name) for cell in ledger.cells)
        for name in ("lost", "repeated", "wrong_version")
    ]
    return (
        f"{len(good)} of {len(ledger.cells)} cells good, of {len(matrix())} in the matrix; "
        f"heal time median {statistics.median(heals):.1f} s, "
        f"worst {max(heals):.1f} s; samples lost {cost[0]}, repeated {cost[1]}, of a wrong version {cost[2]}."
    )


def _row(cell: CellOutcome) -> str:
    role, state, fault, *mode = cell.name.split("/")
    cost = cell.cost
    state += " (overlapped)" if mode else ""
    figures = f"{cell.heal_s:.1f} s | {cost.lost} | {cost.repeated} | {cost.wrong_version}"
    return f"| {role} | {state} | {fault.replace('-', ' ')} | {figures} | {cell.verdict} |"


def _run_row(run: RunOutcome) -> str:
    compared = str(run.compared_steps) if run.compared_steps else "-"
    difference = run.difference or ("none" if run.compared_steps else "-")
    return (
        f"| {run.name} | {len(run.cells)} | {run.steps} | {run.resumes} | {compared} | {difference} | "
        f"{'; '.join(run.faults) or 'clean'} |"
    )


def _machine(machine: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value}" for key, value in machine.items() if isinstance(value, (str, int, float))
    )
