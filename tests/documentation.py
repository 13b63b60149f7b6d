"""The code blocks of README.md and of the first four pages: files to write and commands to run.

A block with a title is that file, a block of bash is commands, a block of text is a picture. No
other kind is allowed on these pages, so that every block is tested.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/index.md", "docs/first-run.md", "docs/which-method.md", "docs/scale-up.md")
_BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    title: str  # the file's name, "" for commands
    text: str

    @property
    def commands(self) -> list[str]:
        """One a line, without comments."""
        if self.language != "bash":
            return []
        lines = (line.partition(" #")[0].strip() for line in self.text.replace("\\\n", " ").splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def blocks(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return [Block(*found.groups(default="")) for found in _BLOCK.finditer(text)]


def require_documented_metrics(run_dir: Path) -> None:
    """Every metric that the quickstart writes is on the page of metrics."""
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    patterns = [name for name in re.findall(r"`([^`\s]+)`", page) if "/" in name]
    written = {
        name
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        for name in json.loads(line)
    } - {"step", "time", "nonfinite"}
    assert [name for name in sorted(written) if not any(fnmatch(name, one) for one in patterns)] == []
