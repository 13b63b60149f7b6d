"""Score a file of responses with the verifier that training uses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from sppo_ray.config import RewardSettings
from sppo_ray.errors import UserError
from sppo_ray.rewards.build import build_scorer, judge_keys
from sppo_ray.rewards.judge import require_judge
from sppo_ray.rewards.local import LocalModels
from sppo_ray.types import ScoreRequest, Verdict

_CHUNK = 512  # verdicts are printed in order, so a hanging sample delays at most this many


def score_file(path: str, settings: RewardSettings, out: TextIO) -> tuple[int, int]:
    """Score the lines {"response", "ground_truth"} (optional "extra", "source", "prompt") of a
    JSON-lines file.

    Writes one line {"reward", "reason", "seconds", "answer"} each, in order, with "parts" where the
    reward has any; reward is null where the verifier could not decide. Returns the numbers of
    scored and of such lines. Raises UserError naming file and line before anything is scored.
    """
    requests = read_requests(path)
    keys = judge_keys(settings)
    for judge in settings.judges:
        require_judge(judge, keys.get(judge.key_variable or ""))
    errors = asyncio.run(_score(requests, settings, out))
    return len(requests) - errors, errors


def read_requests(path: str) -> list[ScoreRequest]:
    """Read the file's samples. Raises UserError when it is missing, empty or malformed, naming the
    line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): give a JSON-lines file in UTF-8") from None
    requests = [
        _parse_line(line, f"{path}:{number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    if not requests:
        raise UserError(
            f'{path}: holds no samples: write one {{"response": ..., "ground_truth": ...}} a line'
        )
    return requests


def _parse_line(line: str, where: str) -> ScoreRequest:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}): write one object a line"
        ) from None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: a line is an object with response and ground_truth, found {type(row).__name__}"
        )
    extra = row.get("extra") or {}
    if not isinstance(extra, dict):
        raise UserError(f"{where}: extra is an object, found {type(extra).__name__}")
    return ScoreRequest(
        response=_text(row, "response", where),
        ground_truth=_text(row, "ground_truth", where),
        source=str(row.get("source", "")),
        prompt=str(row.get("prompt", "")),
        extra=extra,
    )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise UserError(f"{where}: has no {key!r}: each line needs response and ground_truth")
    if not isinstance(row[key], str):
        raise UserError(f"{where}: {key} is a {type(row[key]).__name__}, not a string: quote it")
    return row[key]


async def _score(requests: Sequence[ScoreRequest], settings: RewardSettings, out: TextIO) -> int:
    scorer = build_scorer(settings, LocalModels(), judge_keys(settings))
    errors = 0
    try:
        for chunk in _chunks(requests):
            for verdict in await scorer.score_all(chunk):
                out.write(_line(verdict))
                errors += verdict.is_error
            out.flush()
    finally:
        await scorer.close()
    return errors


def _chunks(requests: Sequence[ScoreRequest]) -> Iterator[Sequence[ScoreRequest]]:
    return (requests[start : start + _CHUNK] for start in range(0, len(requests), _CHUNK))


def _line(verdict: Verdict) -> str:
    row = asdict(verdict) | {"seconds": round(verdict.seconds, 6)}
    if not verdict.parts:
        del row["parts"]
    return json.dumps(row) + "\n"
