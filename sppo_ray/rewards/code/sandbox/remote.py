"""The program under test, as the tests see it: objects that stand for its objects. Standard library
only: see `confine`.
"""

from __future__ import annotations

import builtins
import itertools
import os
import sys
import time
from collections import deque

from sppo_ray.rewards.code.sandbox import arrays, extended, wire
from sppo_ray.rewards.code.sandbox.flow import is_class
from sppo_ray.rewards.code.sandbox.identity import Objects, alike
from sppo_ray.rewards.code.sandbox.known import ERROR_MODULES
from sppo_ray.rewards.code.sandbox.proxies import Instance, Remote, RemoteIterator

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_FIRST_BYTES = 1 << 20
WAITING, ALONE, INVOLVED = b">", b"<", b"="
"""First byte of the result file before the result is written. WAITING: for the program. ALONE: the
tests run and have received no value of the program. INVOLVED: the tests use a value of the program,
so the program is responsible for failures. ALONE is followed by the seconds of the program's start.
"""


class ProgramGone(BaseException):
    """The program ended or broke the protocol. A BaseException, so that no `except Exception` of a
    test swallows it.
    """


class NoPlainValue(BaseException):
    """The tests need a plain value but got an object of the program: that test has failed."""


class Unsupported(BaseException):
    """The tests need an operation that only works in the program's process."""


class Link:
    """The tests' connection to the program. `broken` and `unsupported` record events since they
    were reset, also when a test swallows the exception.
    """

    def __init__(self, connection: wire.Wire, result: int) -> None:
        self._wire, self._result, self.calls = connection, result, 0
        self.broken, self.unsupported = False, ""
        self.may_be_nan, self.with_arrays = True, False
        self.moves_generators = False  # whether the tests see how far a generator is
        self.hands_over = lambda: True  # whether the tests hand over objects of their own in any case
        self.is_gone = False
        self.answers: dict[str, set[bool]] = {}  # of the program's classes to `in`, ==, < and truth
        self.judged = 0
        self.reads_objects = False  # whether classes are under test
        self.extends = False  # whether these may extend a built-in one: see `extended`
        self._subjects: list[str] = []
        # of each name that the tests use as an exception, the names of its class and bases
        self._found: dict[str, list[str]] = {}
        self._proxies: dict[int, Remote] = {}
        self._values: dict[int, Any] = {}  # see `extended`
        self.returned: set[int] = set()  # instances that a method has returned
        self._shared = Objects(-1)
        self.with_identity = True  # whether containers are objects; else only their values count
        self.as_python = False  # whether every change of a container of the tests holds
        self.ignored = False  # whether one did not hold
        self._in_place = False  # whether the program may change containers of the tests
        self.exact = True  # whether numbers of NumPy stay such
        self.involved = False
        # exceptions of the program's that the tests name
        self.kinds: dict[str, type[Exception]] = {}
        self._by_class: dict[str, type[Exception]] = {}  # by the name of the class, which may have others

    def await_program(self, subjects: list[str], kinds: list[str], required: list[str]) -> None:
        """Let the program run its definitions and wait for them; its message is not read. Not
        before the tests are ready: it could take the processor from their start and imports.
        `subjects` are the functions and classes under test; calling one that is missing fails.
        `kinds` are names that the tests use as exceptions. Raises ProgramGone without one of the
        `required` names.
        """
        begun = time.monotonic()
        self._ask({"do": "start"})
        self._subjects = subjects
        settings = [["kinds", kinds], ["required", required], ["identity", self.with_identity]]
        named = {"dict": settings}
        reply = self._ask({"do": "find", "on": 0, "given": subjects, "named": named} | self._news())
        os.pwrite(self._result, b"%.2f" % (time.monotonic() - begun), 1)
        found = reply.get("kinds")
        if "raised" in reply or not isinstance(found, dict) or not set(found) <= set(kinds):
            raise self.gone()
        if any(not isinstance(names, list) or len(names) > wire.MAX_NAMES for names in found.values()):
            raise self.gone()  # forged: millions of them would take the time of the tests
        self._found = {name: _texts(names) for name, names in found.items()}

    def subject(self, name: str) -> Remote:
        """The function or class under test."""
        return Remote(self, 1 + self._subjects.index(name), is_class=is_class(name), name=name)

    def exceptions(self, names: dict[str, str]) -> dict[str, Any]:
        """The exceptions of the program that the tests name. One that it lacks stays undefined, and
        the program is at fault where the tests fail on that: `pytest.raises(Missing)`.
        """
        kinds = {name: real for name, real in names.items() if real in self._found}
        for real in sorted(kinds.values(), key=lambda real: len(self._found[real])):  # bases first
            if names_of := self._found[real]:
                try:
                    kind = type(real, self._bases(names_of[1:]), {"_program_names": names_of})
                    self.kinds[real] = self._by_class[names_of[0]] = kind
                except TypeError:  # no class has these bases: the program forged its answer
                    raise self.gone() from None
        # what a class extends, and whether it is there, is the program's
        self.involved = self.involved or bool(names)
        return {name: self.kinds.get(real, _NO_EXCEPTION) for name, real in kinds.items()}

    def _bases(self, names: list[str]) -> tuple[type[BaseException], ...]:
        """The nearest classes of these names that the tests know: named ones, or built in."""
        bases: list[type[BaseException]] = []
        for name in names:
            base = self.kinds.get(name) or _built_in(name)
            if base is not None and not any(issubclass(one, base) for one in bases):
                bases.append(base)
        return tuple(bases) or (Exception,)

    def do(self, what: str, on: int, /, *given: Any, **named: Any) -> Any:
        """Run one operation in the program; return its value, or raise its exception here (a
        built-in one by name).
        """
        return self._decode(self._reply(what, on, given, named).get("value"))

    def call(self, on: int, given: tuple[Any, ...], named: dict[str, Any], *, in_place: bool) -> Any:
        """Call a function. With `in_place`, it may change lists, dicts and sets that it gets."""
        self.calls += 1
        reply = self._reply("call in place" if in_place else "call", on, given, named)
        value = self._decode(reply.get("value"))
        if type(value) is Instance and on > len(self._subjects):
            self.returned.add(value._sppo_number)
        if in_place:
            self._in_place = True
            try:
                _copy_back(given, named, self._decode(reply.get("after")))
            finally:
                self._in_place = False
        return value

    def proxy(self, number: int, kind: type[Remote] | None = None) -> Remote:
        """The one proxy of an object, so that `is` holds."""
        found = self._proxies.get(number)
        if found is None or (kind is not None and type(found) is not kind):
            found = self._proxies[number] = (kind or Remote)(self, number)
        return found

    def _extended(self, number: int, plain: Any, names: list[Any]) -> Any:
        """The one value that stands for an object of the program, so that `is` holds. What a tuple
        holds may have changed. Only in tests of classes: a function's value is a plain one,
        whatever its process says.
        """
        if not self.extends:
            return plain
        if number not in self._values or isinstance(plain, tuple):
            self._values[number] = extended.make(self, number, plain, names)
        return self._values[number]

    def set_for_all(self, *what: Any, **named: Any) -> None:
        """Do in the program's process what the tests have done in theirs: see `told`. Until its
        answer is read, failures are the program's: it may have replaced the function.
        """
        before, self.involved = self.involved, True
        try:
            self._reply("set for all", 0, what, named)
        except Unsupported:  # the tests' own argument
            self.involved = before
            raise
        except BaseException:  # the program's own, SystemExit included
            raise self.gone() from None
        self.involved = before
        os.pwrite(self._result, INVOLVED if before else ALONE, 0)

    def instance(self, value: Any) -> Any:
        """The value, or an object of the program as one of a class under test."""
        return self.proxy(value._sppo_number, Instance) if type(value) is Remote else value

    def iterator(self, on: int) -> tuple[int, bool]:
        """The number of an iterator over an object, and whether it is the object itself."""
        made = self.do("iterator", on)
        if type(made) is not list or list(map(type, made)) != [int, bool]:
            raise self.gone()
        return made[0], made[1]

    def leave(self, on: int, error: Exception | None) -> bool:
        """Leave a `with` block; returns whether the object hides the exception."""
        given: list[Any] = []
        if error is not None:
            names = [self._real_name(one) for one in type(error).__mro__ if issubclass(one, Exception)]
            args = list(error.args)
            given = [names, args if self.can_send(args) else [str(error)]]
        hides = self.do("exit", on, *given)
        if type(hides) is not bool:
            raise self.gone()
        return hides

    def _real_name(self, kind: type[BaseException]) -> str:
        """The name of an exception class in the program: its own, of a module, or built in."""
        own = next((name for name, one in self.kinds.items() if one is kind), None)
        module = kind.__module__
        return own or (f"{module}:{kind.__name__}" if module in ERROR_MODULES else kind.__name__)

    def moved(self, on: int, what: str, *given: Any) -> Any:
        """`send` to a generator, or `close` it."""
        reply = self._reply(what, on, given, {})
        if reply.get("ended") is True:
            raise StopIteration(self._decode(reply.get("value")))
        return self._decode(reply.get("value"))

    def following(self, on: int, number: int) -> tuple[list[Any], BaseException | None]:
        """Return the next values of an iterator and its end: StopIteration or an exception of the
        program.
        """
        reply = self._reply("next", on, (number,), {})
        values = self._decode(reply.get("value"))
        if type(values) is not list:
            raise self.gone()
        ended = reply.get("ended")
        return values, StopIteration() if ended is True else self._exception(ended) if ended else None

    def gone(self) -> ProgramGone:
        self.broken = self.is_gone = True
        return ProgramGone()

    def refuse(self) -> NoPlainValue:
        self.broken = True
        return NoPlainValue()

    def unfit(self, why: str) -> Unsupported:
        self.unsupported = why
        return Unsupported(why)

    def one_sided(self, reached: int) -> bool:
        """Whether a class of the program may have passed `reached` assertions by always giving the
        same verdict. `in` and truth count together with other assertions; == and < do not, because
        they judge values of the class itself.
        """
        alone = self.judged >= reached
        return any(
            len(found) == 1 and (alone or what not in ("has", "truth"))
            for what, found in self.answers.items()
        )

    def _reply(self, what: str, on: int, given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        message = {"do": what, "on": on} | self._news()
        # the list and the dict of the arguments are no objects of the tests
        message["given"] = [self._encode(one) for one in given]
        message["named"] = {"dict": [[name, self._encode(one)] for name, one in named.items()]}
        reply = self._ask(message)
        for one in changed if isinstance(changed := reply.get("changed"), list) else ():
            self._decode(one)
        if "raised" in reply:
            raise self._exception(reply)
        return reply

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        os.pwrite(self._result, WAITING, 0)
        try:
            self._wire.send(message)
            # before the program is asked for values, a forged message must not take the tests' time
            first = message["do"] in ("start", "find")
            return self._wire.receive(_FIRST_BYTES) if first else self._wire.receive()
        except (wire.WireClosed, ValueError, RecursionError, MemoryError):
            raise self.gone() from None
        finally:
            self.involved = self.involved or message["do"] not in _BEFORE_VALUES
            os.pwrite(self._result, INVOLVED if self.involved else ALONE, 0)

    def can_send(self, value: Any) -> bool:
        """Whether the program can get this value."""

        def number(one: Any) -> int:
            if type(one) not in _PROXIES:
                raise TypeError
            return 0

        try:
            with wire.Deeper():
                wire.encode(value, number)
        except (TypeError, RecursionError):
            return False
        return True

    def _news(self) -> dict[str, Any]:
        """What the tests have changed, and no longer hold, since the last message."""
        changed = [
            self._encode(known.value) for known in self._shared.changed() if self.can_send(known.value)
        ]
        return {"changed": changed, "forget": self._shared.sweep()}

    def _same(self, number: int, contents: Any) -> Any:
        """The container of a number. One of the tests' own changes only in place; else it is
        itself where the program has left it as it was, or a copy.
        """
        own = self._shared.get(number)
        if number > 0 or ((self._in_place or self.as_python) and own is not None):
            return self._shared.received(number, contents)
        if type(own) is type(contents) and alike(own, contents):
            return own
        self.ignored = self.ignored or own is not None
        return contents

    def _encode(self, value: Any) -> Any:
        try:
            with wire.Deeper():
                number = self._shared.number if self.with_identity else None
                return wire.encode(value, self._number_of, number)
        except RecursionError:  # no test may expect it
            raise self.gone() from None

    def _number_of(self, value: Any) -> int | list[Any]:
        if type(value) in _PROXIES:
            return value._sppo_number
        if hasattr(type(value), "__next__") and type(value).__module__ in ("builtins", "itertools"):
            return self._drained(value)
        # `f(c.count)`, where the program gave a list for `c`, and `f(c.tzinfo)`, a date
        owner = getattr(value, "__self__", None)
        if type(owner) not in (type(None), type(os)) and type(owner).__module__ in _PLAIN_MODULES:
            raise self.refuse()
        if getattr(value, "_of_program", False):  # an exception
            raise self.refuse()
        may_come = self.involved and (_may_come_from_program(value) or not self.hands_over())
        if type(value).__module__ == "datetime" or may_come:
            raise self.refuse()
        raise self.unfit(f"the tests pass an object of type {type(value).__name__} to the program")

    def _drained(self, iterator: Iterator[Any]) -> list[Any]:
        """The values of an iterator of the tests; the program gets a fresh one."""
        values = list(itertools.islice(iterator, _MOST_VALUES + 1))
        if len(values) > _MOST_VALUES:
            if self.involved and not (type(iterator) in _ENDLESS and self.hands_over()):
                raise self.refuse()  # the program's own values may be that many
            raise self.unfit(f"the tests pass an iterator of more than {_MOST_VALUES:,} values")
        return [self._encode(one) for one in values]

    def _decode(self, data: Any) -> Any:
        try:
            with wire.Deeper():
                return wire.decode(
                    data,
                    lambda number: self.proxy(int(number)),
                    self._iterator,
                    None if self.may_be_nan else self._refuse_nan,
                    self._array,
                    self._same,
                    self.refuse,
                    self._extended,
                )
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            ArithmeticError,
            MemoryError,
        ):
            raise self.gone() from None

    def _array(self, dtype: str, values: Any, *shape: Any) -> Any:
        """Tests that do not name NumPy get no empty array, which would equal longer ones."""
        is_scalar = not isinstance(values, list)
        wanted = self.with_arrays or (self.exact and not arrays.is_empty(values))
        made = arrays.make(dtype, values, *shape) if wanted and (self.exact or not is_scalar) else values
        return arrays.widened(made) if hasattr(made, "dtype") else made

    def _iterator(self, kind: str, number: Any) -> RemoteIterator:
        is_generator = kind == "generator"
        return RemoteIterator(
            self, int(number), is_generator=is_generator, one_by_one=is_generator and self.moves_generators
        )

    def _refuse_nan(self, number: Any) -> None:
        """Tests that do not name NaN get none: `if abs(f(2) - 4) > 1e-6: raise` takes it for
        right.
        """
        raise self.refuse()

    def _exception(self, reply: Any) -> BaseException:
        """Return a built-in exception, or one that the tests name, by the names of the class and
        its bases; else a RuntimeError.

        Exceptions that change the tests' control flow are excluded: StopIteration ends a loop,
        ImportError would blame the tests.
        """
        names = reply.get("raised") if isinstance(reply, dict) else None
        names = _texts(names)
        kind = next((kind for kind in map(_built_in, names) if kind is not None), RuntimeError)
        named = next((self._by_class[name] for name in names if name in self._by_class), None)
        if kind is RuntimeError and named is None and "BaseException" in names and "Exception" not in names:
            return self.refuse()  # KeyboardInterrupt and the like end pytest: no test expects them
        message = str(reply.get("message", "")) if isinstance(reply, dict) else ""
        if named is not None:
            kind = named if issubclass(named, kind) else type(named.__name__, (named, kind), {})
        if names and names[0].rpartition(":")[2] != kind.__name__ and names[0].isidentifier():
            kind = type(names[0], (kind,), {})  # `type(e) is ValueError` does not hold for it
        error = kind.__new__(kind, message)  # __init__ may need more than a message
        self._add_attributes(error, reply.get("attributes") if isinstance(reply, dict) else None)
        text = reply.get("text") if isinstance(reply, dict) else None
        if isinstance(text, str) and text != str(error):
            error = _with_text(error, text)
        error._of_program, error._program_names = True, names  # type: ignore[attr-defined]
        if isinstance(error, SystemExit):
            error.code = error.args[0] if len(error.args) == 1 else error.args or None
        return error

    def _add_attributes(self, error: BaseException, data: Any) -> None:
        attributes = self._decode(data)
        for name, value in attributes.items() if type(attributes) is dict else ():
            if name == "args" and type(value) is list:
                error.args = tuple(value)
            elif name == "__notes__" and type(value) is list:
                error.__notes__ = [one for one in value if type(one) is str]
            elif type(name) is str and name.isidentifier() and not name.startswith("_"):
                error.__dict__.setdefault(name, value)


def _texts(names: Any) -> list[str]:
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _built_in(name: str) -> type[BaseException] | None:
    module, _, name = name.rpartition(":")
    holder = sys.modules.get(module) if module in ERROR_MODULES else None if module else builtins
    kind = getattr(holder, name, None)
    if not isinstance(kind, type) or issubclass(kind, _NEVER_RAISED):
        return None
    return kind if issubclass(kind, (Exception, SystemExit)) else None


def _with_text(error: BaseException, text: str) -> BaseException:
    """The exception with the text that its own `__str__` gives."""
    kind = type(error)
    other = type(kind.__name__, (kind,), {"__str__": lambda _: text})
    copy = other.__new__(other, *error.args)
    copy.__dict__.update(error.__dict__)
    return copy


_NEVER_RAISED = (StopIteration, StopAsyncIteration, ImportError, SyntaxError, BaseExceptionGroup)


_PLAIN_MODULES = ("builtins", "collections", "datetime", "decimal", "fractions", "numpy", wire.__name__)
"""Modules of the types that the wire carries."""
_NO_EXCEPTION = object()


_PROXIES = (Remote, Instance, RemoteIterator)
_BEFORE_VALUES = ("start", "find", "set for all")  # they give the tests no value of the program
_MOST_VALUES = 100_000
_ENDLESS = (itertools.count, itertools.cycle, itertools.repeat)


def _may_come_from_program(value: Any) -> bool:
    """Whether the tests may have made it of a value of the program: `type(r)`, a view of it."""
    if isinstance(value, type):
        module = value.__module__
        return not issubclass(value, BaseException) and (
            module in _PLAIN_MODULES or module == Remote.__module__
        )
    return type(value).__module__ in _PLAIN_MODULES and not callable(value)


def _copy_back(given: tuple[Any, ...], named: dict[str, Any], after: Any) -> None:
    """Copy a function's changes of its arguments back, e.g. after sorting in place."""
    if type(after) is not list or list(map(type, after)) != [list, dict] or len(after[0]) != len(given):
        return
    pairs = [*zip(given, after[0], strict=True), *((one, after[1].get(name)) for name, one in named.items())]
    for mine, theirs in pairs:
        if mine is theirs or type(mine) is not type(theirs):
            continue
        if type(mine) in (list, deque):
            mine.clear()
            mine.extend(theirs)
        elif isinstance(mine, (dict, set)):
            mine.clear()
            mine.update(theirs)
        elif type(mine).__name__ == "ndarray" and (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype):
            mine[...] = theirs
