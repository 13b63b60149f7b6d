"""Calls Ray actors with a deadline and translates Ray's errors to those of `protocols`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.weights.layout import WeightsRefused
from sppo_ray.errors import UserError
from sppo_ray.protocols import WorkerDied, WorkerFailure, WorkerTimeout

PING_TIMEOUT_S = 30.0


async def answer(worker: str, doing: str, reference: Awaitable[Any], timeout_s: float) -> Any:
    """Await a remote call. Raises WorkerTimeout after `timeout_s`, and the errors of
    `translated`.
    """
    with translated(worker, doing):
        try:
            return await asyncio.wait_for(awaited(reference), timeout_s)
        except RayTaskError:
            raise  # can also be a TimeoutError, namely one raised by the remote method
        except (TimeoutError, GetTimeoutError):
            raise WorkerTimeout(worker, f"gave no answer to {doing} in {timeout_s:.0f} s") from None


@contextmanager
def translated(worker: str, doing: str) -> Iterator[None]:
    """Translate Ray's errors in the block to WorkerDied, or WorkerFailure with the remote text.

    A remote UserError stays a UserError. A remote WeightsRefused becomes a UserError, because the
    published weights are wrong and restarting the engine would not help.
    """
    try:
        yield
    except (RayActorError, ActorUnavailableError) as error:
        raise WorkerDied(worker, f"died while {doing}: {_reason(error)}") from None
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, WeightsRefused)):
            named = str(error.cause) if worker in str(error.cause) else f"{worker}: {error.cause}"
            raise UserError(named) from None
        raise WorkerFailure(worker, f"failed at {doing}: {error}") from None
    except RayError as error:
        # e.g. an object was lost with its node, or an environment cannot be created
        raise WorkerFailure(
            worker, f"lost to Ray during {doing}: {type(error).__name__}: {_first_line(error)}"
        ) from None


async def awaited(reference: Awaitable[Any]) -> Any:
    return await reference


def _reason(error: BaseException) -> str:
    """Return the informative line of an error.

    It is the last line of the traceback if an actor's constructor failed, else the first line.
    """
    lines = str(error).strip().splitlines()
    return lines[-1] if len(lines) > 1 and "creation task" in lines[0] else _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def kill(handle: ActorHandle) -> None:
    ray.kill(handle, no_restart=True)
