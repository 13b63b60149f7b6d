"""Rewards from a generative judge behind an OpenAI-compatible API.

    ScoreRequest --rubric--> question --POST /chat/completions--> reply --parse_verdict--> N --> reward

The judge reads text that the policy wrote, so its reply is parsed strictly: only the last line
counts, and what is no verdict is an error, never a score. Equal questions are asked once.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import httpx
from pydantic import SecretStr

from sppo_ray.config import JudgeReward
from sppo_ray.config.reward_models import PLACEHOLDERS
from sppo_ray.errors import UserError
from sppo_ray.redaction import HIDDEN, redact
from sppo_ray.rewards.extract import without_thinking
from sppo_ray.rewards.model import read_response, read_turns
from sppo_ray.types import ScoreRequest, Verdict

REACH_S = 10.0
"""Deadline of `require_judge`."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_RETRIED = (408, 429, 500, 502, 503, 504)
_VERDICT = re.compile(r"Verdict: (-?[0-9]{1,9}(?:\.[0-9]{1,9})?)")
_PLACE = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")


class JudgeFailed(Exception):
    """The judge gave no verdict; the text is the reason."""


class JudgeScorer:
    """Asks the judge for each response. A sample without a verdict is an error."""

    def __init__(
        self,
        settings: JudgeReward,
        key: SecretStr | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._key = key
        self._http = httpx.AsyncClient(
            headers=_headers(key),
            timeout=settings.timeout_s,
            limits=httpx.Limits(max_connections=settings.concurrency),
            transport=transport,
        )
        self._free = asyncio.Semaphore(settings.concurrency)
        self._asked: OrderedDict[bytes, asyncio.Task[float]] = OrderedDict()  # by hash of the question
        self._counts = {"scored": 0, "errors": 0, "requests": 0, "cached": 0}

    async def ready(self) -> None:
        """Do nothing: `require_judge` has reached the judge."""

    async def score_all(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        return list(await asyncio.gather(*(self._score(request) for request in requests)))

    def counts(self) -> Mapping[str, int]:
        """Verdicts, errors, requests of the API, and samples that needed none."""
        return dict(self._counts)

    async def close(self) -> None:
        await self._http.aclose()

    async def _score(self, request: ScoreRequest) -> Verdict:
        started = time.perf_counter()
        try:
            score = await self._verdict_on(question_of(request, self._settings))
        except JudgeFailed as failure:
            reason, score = f"error: judge: {failure}", None
        self._counts["scored"] += 1
        self._counts["errors"] += score is None
        seconds = time.perf_counter() - started
        if score is None:
            return Verdict(None, reason, seconds)
        low, high = self._settings.scale
        return Verdict((score - low) / (high - low), "judged", seconds, parts={"score": score})

    async def _verdict_on(self, question: str) -> float:
        """Return the verdict, from the cache if it has it. A failure is not kept."""
        name = sha256(question.encode()).digest()
        task = self._asked.get(name)
        if task is None:
            task = self._asked[name] = asyncio.ensure_future(self._ask(question))
        else:
            self._counts["cached"] += 1
            self._asked.move_to_end(name)
        try:
            return await asyncio.shield(task)
        except JudgeFailed:
            self._asked.pop(name, None)
            raise
        finally:
            while len(self._asked) > self._settings.cache and next(iter(self._asked.values())).done():
                self._asked.popitem(last=False)

    async def _ask(self, question: str) -> float:
        try:
            async with asyncio.timeout(self._settings.deadline_s):
                return parse_verdict(await self._reply(question), self._settings.scale)
        except TimeoutError:
            raise JudgeFailed(f"no verdict within {self._settings.deadline_s:g} s") from None

    async def _reply(self, question: str) -> str:
        wait_s = _FIRST_WAIT_S
        for attempt in range(self._settings.retries + 1):
            try:
                async with self._free:
                    self._counts["requests"] += 1
                    response = await self._http.post(
                        f"{self._settings.url}/chat/completions", json=self._body(question)
                    )
            except httpx.HTTPError as error:
                failure, asked_s = self._safe(f"{type(error).__name__}: {error}"), 0.0
            else:
                if response.status_code == 200:
                    return _content(response)
                failure, asked_s = f"HTTP {response.status_code}", _retry_after(response)
                if response.status_code not in _RETRIED:
                    raise JudgeFailed(f"{failure}: {self._safe(response.text[:200])}")
            if attempt < self._settings.retries:
                await asyncio.sleep(max(asked_s, wait_s * random.uniform(0.5, 1.0)))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        raise JudgeFailed(f"{failure}, {self._settings.retries + 1} times")

    def _body(self, question: str) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self._settings.max_tokens,
            "temperature": self._settings.temperature,
        }

    def _safe(self, text: str) -> str:
        """Return text of a server or of httpx without keys."""
        key = "" if self._key is None else self._key.get_secret_value()
        return redact(text.replace(key, HIDDEN) if key else text)


_SPECIAL_TOKEN = re.compile(
    r"<\|[^<>|]{1,40}\|>|<｜[^<>｜]{1,40}｜>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?(?:bos|eos)>",
    re.IGNORECASE,
)
"""Of chat templates. A server that renders a template to text would take them for the end of the
user's turn, and what follows for a reply of the judge.
"""


def question_of(request: ScoreRequest, settings: JudgeReward) -> str:
    """Fill the rubric, and add the form of the verdict."""
    values = {
        "prompt": _prompt_of(request),
        "response": _SPECIAL_TOKEN.sub(" ", read_response(request)),
        "ground_truth": request.ground_truth,
    }
    low, high = settings.scale
    asked = _PLACE.sub(lambda found: values[found[1]], settings.rubric)
    form = f"End your reply with one line: Verdict: N, where N is a number from {low:g} to {high:g}."
    # a lone surrogate of the data is no Unicode, and could not be sent
    return f"{asked}\n\n{form}".encode(errors="replace").decode()


def parse_verdict(reply: str, scale: tuple[float, float]) -> float:
    """Return the number in the last line of a reply. Raises JudgeFailed for any other last line,
    and for a number outside the scale. Earlier lines, which may quote the response, do not count.
    """
    lines = without_thinking(reply).strip().split("\n")  # of a quoted response: it may have U+2028
    found = _VERDICT.fullmatch(lines[-1].strip()) if lines else None
    if found is None:
        raise JudgeFailed("no verdict in the last line of its reply")
    verdict = float(found[1])
    if not scale[0] <= verdict <= scale[1]:
        raise JudgeFailed(f"its verdict is outside {scale[0]:g} to {scale[1]:g}")
    return verdict


def require_judge(settings: JudgeReward, key: SecretStr | None) -> None:
    """Reach the API before anything else starts. Raises UserError when it does not answer, refuses
    the key or does not serve the model.
    """
    name = f"judge {settings.url}"
    try:
        response = httpx.get(f"{settings.url}/models", headers=_headers(key), timeout=REACH_S)
    except httpx.HTTPError as error:
        raise UserError(
            f"{name}: cannot be reached ({redact(str(error)) or type(error).__name__}): start it, or "
            "correct the url of reward.function"
        ) from None
    if response.status_code in (401, 403):
        raise UserError(
            f"{name}: answers HTTP {response.status_code}: set key_variable to the environment "
            "variable with its key, and that variable to a key that is valid"
        )
    if response.status_code >= 500:
        raise UserError(f"{name}: answers HTTP {response.status_code}: wait until it is up, or repair it")
    served = _served(response)
    if served and settings.model not in served:
        raise UserError(
            f"{name}: it does not serve {settings.model}; it serves {', '.join(sorted(served)[:10])}: "
            "correct the model of reward.function"
        )


def _headers(key: SecretStr | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}


def _served(response: httpx.Response) -> set[str]:
    """Return the names of the served models; empty when the API does not say."""
    try:
        return {str(entry["id"]) for entry in response.json()["data"]}
    except (ValueError, TypeError, KeyError):
        return set()


def _content(response: httpx.Response) -> str:
    try:
        choice = response.json()["choices"][0]
        content, ending = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise JudgeFailed("a reply that is no chat completion") from None
    if ending == "length":
        raise JudgeFailed("its reply was cut off at max_tokens")
    if not isinstance(content, str):
        raise JudgeFailed("a reply without text")
    return content


def _retry_after(response: httpx.Response) -> float:
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return min(seconds, _LONGEST_WAIT_S) if math.isfinite(seconds) else 0.0


def _prompt_of(request: ScoreRequest) -> str:
    """Return what the user wrote; of several turns, each with its role."""
    turns = [message for message in request.messages if message["role"] != "system"]
    if request.turns:
        turns = [*(turns or [{"role": "user", "content": request.prompt}]), *read_turns(request)]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns) or request.prompt
