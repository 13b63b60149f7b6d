"""What the page shows of runs that are paused, unfinished, elsewhere or failed; tokens; errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sppo_ray.api import ray_jobs
from sppo_ray.api.tokens import add_token
from sppo_ray.rollout.views import WorkerView
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.status import RunStatus, write_status
from tests.api.page.tools import await_fit, expect, serving
from tests.api.page_runs import ATTACK, RecordedRun


def test_an_alarm_of_a_guardrail_stands_above_the_figures(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run = RecordedRun(tmp_path / "sick", seed=7)
    run.advance(3)
    message = f"kl: policy/approx_kl_k3 is 0.3 nats a token, since step 1. {ATTACK}"
    alert = {"detector": "kl", "step": 3, "since": 1, "action": "pause", "message": message}
    run.recorder.phase("paused", run.state, paused=True, alerts=[alert])
    with serving(runs=tmp_path) as url:
        page = open_page("#/jobs/sick", at=url)
        banner = page.locator(".job-head .notice.alarm")
        expect(banner).to_contain_text("Paused by a guardrail: resume or stop the run")
        expect(banner).to_contain_text(message)
        run.recorder.phase("training", run.state, paused=False, alerts=[])
        expect(banner).to_have_count(0)
    run.end("stopped")


def test_a_run_that_failed_before_its_first_step_has_no_empty_charts(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run_dir = RunDir.create(tmp_path / "early", resume=False)
    write_status(run_dir, RunStatus(phase="failed", last_error={"message": "UserError: no such model"}))
    run_dir.close()
    with serving(runs=tmp_path) as url:
        page = open_page("#/jobs/early", at=url)
        expect(page.get_by_text("This run ended before its first step.")).to_be_visible()
        expect(page.locator(".chart:visible, .metric-choice:visible")).to_have_count(0)
        # an older release began the message with the class of the error
        expect(page.get_by_role("alert").locator("p")).to_have_text("no such model")
        expect(page.locator(".panel").filter(has_text="Checkpoints")).to_contain_text("No checkpoint yet")
        page.close()


def test_an_accuracy_with_partial_rewards_is_called_mean_reward(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run = RecordedRun(tmp_path / "partial", seed=11, failure=0.25)
    run.advance(3)
    run.end("stopped")
    with serving(runs=tmp_path) as url:
        page = open_page("#/jobs/partial", at=url)
        expect(page.locator(".figures dt").nth(0)).to_have_text("Held-out mean reward")
        evaluations = page.get_by_role("region", name="Held-out evaluations")
        expect(evaluations.get_by_role("columnheader").nth(1)).to_have_text("Mean reward")
        page.close()


def test_a_new_engine_has_no_version_and_a_paused_run_no_time_left(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run = RecordedRun(tmp_path / "paused", seed=8)
    run.advance(3)
    workers = [
        WorkerView("rollout-0", "HEALTHY", 3, 0, 16, 800),
        WorkerView("rollout-127", "RESTARTING", None, 12, 1024, 0),
    ]
    run.recorder.live(fleet=workers, eta_s=3222.0)
    run.recorder.beat()
    with serving(runs=tmp_path) as url:
        page = open_page("#/jobs/paused", at=url)
        expect(page.locator(".head-progress p")).to_contain_text("about 53 min 42 s left")
        row = page.locator(".fleet tbody tr").nth(1)
        expect(row).to_contain_text("rollout-127◌restarting–12")  # the version is a dash
        expect(row.locator(".behind")).to_have_count(0)
        for width in (1280, 390):  # the table is not cut
            page.set_viewport_size({"width": width, "height": 900})
            await_fit(page)
            region = page.get_by_role("region", name="Fleet")
            assert region.evaluate("(part) => part.scrollWidth <= part.clientWidth"), width
        run.recorder.phase("paused", run.state, paused=True)
        expect(page.locator(".head-state")).to_contain_text("paused")
        expect(page.locator(".head-progress p")).not_to_contain_text("left")
        page.goto(f"{url}/#/")
        expect(page.locator(".steps small")).to_have_text("3 / 30")
        page.close()
    run.end("stopped")


def test_a_checkpoint_is_listed_with_its_event_and_an_unfinished_one_later(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run = RecordedRun(tmp_path / "saving", seed=9)
    run.advance(2)
    path = run.run_dir.checkpoints / "step-000002"
    path.mkdir(parents=True)
    panel_text = "Step 2"
    with serving(runs=tmp_path) as url:
        page = open_page("#/jobs/saving", at=url)
        panel = page.locator(".panel").filter(has=page.get_by_role("heading", name="Checkpoints"))
        expect(panel).to_contain_text("No checkpoint yet")
        run.recorder.event("checkpoint", path.name)
        expect(panel).to_contain_text(panel_text)  # by the event, while the file system shows no manifest
        (path / "manifest.json").write_text('{"files": {"a": {"bytes": 2048}}}')
        run.recorder.beat()
        expect(panel).to_contain_text("2.00 KiB")
        expect(panel.locator("tr")).to_have_count(1)
        shutil.rmtree(path)
        run.end("stopped")
        expect(panel).to_contain_text("Those that this run wrote are deleted")
        page.close()


class RayWithJobs:
    """A fake of Ray's job server's client; tests/api/test_control_plane.py has the real one."""

    def __init__(self, address: str) -> None: ...

    def list_jobs(self) -> list[SimpleNamespace]:
        entry = "python -m sppo_ray train quickstart"
        times = {"start_time": 1_000_000, "end_time": 2_000_000}
        return [
            SimpleNamespace(
                submission_id="elsewhere", status="SUCCEEDED", entrypoint=entry, message=None, metadata=None,
                **times,
            )
        ]  # fmt: skip


def test_a_run_elsewhere_shows_no_progress(
    open_page: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "_connect", RayWithJobs)
    with serving(runs=tmp_path) as url:
        page = open_page(at=url)
        row = page.locator("table.jobs tbody tr")
        expect(row.locator(".steps")).to_have_text("no run directory below --runs")
        expect(page.get_by_role("progressbar")).to_have_count(0)
        page.goto(f"{url}/#/jobs/elsewhere")
        expect(page.get_by_text("is not below the directory that this server shows")).to_be_visible()
        expect(page.locator(".head-progress p")).to_contain_text("no run directory below --runs")
        expect(page.get_by_role("progressbar")).to_have_count(0)
        page.close()


def test_a_token_is_asked_for_and_kept_in_the_tab(
    open_page: Callable[..., Any], runs: Path, tmp_path: Path
) -> None:
    viewer = add_token(tmp_path / "tokens", "reader", "viewer")
    with serving(runs=runs, tokens=tmp_path / "tokens") as url:
        page = open_page(at=url, expected="status of 40")
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Bearer token").fill("wrong")
        dialog.get_by_role("button", name="Use this token").click()
        expect(dialog).to_be_visible()
        dialog.get_by_label("Bearer token").fill(viewer)
        dialog.get_by_role("button", name="Use this token").click()
        expect(page.locator("table.jobs tbody tr")).to_have_count(4)
        assert page.evaluate("sessionStorage['sppo-ray.token']") == viewer and viewer not in page.url
        assert page.evaluate("localStorage.length") == 0
        # The stream carries it as well, and a viewer's command is refused with the server's words.
        page.goto(f"{url}/#/jobs/running")
        expect(page.locator(".live")).to_have_text("live")
        page.get_by_role("button", name="Checkpoint").click()
        dialog.get_by_role("button", name="Take checkpoint").click()
        expect(dialog.get_by_role("alert")).to_contain_text("operator")
        page.close()  # before its server


def test_errors_say_what_is_wrong_and_the_page_recovers(open_page: Callable[..., Any], runs: Path) -> None:
    page = open_page("#/jobs/nobody", expected="404")
    expect(page.get_by_role("alert")).to_contain_text("there is no job 'nobody'")
    with serving(runs=runs) as url:
        page = open_page(at=url, expected="ERR_")
        expect(page.locator("table.jobs tbody tr")).to_have_count(4)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
