"""The audit of the chaos harness detects lost, repeated, foreign and wrongly dated samples."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cells import matrix, selected
from tests.chaos.kill_at import POINTS
from tests.chaos.outcomes import CellOutcome, Ledger, RunOutcome
from tests.chaos.record import Audit, audit_step
from tests.chaos.report import write_report


def rows(version: int, count: int = 4) -> list[dict[str, Any]]:
    """Step version + 1 of a synchronous run with `count` prompts."""
    return [
        {"request_id": f"step-{version}/{index}/0", "policy_version": version, "policy_version_end": version}
        for index in range(count)
    ]


def audited(samples: list[dict[str, Any]], staleness: int = 0) -> Audit:
    return audit_step(samples, 6, prompts=4, samples_per_prompt=1, staleness=staleness)


def test_a_whole_step_is_clean() -> None:
    assert audited(rows(5)) == Audit(steps=1)
    assert audited(rows(5)).is_clean


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (rows(5)[:3], Audit(1, lost=1)),
        ([], Audit(1, lost=4)),
        ([*rows(5), rows(5)[0]], Audit(1, repeated=1)),
        # Two of the step before instead of two of its own: two lost, two that were trained on
        # twice, of a version too old.
        ([*rows(5)[:2], *rows(4)[2:]], Audit(1, lost=2, repeated=2, wrong_version=2)),
        ([*rows(5)[:3], rows(5)[3] | {"policy_version_end": 6}], Audit(1, wrong_version=1)),
    ],
)
def test_what_is_wrong_is_counted(samples: list[dict[str, Any]], expected: Audit) -> None:
    assert audited(samples) == expected and not expected.is_clean


def test_staleness_widens_the_versions_to_its_bound_and_no_further() -> None:
    one_old = [row | {"policy_version": 4} for row in rows(5)]
    assert audited(one_old, staleness=1).is_clean  # 5 - 1 <= 4 <= 5
    assert audited(one_old, staleness=0).wrong_version == 4
    assert audited([row | {"policy_version": 3} for row in rows(5)], staleness=1).wrong_version == 4


def test_a_record_without_checks_is_not_clean() -> None:
    assert not Audit().is_clean


def test_the_matrix_is_large_and_its_names_are_its_own() -> None:
    names = [cell.name for cell in matrix()]
    assert len(names) == len(set(names)) >= 40
    assert {cell.role for cell in matrix()} == {
        "rollout", "learner", "critic", "reward", "verifier", "reference", "driver", "node"
    }  # fmt: skip
    assert {cell.fault for cell in matrix()} == {"SIGKILL", "SIGSTOP", "link cut"}
    assert len({cell.state for cell in matrix()}) == 10
    assert [cell.name for cell in selected("rollout/syncing/*")] == [
        "rollout/syncing/SIGKILL", "rollout/syncing/SIGSTOP", "rollout/syncing/SIGKILL/overlapped",
        "rollout/syncing/SIGSTOP/overlapped",
    ]  # fmt: skip


def outcome(name: str, **changes: Any) -> CellOutcome:
    fields: dict[str, Any] = {
        "heal_s": 12.5,
        "cost": Audit(9),
        "resumes": 0,
        "problem": None,
        "run": "synchronous-1",
    }
    return CellOutcome(name, **(fields | changes))


def test_what_was_done_is_kept_and_only_the_good_need_no_second_try(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "cells.json")
    ledger.add(outcome("rollout/idle/SIGKILL"))
    ledger.add(
        outcome("critic/updating/SIGSTOP", problem="step 9 with a whole fleet did not come within 240 s")
    )
    ledger.add(outcome("driver/syncing/SIGKILL", cost=Audit(9, lost=1)))
    again = Ledger(tmp_path / "cells.json")
    assert again.good == {"rollout/idle/SIGKILL"}
    again.add(outcome("critic/updating/SIGSTOP", heal_s=31.0))
    assert [(cell.name, cell.heal_s) for cell in again.cells][-1] == ("critic/updating/SIGSTOP", 31.0)
    assert len(again.cells) == 3


def test_the_report_says_what_was_measured_and_where(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "cells.json")
    ledger.add(outcome("rollout/idle/SIGKILL"))
    ledger.add(outcome("learner/generating/SIGKILL/overlapped", heal_s=20.5, resumes=1))
    ledger.add_run(RunOutcome("synchronous-1", ["rollout/idle/SIGKILL"], 40, 0, Audit(40), 40, None))
    write_report(ledger, tmp_path / "results" / "chaos")
    page = (tmp_path / "results" / "chaos.md").read_text()
    # (12.5 + 20.5) / 2 = 16.5
    assert (
        f"2 of 2 cells good, of {len(matrix())} in the matrix; heal time median 16.5 s, worst 20.5 s; "
        in page
    )
    assert "samples lost 0, repeated 0, of a wrong version 0." in page
    assert "| rollout | idle | SIGKILL | 12.5 s | 0 | 0 | 0 | itself |" in page
    assert "| learner | generating (overlapped) | SIGKILL | 20.5 s | 0 | 0 | 0 | --resume (1) |" in page
    assert "| synchronous-1 | 1 | 40 | 0 | 40 | none | clean |" in page
    assert (
        json.loads((tmp_path / "results" / "chaos.json").read_text())["cells"][0]["name"]
        == "rollout/idle/SIGKILL"
    )


@pytest.mark.parametrize("point", sorted(POINTS))
def test_the_points_where_a_driver_is_killed_exist(point: str) -> None:
    found = POINTS[point]
    owner = getattr(importlib.import_module(found.module), found.owner)
    assert callable(getattr(owner, found.method))
