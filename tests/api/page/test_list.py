"""The page's list of jobs, and the comparison of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.api.page.tools import expect, painted, serving


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
