"""The HTML report of a run: what it shows, and that no text of a model becomes markup."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from sppo_ray.cli.main import main
from sppo_ray.rundir.metrics import EventLog
from sppo_ray.rundir.trajectories import read_step, write_step
from tests.unit.ended_run import ended_run

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;\x00\u202eabc {{ 7 * 7 }}"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a run whose texts are hostile."""
    folder = tmp_path_factory.mktemp("report")
    path = ended_run(folder)
    for step in (1, 2):
        table = read_step(path, step)
        for column in ("prompt_text", "response_text", "ground_truth", "reason"):
            place = table.schema.get_field_index(column)
            hostile = pa.array([HOSTILE] * len(table), pa.string())
            table = table.set_column(place, table.schema.field(column), hostile)
        if step == 2:
            table = as_episodes(table)
        write_step(path, table)
    events = EventLog(path)
    events.write("guardrail", f"rewards are equal {HOSTILE}", detector="no_signal", since=2, action="warn")
    events.close()
    assert main(["report", str(path), "--out", str(folder / "page.html")]) == 0
    return (folder / "page.html").read_text(encoding="utf-8")


def as_episodes(table: pa.Table) -> pa.Table:
    """Every sample becomes one of two actions with an observation between them."""
    parts = {"turn_lengths": [1, 2, 1, 0], "turn_rewards": [0.5, 0.0], "turn_texts": ["up", HOSTILE, "down"]}
    for column, part in parts.items():
        field = table.schema.field(column)
        rows = pa.array([part] * len(table), field.type)
        table = table.set_column(table.schema.get_field_index(column), field, rows)
    return table


def test_the_report_is_one_file_that_asks_for_nothing(html: str) -> None:
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "a", "base"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2  # the learning curve and the panels
    for picture in pictures:
        assert base64.b64decode(picture.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert "default-src 'none'" in html and "url(" not in html
    assert "{{ 7 * 7 }}" in page.text and not {"\x00", "\u202e"} & set(html)


def test_the_report_shows_what_the_run_wrote(html: str) -> None:
    page = Page(html)
    text = re.sub(r"\s+", " ", page.text)
    assert "0.25 → 0.50" in text and "steps 2 of 2" in text
    assert "0.50 [0.40, 0.60] 1: 0.50" in text
    assert "no_signal since step 2 (warn, over): rewards are equal </pre><script>" in text
    assert "learner-0 1.00 GiB" in text
    assert "prompts_per_step: 4" in text
    assert "action, 1 tokens, +0.5 up observation, 2 tokens </pre><script>" in text
    assert "action, 1 tokens down" in text
    assert "\\u0000\\u202eabc" in text
    assert [attributes["open"] for _, attributes in page.tags if "open" in attributes] == [None]
    assert sum(tag == "summary" for tag, _ in page.tags) == 8 + 3  # 4 samples of 2 steps


def test_a_directory_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path}: is not a run directory" in capsys.readouterr().err
