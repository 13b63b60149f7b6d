"""Samples and settings; phones, colours, the keyboard; how figures and formulas are written."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.api.page.tools import DESKTOP, PHONE, await_fit, expect, painted, serving
from tests.api.page_runs import ATTACK, SAMPLES

IMAGES = Path(__file__).resolve().parents[3] / "docs" / "images"
SCREENSHOTS = os.environ.get("SPPO_RAY_SCREENSHOTS")
"""1 renews the pictures of the documentation: pytest tests/api/page -k screenshots. The path of a
directory of runs instead of 1 shows real ones.
"""


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


def test_it_fits_a_phone(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    for route in ("", "#/jobs/running", "#/jobs/finished/samples", "#/?compare=finished,stopped"):
        page.goto(f"{address}/{route}")
        expect(page.locator("table.jobs" if route == "" else ".chart canvas, .sample").first).to_be_visible()
        await_fit(page)


def test_dark_and_light_follow_the_system_until_chosen(open_page: Callable[..., Any]) -> None:
    page = open_page("#/jobs/finished", color_scheme="dark")
    expect(page.locator(".chart canvas")).to_have_count(11)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(15, 18, 22)"
    assert painted(page, "Entropy", "c-gold") > 100
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(background) == "rgb(244, 245, 247)"
    assert painted(page, "Entropy", "c-gold") > 100  # drawn again in the colours of the theme
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
