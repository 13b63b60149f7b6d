"""The web page in a real browser, over the real server and run directories of the real Recorder.

Needs Debian's chromium and Playwright's Python package (the extra `dev`); without them these tests
are skipped. Screenshots for the documentation: SPPO_RAY_SCREENSHOTS=1 pytest tests/api/test_page.py
-k screenshots, or the path of a directory of runs instead of 1, to show real ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sppo_ray.api import ray_jobs
from sppo_ray.api.app import create_app
from sppo_ray.api.settings import ApiSettings
from sppo_ray.api.tokens import add_token
from sppo_ray.rollout.views import WorkerView
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.status import RunStatus, write_status
from tests.api.browser import TIMEOUT_MS, WHY_NOT, chromium
from tests.api.page_runs import ATTACK, MOST_WORKERS, SAMPLES, RecordedRun

if WHY_NOT:
    pytest.skip(WHY_NOT, allow_module_level=True)
expect = pytest.importorskip("playwright.sync_api").expect

DESKTOP, PHONE = {"width": 1440, "height": 1000}, {"width": 390, "height": 844}
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SCREENSHOTS = os.environ.get("SPPO_RAY_SCREENSHOTS")


# ------------------------------------------------------------------------------- server and browser


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[str]:
    """The address of the real server, in a thread. Ray is away: nothing answers at the port of its
    job server.
    """
    import uvicorn

    app = create_app(ApiSettings(ray_address="http://127.0.0.1:1", refresh_s=0.2, **settings))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that have ended: `finished`, `stopped` early, and `failed`."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed, steps in (("finished", 1, 30), ("stopped", 2, 12), ("failed", 3, 3)):
        run = RecordedRun(root / name, seed=seed)
        run.advance(steps, special=True)
        error = {
            "actor": "rollout-1",
            "message": f"out of memory {ATTACK}",
            "stack": "Traceback ...\nMemoryError",
        }
        run.end(name, **({"last_error": error} if name == "failed" else {}))  # type: ignore[arg-type]
    return root


@pytest.fixture(scope="module")
def running(runs: Path) -> Iterator[RecordedRun]:
    """A run that this process is writing."""
    run = RecordedRun(runs / "running", seed=4)
    run.advance(8)
    yield run
    run.run_dir.close()


@pytest.fixture(scope="module")
def address(runs: Path, running: RecordedRun) -> Iterator[str]:
    with serving(runs=runs) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens pages and holds each to its promises: no error, no violated policy, no request to
    anybody else.
    """
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_one(
        route: str = "", *, at: str = address, viewport: Any = DESKTOP, expected: str = " ", **options: Any
    ) -> Any:
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))
        page.on(
            "console",
            lambda m: m.type in ("error", "warning") and expected not in m.text and wrong.append(m.text),
        )
        page.on(
            "request",
            lambda request: request.url.startswith((at, "data:")) or wrong.append(f"asks {request.url}"),
        )
        page.goto(f"{at}/{route}")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not wrong


def painted(page: Any, title: str, colour: str) -> int:
    """Pixels in that colour (a custom property of the style sheet) on the canvas of the card with
    this title.
    """
    return page.evaluate(
        """([title, name]) => {
          const card = [...document.querySelectorAll(".chart")].find((c) => c.querySelector("h3").textContent === title);
          const canvas = card.querySelector("canvas");
          const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
          const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4)
            count += Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 24 && data[i + 3] > 200;
          return count;
        }""",  # noqa: E501
        [title, colour],
    )


def fits(page: Any) -> bool:
    """Whether nothing sticks out of the window to the right."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def commands(run: RecordedRun) -> list[dict[str, Any]]:
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((run.run_dir.path / "control/inbox").glob("*.json"))
    ]


# ----------------------------------------------------------------------------------------- the list


def test_the_list_shows_every_job_and_filters_by_state_and_name(open_page: Callable[..., Any]) -> None:
    page = open_page()
    rows = page.locator("table.jobs tbody tr")
    expect(rows).to_have_count(4)
    for name, chip in (
        ("finished", "✓succeeded"),
        ("stopped", "■stopped"),
        ("failed", "✕failed"),
        ("running", "●running"),
    ):
        row = rows.filter(has=page.get_by_role("link", name=name, exact=True))
        expect(row.locator(".chip")).to_have_text(chip)
    expect(rows.filter(has_text="stopped").locator(".steps small")).to_have_text("12 / 30")
    page.get_by_role("button", name="Failed or lost").click()
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="All", exact=True).click()
    expect(rows).to_have_count(4)
    page.get_by_role("searchbox").fill("RUNN")
    expect(rows).to_have_count(1)
    page.get_by_role("searchbox").fill("nothing is called so")
    expect(page.get_by_text("No job fits")).to_be_visible()


def test_an_empty_directory_says_how_to_begin(open_page: Callable[..., Any], tmp_path: Path) -> None:
    with serving(runs=tmp_path) as url:
        page = open_page(at=url)
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        expect(page.get_by_text("sppo-ray submit quickstart")).to_be_visible()


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


def test_chosen_runs_are_compared_in_one_chart(open_page: Callable[..., Any]) -> None:
    page = open_page()
    for name in ("finished", "stopped"):
        page.get_by_role("checkbox", name=f"Compare {name}").check()
    expect(page.get_by_role("heading", name="Comparing 2 runs")).to_be_visible()
    expect(page.locator(".comparison canvas")).to_have_count(4)
    assert painted(page, "Reward", "c-blue") > 150 and painted(page, "Reward", "c-orange") > 50
    page.get_by_role("button", name="minutes of training").click()
    assert "compare=finished,stopped" in page.url
    page.reload()
    expect(page.get_by_role("heading", name="Comparing 2 runs")).to_be_visible()
    page.get_by_role("link", name="Clear").click()
    expect(page.locator(".comparison")).to_be_hidden()


# ------------------------------------------------------------------------------------------ one job


def test_a_finished_job_shows_its_curves_and_figures(open_page: Callable[..., Any], runs: Path) -> None:
    page = open_page("#/jobs/finished")
    expect(page.locator(".head-state")).to_contain_text("succeeded")
    expect(page.locator(".chart canvas")).to_have_count(11)
    expect(page.locator(".chart.wide .where, .chart[hidden]")).to_have_count(0)
    for title, colour in (
        ("Reward and held-out accuracy", "c-green"), ("Value mean", "c-orange"), ("Brier score of the value",
        "c-orange"),
        ("Explained variance of the reward", "c-orange"), ("Effective sample size", "c-blue"),
        ("Clip fraction", "c-red"), ("KL to the sampling policy", "c-violet"), ("Response length", "c-teal"),
        ("Entropy", "c-gold"), ("Where a step's time goes", "c-blue"),
    ):  # fmt: skip
        assert painted(page, title, colour) > 100, title
    rows = read_metrics(runs / "finished")
    accuracy = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
    expect(page.locator(".figures div").nth(0).locator("dd").nth(0)).to_have_text(
        f"{100 * accuracy[-1]:.1f}%"
    )
    # 64 prompts make ties, and JavaScript rounds them up
    tenths = math.floor(1000 * (accuracy[-1] - accuracy[0]) + 0.5)
    expect(page.locator(".figures div").nth(0)).to_contain_text(f"+{tenths / 10} points since the start")
    reward = (
        page.locator(".chart")
        .filter(has=page.get_by_role("heading", name="Value mean"))
        .locator(".key")
        .nth(0)
    )
    expect(reward).to_have_text(
        f"reward{[row['reward/mean'] for row in rows if 'reward/mean' in row][-1]:.3f}"
    )
    times = page.locator(".panel").filter(has_text="Worker time")
    expect(times.get_by_role("img", name="learner: train 3")).to_be_visible()
    expect(times.locator("li")).to_have_count(4)  # rollout, learner, critic, driver
    expect(times.locator("p")).to_have_text("Shares of each worker's seconds, last 20 steps.")
    # The start and every tenth of 30 steps make 4 evaluations; one checkpoint, after step 25, of 3
    # MiB
    expect(page.get_by_role("region", name="Held-out evaluations").locator("tbody tr")).to_have_count(4)
    expect(page.locator(".panel").filter(has_text="Checkpoints").locator("tbody tr").first).to_contain_text(
        "3.00 MiB"
    )
    expect(page.get_by_role("group", name="Actions").get_by_role("button")).to_have_count(0)


def test_the_cursor_reads_a_step_off_every_chart(open_page: Callable[..., Any], runs: Path) -> None:
    page = open_page("#/jobs/finished")
    expect(page.locator(".chart canvas")).to_have_count(11)
    box = page.locator(".chart .u-over").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)  # the middle of 0 to 30
    expect(page.locator(".chart:not(.wide) .where")).to_have_text(["step 15"] * 10)
    reward = next(
        row["reward/mean"]
        for row in read_metrics(runs / "finished")
        if row["step"] == 15 and "reward/mean" in row
    )
    expect(page.locator(".chart .key b").first).to_have_text(f"{reward:.3f}")


def test_a_failed_job_says_who_failed_and_the_message_stays_text(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/failed")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("rollout-1 failed")
    expect(alert).to_contain_text(f"out of memory {ATTACK}")
    alert.get_by_text("Stack").click()
    expect(alert.get_by_text("MemoryError")).to_be_visible()
    assert page.title() == "failed · sppo-ray"


def test_a_running_job_goes_on_without_a_reload(open_page: Callable[..., Any], runs: Path) -> None:
    run = RecordedRun(runs / "growing", seed=5, steps=14)
    run.advance(4)
    try:
        page = open_page()
        page.get_by_role("link", name="growing").click()  # the list takes it in by itself
        expect(page.locator(".head-progress p")).to_contain_text("Step 4 of 14")
        expect(page.locator(".live")).to_have_text("live")
        before = painted(page, "Value mean", "c-blue")
        thread = threading.Thread(target=lambda: [(run.advance(1), time.sleep(0.1)) for _ in range(6)])
        thread.start()
        expect(page.locator(".head-progress p")).to_contain_text("Step 10 of 14")
        thread.join()
        expect(page.locator(".chart").first.locator(".key b").first).to_have_text(newest_reward(run))
        assert painted(page, "Value mean", "c-blue") != before
        expect(page.get_by_role("log")).to_contain_text("all actors up after 25.4 s")
        expect(page.locator(".fleet tbody tr")).to_have_count(2)
        run.recorder.live(
            wanted_workers=3,
            pending=[{"worker": "rollout-2", "waiting_for": "0.5 CPU", "since": time.time() - 30}],
        )
        run.recorder.beat()
        expect(page.locator(".pending")).to_contain_text("rollout-2 waits for 0.5 CPU for 3")
        run.end("finished")
        expect(page.locator(".head-state")).to_contain_text("succeeded")
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    finally:
        run.run_dir.close()
        shutil.rmtree(runs / "growing")


def test_a_budget_of_seconds_is_shown_where_it_ends_the_run(
    open_page: Callable[..., Any], runs: Path
) -> None:
    run = RecordedRun(runs / "budget", seed=6, steps=1_000_000, budget_s=150)
    run.advance(14)  # 14 x 2.2 s = 30.8 s, 21% of the budget
    try:
        page = open_page("#/jobs/budget")
        expect(page.locator(".head-progress p")).to_contain_text("14 steps · 31 s of 2 min 30 s of training")
        expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "21")
        page.goto(f"{page.url.partition('#')[0]}#/")
        row = page.locator("table.jobs tbody tr").filter(
            has=page.get_by_role("link", name="budget", exact=True)
        )
        expect(row.locator(".steps small")).to_contain_text("14 steps, 31 s / 2 min 30 s")
        page.close()
    finally:
        run.run_dir.close()
        shutil.rmtree(runs / "budget")


def newest_reward(run: RecordedRun) -> str:
    return f"{[row['reward/mean'] for row in read_metrics(run.run_dir.path) if 'reward/mean' in row][-1]:.3f}"


def test_actions_ask_first_and_show_the_servers_refusal(
    open_page: Callable[..., Any], running: RecordedRun
) -> None:
    page = open_page("#/jobs/running", expected="422")
    dialog = page.get_by_role("dialog")
    page.get_by_role("button", name="Stop").click()
    expect(dialog).to_contain_text("Stop this job?")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert commands(running) == []

    page.get_by_role("button", name="Scale").click()
    dialog.get_by_label("Rollout workers", exact=True).fill(str(MOST_WORKERS + 5))
    dialog.get_by_role("button", name="Scale").click()
    expect(dialog.get_by_role("alert")).to_contain_text(
        "9 is outside rollout.min_workers and max_workers of this job (1 to 4)"
    )
    dialog.get_by_label("Rollout workers", exact=True).fill("3")
    dialog.get_by_role("button", name="Scale").click()
    expect(dialog).to_have_count(0)
    expect(page.locator(".toast")).to_have_text("Asked for 3 rollout workers")
    for name, confirm in (("Pause", "Pause"), ("Checkpoint", "Take checkpoint")):
        page.get_by_role("group", name="Actions").get_by_role("button", name=name).click()
        dialog.get_by_role("button", name=confirm).click()
        expect(dialog).to_have_count(0)
    asked = commands(running)
    assert [command["kind"] for command in asked] == ["scale", "pause", "checkpoint"]
    assert asked[0]["rollout_workers"] == 3
    expect(page.locator(".panel").filter(has_text="Commands").locator("li")).to_have_count(3)


# ---------------------------------------------------------- what is not there, and what is ahead


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
            assert fits(page)
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


# ------------------------------------------------------------------ the reader's choice, and files


def test_any_metric_can_be_drawn_and_the_choice_is_in_the_address(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/finished")
    field = page.get_by_label("Add a metric")
    expect(page.locator("#metric-names option[value='tokens/total']")).to_have_count(1)
    field.fill("nothing/like/it")
    field.fill("seconds/step")
    expect(page.locator(".own canvas")).to_have_count(1)
    expect(field).to_have_value("")
    field.fill("busy/rollout-0")
    expect(page.locator(".own h3")).to_have_text(["seconds/step", "busy/rollout-0"])
    assert painted(page, "seconds/step", "c-blue") > 100
    assert painted(page, "busy/rollout-0", "c-orange") > 50
    assert page.url.endswith("?metrics=seconds%2Fstep,busy%2Frollout-0")
    page.reload()
    expect(page.locator(".own canvas")).to_have_count(2)
    page.get_by_role("button", name="Remove seconds/step").click()
    expect(page.locator(".own h3")).to_have_text(["busy/rollout-0"])
    assert fits(page)


def test_a_comparison_draws_chosen_metrics_and_names_the_settings_that_differ(
    open_page: Callable[..., Any],
) -> None:
    page = open_page("#/?compare=finished,stopped")
    expect(page.locator(".comparison canvas")).to_have_count(4)
    page.get_by_label("Add a metric").fill("policy/entropy")
    expect(page.locator(".comparison canvas")).to_have_count(5)
    assert painted(page, "policy/entropy", "c-blue") > 100
    assert page.url.endswith("?compare=finished,stopped&metrics=policy%2Fentropy")
    table = page.get_by_role("region", name="Settings that differ")
    expect(table.locator("tbody tr")).to_have_text(["seed12"])  # 1 of `finished`, 2 of `stopped`
    read = (
        "([a, b]) => import('./ui/differences.js').then((m) => m.differences([a, b]).map(([name, values]) =>"
        " [name, ...values.map((value) => value ?? null)]))"
    )
    one = {"loop": {"steps": 60, "gate": {}}, "list": [1, {"a": 2}], "same": {"x": None}}
    two = {"loop": {"steps": 61, "gate": {}}, "list": [1, {"a": 3}], "same": {"x": None}, "new": 0}
    assert page.evaluate(read, [one, two]) == [
        ["list", [1, {"a": 2}], [1, {"a": 3}]],
        ["loop.steps", 60, 61],
        ["new", None, 0],
    ]


def test_export_and_report_are_saved_with_the_readers_token(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run = RecordedRun(tmp_path / "runs" / "done", seed=10)
    run.advance(1)
    run.run_dir.exported_policy.mkdir(parents=True)
    (run.run_dir.exported_policy / "config.json").write_text('{"a": 1}')
    (run.run_dir.path / "report.html").write_text("<h1>Report</h1>")
    run.end("finished")
    token = add_token(tmp_path / "tokens", "reader", "viewer")
    with serving(runs=tmp_path / "runs", tokens=tmp_path / "tokens") as url:
        page = open_page(at=url, expected="status of 401")
        page.get_by_label("Bearer token").fill(token)
        page.get_by_role("button", name="Use this token").click()
        page.get_by_role("link", name="done", exact=True).click()
        panel = page.locator(".panel").filter(has_text="Downloads")
        expect(panel).to_contain_text("policy and critic: 1 file, 8.00 B")
        saved = {}
        for kind in ("export", "report"):
            with page.expect_download() as download:
                page.get_by_role("button", name=f"Download the {kind}").click()
            saved[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
        assert saved["done-report.html"] == b"<h1>Report</h1>"
        with tarfile.open(fileobj=io.BytesIO(saved["done-export.tar"])) as archive:
            assert archive.extractfile("done/policy/config.json").read() == b'{"a": 1}'  # type: ignore[union-attr]
        page.close()


# ------------------------------------------------------------------------------------------ samples


def test_what_a_model_wrote_stays_text_and_maths_is_drawn(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/finished/samples")
    cards = page.locator(".sample")
    expect(cards).to_have_count(20)
    attack = cards.filter(has_text="onerror").filter(has_not_text="Observation")
    expect(attack.locator(".prompt .written")).to_have_text(ATTACK)
    expect(attack.locator(".response .written")).to_contain_text(ATTACK)
    assert page.locator(".sample :is(img, script, iframe, a)").count() == 0
    assert page.title() == "finished · sppo-ray"

    tex = cards.filter(has_text="We factor")
    expect(tex.locator("math")).to_have_count(3)
    expect(tex.locator("mfrac")).to_have_count(1)
    expect(tex.locator(".prompt")).to_contain_text("It costs $5 or $6, never more.")
    expect(tex.locator(".chip")).to_have_text("✕reward 0")
    expect(tex.locator(".scale")).to_contain_text("surprise 0.99")
    page.get_by_role("button", name="TeX as written").click()
    expect(page.locator("math")).to_have_count(0)
    expect(tex).to_contain_text("\\frac{5 \\pm \\sqrt{25 - 24}}{2}")


def test_an_episode_is_shown_turn_by_turn(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/finished/samples")
    episode = page.locator(".sample").filter(has_text="a game")
    turns = episode.locator(".turns .text")
    expect(turns.locator("h4")).to_have_text(
        ["Action 1 · 2 tokens · reward 0.250", "Observation · 3 tokens", re.compile("Action 2 · ")]
    )
    expect(turns.locator(".written")).to_have_text(["eight", ATTACK, "twelve"])
    expect(episode.locator(".response")).to_have_count(2)
    expect(episode.locator(".sample-foot")).to_contain_text("2 turns")
    expect(episode.locator(".sample-foot")).to_contain_text("last turn allowed")


def test_samples_are_sorted_paged_and_walked_by_step(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/finished/samples?step=12&sort=reward&order=asc")
    cards = page.locator(".sample")
    expect(cards.first.locator(".chip")).to_have_text("✕reward 0")
    page.get_by_role("button", name="least first").click()
    expect(cards.first.locator(".chip")).to_have_text("✓reward 1.00")
    page.get_by_role("button", name="Show more").click()
    expect(cards).to_have_count(SAMPLES)
    page.get_by_label("Sort by").select_option("length")
    # 8 numbers of 6 tokens
    expect(cards.first.locator(".sample-foot")).to_contain_text("48 tokens")
    page.get_by_role("button", name="Step before").click()
    expect(page.get_by_role("spinbutton", name="Step")).to_have_value("11")
    assert "step=11" in page.url and "sort=length" in page.url
    page.get_by_role("button", name="Newest").click()
    expect(page.get_by_role("spinbutton", name="Step")).to_have_value("30")
    expect(page.get_by_role("button", name="Next step")).to_be_disabled()


def test_config_is_shown_and_a_missing_log_explains_itself(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/finished/config", expected="404")
    expect(page.locator("pre.config")).to_contain_text("prompts_per_step: 256")
    page.get_by_role("link", name="Log", exact=True).click()
    expect(page.get_by_text("No log", exact=True)).to_be_visible()


# -------------------------------------------------------------------------- tokens, errors, devices


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


def test_it_fits_a_phone(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    for route in ("", "#/jobs/running", "#/jobs/finished/samples", "#/?compare=finished,stopped"):
        page.goto(f"{address}/{route}")
        expect(page.locator("table.jobs" if route == "" else ".chart canvas, .sample").first).to_be_visible()
        assert fits(page), route


def test_dark_and_light_follow_the_system_until_chosen(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/finished", color_scheme="dark")
    expect(page.locator(".chart canvas")).to_have_count(11)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(15, 18, 22)"
    assert painted(page, "Entropy", "c-gold") > 100
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(background) == "rgb(244, 245, 247)"
    assert painted(page, "Entropy", "c-gold") > 100  # drawn anew in the colours of the theme
    page.reload()
    assert page.evaluate(background) == "rgb(244, 245, 247)"


def test_the_keyboard_alone_is_enough(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/running")
    expect(page.locator(".live")).to_have_text("live")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the contents")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    assert page.url.endswith("#/jobs/running")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Scale")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Rollout workers", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Scale")).to_be_focused()


def test_figures_and_formulas_are_read_as_people_do(open_page: Callable[..., Any]) -> None:
    page = open_page()
    expect(page.locator("table.jobs")).to_be_visible()
    durations = page.evaluate(
        "import('./ui/format.js').then((m) => [0.057, 9.96, 200, 7500, 270000].map(m.duration))"
    )
    # 270000 s = 75 h
    assert durations == ["57 ms", "10.0 s", "3 min 20 s", "2 h 05 min", "3 d 3 h"]
    numbers = page.evaluate(
        "import('./ui/format.js').then((m) => [0, 0.12345, 12.34, 1e-5, 15360, null].map(m.number))"
    )
    assert numbers == ["0", "0.123", "12.3", "1.0e−5", "15.4K", "–"]
    # a value, and how far ticks are apart
    values = [[0, 2.5e-5], [7.5e-5, 2.5e-5], [5e-5, 2.5e-5], [0.5, 0.1], [2e4, 5e3]]
    ticks = page.evaluate(
        "(all) => import('./ui/charts.js').then((m) => all.map(([value, step]) => m.tick(value, step)))",
        values,
    )
    assert ticks == ["0", "7.5e−5", "5e−5", "0.5", "20K"]
    texts = [
        "$5 and $6",
        "$x$ costs $5",
        "\\boxed{\\frac{1}{2}}",
        "a $$b$$ \\(c\\)",
        "\\begin{align}x\\end{align}",
        "$ not $",
    ]
    read = (
        "(texts) => import('./ui/maths.js').then((m) => texts.map((text) => m.pieces(text).flatMap((piece) "
        "=> piece.tex ?? [])))"
    )
    formulas = page.evaluate(read, texts)
    assert formulas == [[], ["x"], ["\\boxed{\\frac{1}{2}}"], ["b", "c"], ["\\begin{align}x\\end{align}"], []]


# -------------------------------------------------------------------------------------- screenshots


@pytest.mark.skipif(
    not SCREENSHOTS, reason="set SPPO_RAY_SCREENSHOTS to renew the pictures of the documentation"
)
def test_screenshots(open_page: Callable[..., Any], address: str) -> None:
    with contextlib.ExitStack() as stack:
        real = Path(SCREENSHOTS or "")
        url = stack.enter_context(serving(runs=real)) if real.is_dir() else address
        page = open_page(at=url)
        expect(page.locator("table.jobs")).to_be_visible()
        done = job_in(page, "succeeded")
        going = job_in(page, "running") if page.locator(".chip", has_text="running").count() else done
        IMAGES.mkdir(parents=True, exist_ok=True)
        shots = {
            "run": (going, DESKTOP, "light"),
            "phone": (going, PHONE, "light"),
            "list": ("", DESKTOP, "light"),
            "finished": (done, DESKTOP, "dark"),
        }
        for name, (route, viewport, scheme) in shots.items():
            page = open_page(route, at=url, viewport=viewport, color_scheme=scheme)
            expect(page.locator(".chart canvas, table.jobs").first).to_be_visible()
            page.wait_for_timeout(1000)
            page.screenshot(path=IMAGES / f"page-{name}.png", full_page=name == "finished")


def job_in(page: Any, state: str) -> str:
    """A job in this state, one with a critic's curves where there is a choice."""
    rows = page.locator("table.jobs tbody tr").filter(has=page.locator(".chip", has_text=state))
    best = rows.filter(has_text="sppo ·")
    return (best if best.count() else rows).first.get_by_role("link").get_attribute("href")
