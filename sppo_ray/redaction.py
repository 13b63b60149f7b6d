"""Redact secrets in logs, errors, events, commands and REST responses; refuse settings and
submitted jobs that contain one.

A secret is the value of an environment variable with a secret-like name, or a text of a known form.

The patterns read untrusted text, so each takes linear time: it matches only at the start of a word
and does not backtrack (possessive `++` and bounded repetitions).
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Iterator
from typing import Any

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(
    r"(?i)(^|[_.-])(api[_-]?key|secret|password|passwd|credential|access[_-]?key|(auth|access|api|hf|hub|bearer)[_-]?token|token)s?$"
)
_SECRET_VARIABLE = re.compile(r"(?i)(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|CREDENTIAL)S?$")
# where a word of these characters begins: no pattern starts twice in one
_WORD = r"(?<![A-Za-z0-9_-])"
_JWT = _WORD + r"eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{4,}+"
_PRIVATE_KEY = r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
_IN_URL = r"(?<=://)[^/\s:@]{0,256}+:[^/\s@]{1,1024}+(?=@)"  # user:password
_PATTERNS = (
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}+"),
    re.compile(
        r"\b(?:hf_|sppo_|sk-|gh[oprsu]_|github_pat_|glpat-|npm_|xox[abeprs]-|AKIA|AIza|[rs]k_live_)[A-Za-z0-9_-]{12,}+"
    ),
    re.compile(_JWT),
    re.compile(_PRIVATE_KEY + r"[A-Za-z0-9+/=\s]{0,20000}+"),
    re.compile(_IN_URL),
    re.compile(
        r"(?i)(?<![A-Za-z0-9])((?:api[_-]?key|secret|password|passwd|access[_-]?key|auth[_-]?token|hf[_-]?token)"
        r"[\"']?\s{0,8}+[=:]\s{0,8}+[\"']?+)[^\s\"',;]{4,}+"
    ),
)
# a changed value is noticed after this time; an added or removed variable, at once
_LOOK_S = 1.0
_SHORTEST_REFUSED = 12  # minimum length of a secret whose presence in a setting is no coincidence
_CERTAIN = (
    re.compile(_WORD + r"(?:hf_|gh[oprsu]_|github_pat_|glpat-|npm_)[A-Za-z0-9_]{16,}+"),
    re.compile(_WORD + r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])"),
    re.compile(_WORD + r"AIza[A-Za-z0-9_-]{30,}+"),
    re.compile(_WORD + r"sk-(?:(?:ant|proj|svcacct|admin|or|lf)-[A-Za-z0-9_-]{12,}+|[A-Za-z0-9]{14,}+)"),
    re.compile(_WORD + r"[prs]k_(?:live|test)_[A-Za-z0-9]{10,}+"),
    re.compile(_WORD + r"xox[abeprs]-[A-Za-z0-9-]{10,}+"),
    # ours: /srv/sppo_ray_checkpoints is none
    re.compile(_WORD + r"sppo_(?=[a-z_-]{0,64}+[A-Z0-9])[A-Za-z0-9_-]{20,}+"),
    re.compile(_JWT),
    re.compile(_PRIVATE_KEY),
    re.compile(_IN_URL),
    re.compile(r"(?i)(?<![A-Za-z0-9])bearer (?=[A-Za-z._~+/=-]{0,200}+[0-9])[A-Za-z0-9._~+/=-]{16,}+"),
    re.compile(
        r"(?i)(?<![A-Za-z0-9])(?:api[_-]?key|secret|password|passwd|access[_-]?key|[a-z]{2,8}[_-]token)=[^\s\"',;]{6,}+"
    ),
)
_NAMED = re.compile(
    r"(?i)(?:^|[_.-])(?:password|passwd|passphrase|secret|(?:api|access|private|secret)[_-]?key|credentials?"
    r"|(?:(?:auth|access|api|hf|hub|bearer|refresh|session|secret|github|gitlab|wandb|ray)[_-]?)token)$|^token$|[.]token$"
)
_LONGEST_NAME = 200  # characters of a key that are looked at, from its end


def holds_secret(text: str) -> bool:
    """Whether `text` certainly holds a secret (`redact` also removes text that only looks like
    one).
    """
    known = any(value in text for value in _known_values() if len(value) >= _SHORTEST_REFUSED)
    return known or any(pattern.search(text) for pattern in _CERTAIN)


def secret_places(node: Any, place: str) -> Iterator[str]:
    """Return the places of secrets in plain JSON: in a key, in a text, or under a secret-like key.
    No place repeats a secret.

    `place` names the whole, e.g. body.
    """
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _secrets_of_entry(str(key), child, place)
    elif isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from secret_places(child, f"{place}.{number}")
    elif isinstance(node, str) and holds_secret(node):
        yield place


def _secrets_of_entry(key: str, child: Any, place: str) -> Iterator[str]:
    if holds_secret(key):
        yield f"{place} (the name of an entry)"
        return
    inner = f"{place}.{key[:_LONGEST_NAME]}"
    is_filled = child not in (None, "", False, True) and not isinstance(child, (dict, list))
    if is_filled and _NAMED.search(key[-_LONGEST_NAME:]):
        yield inner
    else:
        yield from secret_places(child, inner)


def _known_values() -> tuple[str, ...]:
    return _values_in_environment(len(os.environ), int(time.monotonic() / _LOOK_S))


@functools.lru_cache(maxsize=1)
def _values_in_environment(size: int, second: int) -> tuple[str, ...]:
    """Return the secrets in this process's environment, longest first, so that a shorter one does
    not cut a longer one. Reading the environment is the most expensive part of a line, so the
    result is cached for each `size` and `second`.
    """
    named = (value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8)
    return tuple(sorted(set(named), key=len, reverse=True))


def redact(text: str) -> str:
    """Return `text` with secrets redacted."""
    for value in _known_values():
        text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: (found.group(1) if found.re.groups else "") + HIDDEN, text)
    return text


def redact_tree(node: Any, name: str = "") -> Any:
    """Return a copy of plain JSON with secrets redacted: by the name of a key, and inside every
    text.
    """
    if isinstance(node, dict):
        return {
            redact(key) if isinstance(key, str) else key: redact_tree(child, str(key))
            for key, child in node.items()
        }
    if isinstance(node, list):
        return [redact_tree(child, name) for child in node]
    if isinstance(node, str):
        return HIDDEN if node and _SECRET_NAME.search(name[-_LONGEST_NAME:]) else redact(node)
    return node
