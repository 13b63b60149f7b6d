"""A job's view: curves, figures, actions, downloads, and how it follows a run."""

from __future__ import annotations

import io
import math
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sppo_ray.api.tokens import add_token
from sppo_ray.rundir.metrics import read_metrics
from tests.api.page.tools import await_fit, commands, expect, painted, serving
from tests.api.page_runs import ATTACK, MOST_WORKERS, RecordedRun


def test_a_finished_job_shows_its_curves_and_figures(open_page: Callable[..., Any], runs: Path) -> None:
    page = open_page("#/jobs/finished")
    expect(page.locator(".head-state")).to_contain_text("succeeded")
    expect(page.locator(".chart canvas")).to_have_count(11)
    expect(page.locator(".chart.wide .where, .chart[hidden]")).to_have_count(0)
    for title, colour in (
        ("Reward, in training and held out", "c-green"), ("Value mean", "c-orange"),
        ("Brier score of the value", "c-orange"),
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
    await_fit(page)


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
