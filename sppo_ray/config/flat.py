"""Settings as one flat mapping: {"learner.optimizer.lr": 1e-6, "data.train.0.type": "jsonl"}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree of mappings and lists by their path; an empty one is a leaf."""
    return dict(_leaves("", tree))


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, (dict, list)) and node:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), child)
    else:
        yield prefix, node
