"""README and the pages: what they promise of themselves, their links, their navigation, and the
blocks of the first pages that start no Ray (the others: tests/ray/test_documented_commands.py).
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sppo_ray.cli.main import main
from tests.documentation import PAGES, REPOSITORY, blocks

DOCS = REPOSITORY / "docs"
LINKED = ["README.md", "CONTRIBUTING.md", "deploy/README.md"]
LINKED += [f"docs/{path.name}" for path in sorted(DOCS.glob("*.md"))]
_LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def site_hooks():
    spec = importlib.util.spec_from_file_location("docs_site", REPOSITORY / "requirements" / "docs_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and MkDocs make them; without code blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {
        re.sub(r"[^\w\s-]", "", re.sub(r"[*`]", "", title)).strip().lower().replace(" ", "-")
        for title in headings
    }


def test_the_readme_is_short_and_says_what_is_not_there() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    first_screen = text[: text.index("## Your own data")]
    for promise in ("Not run on a GPU yet", "## What it does better", "## What it does not do yet"):
        assert promise in first_screen
    assert len(re.findall(r"!\[", first_screen)) == 2  # the page and a curve
    start = next(block for block in blocks("README.md") if block.language == "bash")
    assert len(start.commands) == 3


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page: str) -> None:
    path = REPOSITORY / page
    text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target, anchor in _LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = (path.parent / target) if target else path
        assert file.exists(), f"{page}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor[1:] in anchors(file), f"{page}: {target}{anchor}"


def test_every_page_is_in_the_navigation_once() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    config = yaml.safe_load(text) | {"docs_dir": str(DOCS)}
    assert config["strict"] and config["theme"]["font"] is False
    shown = []
    for entry in site_hooks().on_config(config)["nav"]:
        for pages in entry.values():
            shown += [pages] if isinstance(pages, str) else [name for one in pages for name in one.values()]
    assert sorted(shown) == sorted(path.name for path in DOCS.glob("*.md"))


def test_on_the_site_a_link_to_a_file_of_the_repository_is_its_path() -> None:
    become = site_hooks().on_page_markdown
    text = "See [the report](../benchmarks/results/chaos.md#top), [api](api.md), [`a/b`](../a/b)."
    assert become(text) == "See the report (`benchmarks/results/chaos.md`), [api](api.md), `a/b`."


@pytest.mark.parametrize("page", PAGES)
def test_the_first_pages_have_no_block_that_is_not_tested(page: str) -> None:
    found = blocks(page)
    assert (REPOSITORY / page).read_text(encoding="utf-8").count("\n```") == 2 * len(found)
    for block in found:
        assert block.title or block.language in ("bash", "text"), block


@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_start_no_ray(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that trains or compares is checked with --dry-run, make with -n, the rest runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # an earlier test may have opened a session, whose two CPUs would be taken for the cluster
    monkeypatch.setattr("sppo_ray.launch.cluster.session_is_open", lambda: False)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        for command in block.commands:
            program, *words = command.removeprefix(".venv/bin/").split()
            if program == "make":
                done = subprocess.run(
                    ["make", "-n", *words], cwd=REPOSITORY, capture_output=True, check=False
                )
                assert done.returncode == 0, done.stderr
            elif program == "python":
                subprocess.run([sys.executable, *words], check=True)
            elif words[0] in ("train", "compare"):
                words = [word for word in words if word != "--resume"]  # there is no run yet
                assert _exit_code([*words, "--dry-run"]) == 0, f"{command}: {capsys.readouterr()}"
            elif words[0] in ("plan", "recipes"):
                assert _exit_code(words) == 0, f"{command}: {capsys.readouterr()}"
            else:
                assert words[0] in ("serve", "eval"), command


def _exit_code(words: list[str]) -> int:
    try:
        return main(words) or 0
    except SystemExit as ended:
        return int(ended.code or 0)
