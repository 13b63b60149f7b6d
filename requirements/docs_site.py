"""Hooks of MkDocs (mkdocs.yml).

A page of docs/ links to files of the repository, e.g. ../benchmarks/results/chaos.md. The site has
only the pages of docs/, so there such a link becomes its text and the path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# Pages that may be there: section of the navigation -> file -> title.
OPTIONAL = {
    "Use": {
        "library.md": "From Python",
        "tools.md": "Trackers, hub, reports",
        "environments.md": "Environments and tools",
    }
}
_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Add the optional pages that exist to the navigation."""
    for entry in config["nav"]:
        for section, pages in entry.items():
            for name, title in OPTIONAL.get(section, {}).items():
                listed = any(name in page.values() for page in pages)
                if not listed and (Path(config["docs_dir"]) / name).is_file():
                    pages.append({title: name})
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(_path_of, markdown)


def _path_of(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
    return f"{text} (`{path}`)" if text.strip("`") != path else f"`{path}`"
