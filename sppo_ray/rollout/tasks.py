"""Ends asyncio tasks. asyncio prints a stack trace for each error that is never retrieved."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel the tasks and wait until they end. Results and errors are dropped."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


def drop_task(task: asyncio.Future[Any]) -> None:
    """Cancel a task without waiting."""
    task.cancel()
    task.add_done_callback(mark_read)


def mark_read(task: asyncio.Future[Any]) -> None:
    """Mark the error of a finished task as retrieved. Awaiting the task still raises it."""
    if not task.cancelled():
        task.exception()


async def all_or_none(*work: Awaitable[T]) -> list[T]:
    """Wait for all of `work` and return the results. The first failure cancels the rest."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await end_tasks(tasks)
