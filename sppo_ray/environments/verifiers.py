"""Environments written for the package verifiers (PyPI, before release 0.3.2), turn by turn.

    reset    the environment's own rollout begins; its first request of the model --> first messages
    step     the action answers the request; what the next request adds           --> observation
             or: the rollout ends, and its rubric scores it                       --> reward

The package is not installed with this one; it is imported when the first episode begins. Rows are
those of data of type `environment`: row i is row i of the environment's data set, and with a seed of
`HELD_OUT_SEED` or more of its evaluation set.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sppo_ray.environments.base import Observation, Row

HELD_OUT_SEED = 1_000_000
"""Data with this seed, or a larger one, are rows of the evaluation set."""


class VerifiersEnvironment:
    """One episode. Environments that offer tools through the API, and messages that are not text,
    are refused.
    """

    def __init__(
        self, row: Row, seed: int, *, environment: str, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """`environment` and `arguments`: as of `verifiers.load_environment`."""
        self._row = row
        self._name, self._arguments = environment, json.dumps(dict(arguments or {}), sort_keys=True)
        self._requests: asyncio.Queue[tuple[list[dict[str, str]], asyncio.Future[str]]] = asyncio.Queue()
        self._answer: asyncio.Future[str] | None = None  # of the request that waits for the action
        self._read = 0  # messages that the policy has read or written
        self._rollout: asyncio.Task[Mapping[str, Any]] | None = None

    async def reset(self, seed: int) -> list[dict[str, str]]:
        """Begin the rollout; return the messages of its first request."""
        environment = _loaded(self._name, self._arguments)
        client = _client_type()(self._requests)
        self._rollout = asyncio.create_task(_scored(environment, _input(environment, self._row), client))
        messages = await self._next_request()
        if messages is None:
            raise RuntimeError(f"its rollout ends before the first action: {_failure(await self._rollout)}")
        self._read = len(messages)
        return messages

    async def step(self, action: str) -> Observation:
        """Answer the request of the model with the action."""
        assert self._answer is not None and self._rollout is not None
        self._answer.set_result(action)
        messages = await self._next_request()
        if messages is None:
            state = await self._rollout
            if state.get("error") is not None:
                raise RuntimeError(f"its rollout failed: {_failure(state)}")
            return Observation(reward=float(state["reward"]), done=True, reason=str(state["stop_condition"]))
        added = messages[self._read + 1 :]  # one is the action
        self._read = len(messages)
        if any(message["role"] != "user" for message in added):
            raise ValueError(f"it answers with messages of {[message['role'] for message in added]}")
        return Observation("\n\n".join(message["content"] for message in added))

    async def _next_request(self) -> list[dict[str, str]] | None:
        """Wait for a request of the model; None when the rollout has ended."""
        assert self._rollout is not None
        asked = asyncio.ensure_future(self._requests.get())
        await asyncio.wait({asked, self._rollout}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            asked.cancel()
            return None
        messages, self._answer = asked.result()
        return messages

    def __del__(self) -> None:
        if self._rollout is not None and not self._rollout.done():
            self._rollout.cancel()


@cache
def _loaded(name: str, arguments: str) -> Any:
    return _package().load_environment(name, **json.loads(arguments))


def _package() -> Any:
    try:
        package = importlib.import_module("verifiers")
    except ImportError:
        raise ImportError("the package verifiers is not installed: pip install 'verifiers<0.3.2'") from None
    if not hasattr(package, "MultiTurnEnv"):
        raise ImportError(
            f"verifiers {package.__version__} has no environments that are played turn by turn: pip install "
            "'verifiers<0.3.2', or write an environment of your own"
        )
    return package


def _input(environment: Any, row: Row) -> dict[str, Any]:
    is_held_out = int(row.extra["seed"]) >= HELD_OUT_SEED
    dataset = environment.get_eval_dataset() if is_held_out else environment.get_dataset()
    return dict(dataset[int(row.extra["index"]) % len(dataset)])


async def _scored(environment: Any, given: dict[str, Any], client: Any) -> Mapping[str, Any]:
    state = await environment.rollout(given, client, "policy", {})
    if state.get("error") is None:
        await environment.rubric.score_rollout(state)
    return state


def _failure(state: Mapping[str, Any]) -> str:
    error = state.get("error")
    cause = getattr(error, "__cause__", None) or error
    return f"{type(cause).__name__}: {cause}" if cause is not None else str(state.get("stop_condition"))


@cache
def _client_type() -> type:
    package, types = _package(), importlib.import_module("verifiers.types")

    class Policy(package.Client):  # type: ignore[misc, name-defined]
        """Passes requests on, and waits for their answers."""

        def setup_client(self, config: Any) -> Any:
            raise NotImplementedError("for clients that verifiers makes from a config; this one is given")

        async def to_native_tool(self, tool: Any) -> Any:
            raise ValueError("it offers tools through the API: give them to environment.type tools")

        async def to_native_prompt(self, messages: Sequence[Any]) -> tuple[list[dict[str, str]], dict]:
            return [_plain(message) for message in messages], {}

        async def get_native_response(self, prompt: Any, *given: Any, **more: Any) -> str:
            answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self.client.put_nowait((prompt, answer))
            return await answer

        async def raise_from_native_response(self, response: str) -> None:
            """A text is always a response."""

        async def close(self) -> None:
            """Nothing to close."""

        async def from_native_response(self, response: str) -> Any:
            message = types.ResponseMessage(content=response, finish_reason="stop", is_truncated=False)
            return types.Response(id="", created=0, model="policy", message=message)

    return Policy


def _plain(message: Any) -> dict[str, str]:
    if not isinstance(message.content, str):
        raise ValueError(f"a message of role {message.role} is no text")
    return {"role": message.role, "content": message.content}
