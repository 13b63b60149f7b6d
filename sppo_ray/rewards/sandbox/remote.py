"""The program under test, as the tests see it: objects that stand for its objects. Standard library only: see `confine`."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sppo_ray.rewards.sandbox import wire

WAITING, RUNNING = b">", b"<"
"""First byte of the result file until the result is there: whose turn it is when time is up."""


class ProgramGone(BaseException):
    """The program ended or broke the protocol. A BaseException, so that no `except Exception` of a test swallows it."""


class Unsupported(BaseException):
    """The tests want something that only works beside the program in one process."""


class Link:
    """The program as the tests see it."""

    def __init__(self, connection: wire.Wire, result: int) -> None:
        self._wire, self._result, self.calls = connection, result, 0
        with self._its_turn():
            hello = self._wire.receive()
            self.names = {str(name) for name in hello["names"]}
            self.modules = {str(name): str(module) for name, module in hello["modules"].items()}
        self.all = Remote(self, 0)

    def do(self, what: str, on: int, /, *given: Any, **named: Any) -> Any:
        """One operation there; its value, or its exception raised here (a built-in one by name)."""
        message = {"do": what, "on": on, "given": self._encode(list(given)), "named": self._encode(named)}
        self.calls += what == "call"
        with self._its_turn():
            self._wire.send(message)
            reply = self._wire.receive()
            value, after = self._decode(reply.get("value")), self._decode(reply.get("args"))
        if "raised" in reply:
            raise _exception(str(reply["raised"]), str(reply.get("message", "")))
        if after is not None:
            _copy_back(given, after)
        return value

    @contextmanager
    def _its_turn(self) -> Iterator[None]:
        """What takes long or goes wrong within is the program's doing."""
        os.pwrite(self._result, WAITING, 0)
        try:
            yield
        except (wire.WireClosed, ValueError, TypeError, KeyError, AttributeError, RecursionError, ArithmeticError, MemoryError):
            raise ProgramGone from None
        finally:
            os.pwrite(self._result, RUNNING, 0)

    def _encode(self, value: Any) -> Any:
        return wire.encode(_numbered(value), _refuse)

    def _decode(self, data: Any) -> Any:
        return wire.decode(data, lambda number: Remote(self, int(number)))


class Remote:
    """Stands for an object of the program's. It equals nothing plain; two of them cannot be compared in trust."""

    def __init__(self, link: Link, number: int) -> None:
        self.__dict__.update(_link=link, _number=number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.do("attribute", self._number, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.do("call", self._number, *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._link.do("list", self._number))

    def __len__(self) -> int:
        return int(self._link.do("length", self._number))

    def __getitem__(self, key: Any) -> Any:
        return self._link.do("item", self._number, key)

    def __contains__(self, one: Any) -> bool:
        return self._link.do("has", self._number, one) is True

    def __bool__(self) -> bool:
        return self._link.do("truth", self._number) is True

    def __str__(self) -> str:
        text = self._link.do("text", self._number)
        return text if isinstance(text, str) else ""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote):
            raise Unsupported("the tests compare two objects of the program's own classes")
        return False

    __hash__ = object.__hash__

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise Unsupported("the tests change an object of the program's")


def _numbered(value: Any) -> Any:
    """Remotes as the numbers that the program knows them by."""
    if isinstance(value, Remote):
        return _Kept(value._number)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_numbered(one) for one in value)
    if type(value) is dict:
        return {key: _numbered(one) for key, one in value.items()}
    return value


class _Kept:
    def __init__(self, number: int) -> None:
        self.number = number


def _refuse(value: Any) -> int:
    if isinstance(value, _Kept):
        return value.number
    raise Unsupported(f"the tests pass an object of type {type(value).__name__} to the program")


def _copy_back(given: tuple[Any, ...], after: Any) -> None:
    """What a function that returned None did to its arguments: it sorts in place, say. Others cannot touch the tests' values."""
    if type(after) is not list or len(after) != len(given):
        raise ProgramGone
    for mine, theirs in zip(given, after, strict=True):
        if type(mine) is list and type(theirs) is list:
            mine[:] = theirs
        elif type(mine) in (dict, set) and type(theirs) is type(mine):
            mine.clear()
            mine.update(theirs)


def _exception(name: str, message: str) -> Exception:
    """The built-in exception of that name; a RuntimeError for others, and for those that would blame the tests."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, _NEVER_RAISED):
        return RuntimeError(f"{name}: {message}")
    return kind(message)


_NEVER_RAISED = (ImportError, SyntaxError, UnicodeError, BaseExceptionGroup)  # the last two need more than a message
