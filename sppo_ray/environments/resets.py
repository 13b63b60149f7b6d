"""The first messages of episodes, where an environment makes them (`reset`).

    rows of a source --processes of the driver: Environment(row, 0).reset(seed)--> rows with messages

They are made when a row is read, not when its episode begins, because prompts are measured, compared
with the held-out ones and valued by the critic before an engine generates anything.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sppo_ray.config.environment import EnvironmentSettings
from sppo_ray.environments.base import Row, StepRequest, text_of
from sppo_ray.environments.pool.pool import EnvironmentPool
from sppo_ray.errors import UserError
from sppo_ray.types import Example

_AT_ONCE = 16  # resets in one process; each has the environment's deadline


class Resets:
    """Replaces the messages of examples by those of `reset`. Its processes end with it, at the
    latest with this process.
    """

    def __init__(self, settings: EnvironmentSettings) -> None:
        self._pool = EnvironmentPool(settings)
        self._places = asyncio.Semaphore(_AT_ONCE * settings.processes)
        self._loop = asyncio.new_event_loop()
        # A thread of its own: the caller's may be running an event loop.
        self._thread = ThreadPoolExecutor(1, "resets")
        self.close = weakref.finalize(self, _close, self._pool, self._loop, self._thread)
        self.close.atexit = False  # executors are closed by then, and the processes end by themselves

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples with their first messages. Raises UserError naming a row for which
        the environment makes none.
        """
        work = _reset_all(self._pool, self._places, examples)
        return self._thread.submit(self._loop.run_until_complete, work).result()


async def _reset_all(
    pool: EnvironmentPool, places: asyncio.Semaphore, examples: Sequence[Example]
) -> list[Example]:
    async def reset(example: Example) -> Example:
        request = StepRequest(f"reset {example.id}", Row.before_reset(example), 0, ())
        async with places:
            result = await pool.step(request)
        if result.error:
            raise UserError(
                f"prompt {example.id}: the environment makes no first messages of it ({result.error}): fix "
                "its reset, or leave the row out"
            )
        return replace(example, messages=result.messages, row_text=text_of(example.messages))

    return await asyncio.gather(*(reset(example) for example in examples))


def _close(pool: EnvironmentPool, loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor) -> None:
    thread.submit(loop.run_until_complete, pool.close()).result()
    thread.submit(loop.close).result()
    thread.shutdown()
