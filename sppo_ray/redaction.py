"""Secrets never leave, and are not written down: their values and what looks like one are blacked out in logs, errors, events,
commands and what the REST server tells; a setting that holds one is refused.

A secret is the value of an environment variable that is named like one, or a text of a known form.
"""

from __future__ import annotations

import functools
import os
import re
import time
from typing import Any

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(
    r"(?i)(^|[_.-])(api[_-]?key|secret|password|passwd|credential|access[_-]?key|(auth|access|api|hf|hub|bearer)[_-]?token|token)s?$"
)
_SECRET_VARIABLE = re.compile(r"(?i)(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|CREDENTIAL)S?$")
_PATTERNS = (
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"\b(?:hf_|sppo_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abprs]-|AKIA)[A-Za-z0-9_-]{12,}"),
    re.compile(r"(?i)(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),  # user:password in a URL
    re.compile(
        r"(?i)(?<![A-Za-z0-9])((?:[A-Za-z0-9]+[_-])*(?:api[_-]?key|secret|password|passwd|access[_-]?key|auth[_-]?token|hf[_-]?token)"
        r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',;]{4,}"
    ),
)
_LOOK_S = 1.0  # a variable that changes its value is looked at again after that; one more or less, at once
_SHORTEST_REFUSED = 12  # characters of a secret whose presence in a setting is no coincidence
_CERTAIN = (
    re.compile(r"\b(?:hf_|ghp_|gho_|github_pat_|glpat-|AKIA)[A-Za-z0-9_]{16,}"),
    re.compile(r"://[^/\s:@]+:[^/\s@]+@"),
)


def holds_secret(text: str) -> bool:
    """Whether `text` certainly holds a secret, where `redact` blacks out at the slightest suspicion."""
    known = any(value in text for value in _known_values() if len(value) >= _SHORTEST_REFUSED)
    return known or any(pattern.search(text) for pattern in _CERTAIN)


def _known_values() -> tuple[str, ...]:
    return _values_in_environment(len(os.environ), int(time.monotonic() / _LOOK_S))


@functools.lru_cache(maxsize=1)
def _values_in_environment(size: int, second: int) -> tuple[str, ...]:
    """What this process's own environment holds as secrets; longest first, so that none is cut by another. To look through it
    costs more than all else of a line: that is done anew when `size` or `second` is another."""
    named = (value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8)
    return tuple(sorted(set(named), key=len, reverse=True))


def redact(text: str) -> str:
    """`text` with secrets blacked out."""
    for value in _known_values():
        text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: (found.group(1) if found.re.groups else "") + HIDDEN, text)
    return text


def redact_tree(node: Any, name: str = "") -> Any:
    """A copy of plain JSON with secrets blacked out: by the name of a key, and inside every text."""
    if isinstance(node, dict):
        return {redact(key) if isinstance(key, str) else key: redact_tree(child, str(key)) for key, child in node.items()}
    if isinstance(node, list):
        return [redact_tree(child, name) for child in node]
    if isinstance(node, str):
        return HIDDEN if node and _SECRET_NAME.search(name) else redact(node)
    return node
