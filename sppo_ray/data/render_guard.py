"""Limits time, memory and output length of rendering a chat template.

A chat template comes with a checkpoint and is not trusted. Transformers renders it in Jinja's
sandbox, without network and files. But it can loop: four nested `range`s within the sandbox's limit
would take a thousand years. So a second thread watches the rendering thread and raises
RenderTooLarge in it. This works because compiled templates are Python code. Single operations that
could block the interpreter for long are refused before rendering.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator

from jinja2 import Environment, TemplateSyntaxError, nodes

RENDER_S = 10.0  # limit of one call, plus RENDER_EACH_S for each of its prompts
RENDER_EACH_S = 0.05  # usual templates take 0.1 ms
GROWTH_BYTES = 2 << 30  # of the process during rendering
LONGEST_TEMPLATE = 1 << 18  # characters; the longest template in Transformers has 20,000
LONGEST_TEXT = 1 << 24  # characters
LARGEST_FACTOR = 1000
_LOOK_S = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")


class RenderTooLarge(Exception):
    """Rendering exceeded a limit."""


def problem_of(template: str) -> str | None:
    """Return why the template must not be rendered, or None."""
    if len(template) > LONGEST_TEMPLATE:
        return f"has {len(template)} characters, more than {LONGEST_TEMPLATE}"
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except (TemplateSyntaxError, RecursionError):
        return None  # may use a tag of Transformers; a real error is reported by rendering it
    if next(tree.find_all(nodes.Pow), None) is not None:
        return "raises to a power, which can take all memory at once"
    if any(_is_large(product) for product in tree.find_all(nodes.Mul)):
        return f"multiplies, and not by one number below {LARGEST_FACTOR}, which can take all memory at once"
    return None


def _is_large(product: nodes.Mul) -> bool:
    """Return False only if one side is a small number and neither side is a product."""
    sides = (product.left, product.right)
    small = [
        isinstance(side, nodes.Const) and isinstance(side.value, int) and side.value < LARGEST_FACTOR
        for side in sides
    ]
    return not any(small) or any(isinstance(side, nodes.Mul) for side in sides)


@contextlib.contextmanager
def bounded_rendering(prompts: int) -> Iterator[None]:
    """Raise RenderTooLarge in the block when it exceeds the limits for `prompts` prompts."""
    watch = _Watch(threading.get_ident(), RENDER_S + RENDER_EACH_S * prompts)
    watch.start()
    try:
        yield
    finally:
        watch.end()


class _Watch:
    """Checks time and memory of the process in its own thread."""

    def __init__(self, thread: int, seconds: float) -> None:
        self._thread = thread
        self._deadline, self._most = time.monotonic() + seconds, _resident() + GROWTH_BYTES
        self._over = threading.Event()
        # held while checking whether the other thread still renders
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._look, name="render-watch", daemon=True)

    def start(self) -> None:
        self._watcher.start()

    def end(self) -> None:
        with self._lock:
            self._over.set()
        self._watcher.join()
        _raise_in(self._thread, None)  # cancel an exception that has not been raised yet

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            if time.monotonic() > self._deadline or _resident() > self._most:
                with self._lock:
                    if not self._over.is_set():
                        _raise_in(self._thread, RenderTooLarge)
                return


def _raise_in(thread: int, error: type[Exception] | None) -> None:
    """Raise `error` in `thread` before its next instruction. None cancels a pending error."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )


def _resident() -> int:
    """Return the resident bytes of this process; 0 when the system does not report them."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0
