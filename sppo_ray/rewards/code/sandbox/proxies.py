"""Objects that stand for objects of the program in the tests. Standard library only: see
`confine`.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

    Link = Any  # `remote.Link`, which imports this module

_SOME_OBJECT = "<an object of the program>"


class Remote:
    """A proxy for an object of the program. It can be called, and its attributes, items and text be
    read, but it gives no verdict. `is_class`: a class under test; calling it returns an `Instance`.
    `name`: of a function or class under test.

    Its own names begin with `_sppo_`: all others are the program's.
    """

    __doc__ = property(lambda self: self._sppo_link.do("attribute", self._sppo_number, "__doc__"))  # type: ignore[assignment]

    def __init__(self, link: Link, number: int, *, is_class: bool = False, name: str = "") -> None:
        self.__dict__.update(_sppo_link=link, _sppo_number=number, _sppo_is_class=is_class, _sppo_name=name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        self._sppo_link.calls += self._sppo_is_class  # a constant of a class is asked for like a value
        return self._sppo_link.do("attribute", self._sppo_number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._sppo_link.do("set", self._sppo_number, name, value)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._sppo_made(self._sppo_link.call(self._sppo_number, args, kwargs, in_place=False))

    def _sppo_in_place(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it when the tests do not use the value: it may change its arguments."""
        return self._sppo_made(self._sppo_link.call(self._sppo_number, args, kwargs, in_place=True))

    def _sppo_made(self, value: Any) -> Any:
        return self._sppo_link.instance(value) if self._sppo_is_class else value

    def __instancecheck__(self, one: Any) -> bool:
        if isinstance(one, BaseException):
            return self._sppo_name in getattr(one, "_program_names", ())
        if not isinstance(one, Remote):  # a copy of an object of a class that extends a built-in one
            return type(one).__name__ == self._sppo_name
        return self._sppo_link.do("made by", self._sppo_number, one) is True

    def __subclasscheck__(self, one: Any) -> bool:
        if isinstance(one, type):
            return self._sppo_name in getattr(one, "_program_names", ())
        return isinstance(one, Remote) and self._sppo_link.do("base of", self._sppo_number, one) is True

    def __bool__(self) -> bool:
        value = self._sppo_read("truth")
        if value is not None and type(value) is not bool:
            raise self._sppo_link.refuse()
        return value is not False

    def __iter__(self) -> Iterator[Any]:
        """Of its own values, which may be endless: they are fetched as they are needed. An object
        that is its own iterator keeps those that the tests do not read.
        """
        if not self._sppo_link.reads_objects:
            raise self._sppo_link.refuse()
        number, is_own = self._sppo_link.iterator(self._sppo_number)
        if is_own:
            return self._sppo_link.instance(self)
        return RemoteIterator(self._sppo_link, number, is_generator=False)

    def __len__(self) -> int:
        return self._sppo_plain("length", int)

    def __str__(self) -> str:
        return self._sppo_plain("text", str) if self._sppo_link.reads_objects else _SOME_OBJECT

    def __repr__(self) -> str:
        return self._sppo_plain("representation", str) if self._sppo_link.reads_objects else _SOME_OBJECT

    def __getitem__(self, key: Any) -> Any:
        return self._sppo_read("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._sppo_link.do("set item", self._sppo_number, key, value)

    def __enter__(self) -> Any:
        value = self._sppo_link.do("enter", self._sppo_number)
        return self._sppo_link.instance(value) if isinstance(self, Instance) else value

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> bool:
        """It learns of an ordinary exception. It hides one that the tests raised themselves, but
        neither a failed assertion nor an exception of its own: an assertion might be skipped.
        """
        told = error if isinstance(error, Exception) else None
        is_failure = isinstance(told, AssertionError) or getattr(told, "_of_program", False)
        try:
            hides = self._sppo_link.leave(self._sppo_number, told)
        except Exception:  # boundary: its `__exit__` may raise anything
            if is_failure:  # which would replace it
                raise self._sppo_link.refuse() from None
            raise
        if hides and is_failure:
            raise self._sppo_link.refuse()
        return hides and told is not None

    def _sppo_read(self, what: str, *given: Any) -> Any:
        """An object says more only in tests of classes; a function is asked for a value."""
        if not self._sppo_link.reads_objects:
            raise self._sppo_link.refuse()
        return self._sppo_link.do(what, self._sppo_number, *given)

    def _sppo_plain(self, what: str, kind: type) -> Any:
        value = self._sppo_read(what)
        if type(value) is not kind:
            raise self._sppo_link.refuse()
        return value

    def _sppo_refuse(self, *_: Any) -> NoReturn:
        raise self._sppo_link.refuse()

    def _sppo_differs_from(self, other: object) -> bool:
        """False, where its class says so: it may differ from a plain value, but equal none."""
        if (
            self._sppo_link.can_send(other)
            and self._sppo_link.do("equal", self._sppo_number, other) is not False
        ):
            raise self._sppo_link.refuse()
        return False

    def _sppo_is_itself_only(self) -> bool:
        """Whether its class leaves `==` to identity: then the tests decide, and no verdict of the
        program is asked for.
        """
        link = self._sppo_link
        return link.reads_objects and link.do("equal by identity", self._sppo_number) is True

    def _sppo_are_told_apart(self, other: Remote) -> bool:
        return self._sppo_is_itself_only() and other._sppo_is_itself_only()

    def __eq__(self, other: object) -> bool:
        if other is None:
            return self._sppo_differs_from(other) if self._sppo_link.reads_objects else False
        if other is self and self._sppo_link.reads_objects:
            return True
        if isinstance(other, Remote) and self._sppo_are_told_apart(other):
            return False
        if isinstance(other, Instance):
            return other == self
        return self._sppo_refuse()

    def __hash__(self) -> int:
        return hash(self._sppo_number) if self._sppo_is_itself_only() else self._sppo_refuse()

    __contains__ = __lt__ = __le__ = __gt__ = __ge__ = _sppo_refuse  # type: ignore[assignment]


class Instance(Remote):
    """An object that the tests created from a class under test; its own methods are used. A verdict
    (`in`, ==, <, truth) counts only in tests that need both answers.
    """

    def __next__(self) -> Any:
        values, ended = self._sppo_link.following(self._sppo_number, 1)
        if not values:
            raise ended or self._sppo_link.gone()
        return values[0]

    def __delitem__(self, key: Any) -> None:
        self._sppo_link.do("delete item", self._sppo_number, key)

    def __delattr__(self, name: str) -> None:
        self._sppo_link.do("delete", self._sppo_number, name)

    def __format__(self, form: str) -> str:
        value = self._sppo_read("format", form)
        if type(value) is not str:
            raise self._sppo_link.refuse()
        return value

    def __int__(self) -> int:
        return self._sppo_plain("int", int)

    def __float__(self) -> float:
        return self._sppo_plain("float", float)

    def __index__(self) -> int:
        return self._sppo_plain("index", int)

    def __bytes__(self) -> bytes:
        return self._sppo_plain("bytes", bytes)

    def __contains__(self, one: Any) -> bool:
        return self._sppo_judge("has", one)

    def __bool__(self) -> bool:
        """Without a method of its class for it, an object is true, and that is no verdict."""
        return True if self._sppo_link.do("truth", self._sppo_number) is None else self._sppo_judge("truth")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote):
            if self._sppo_are_told_apart(other):
                return self is other
            return self._sppo_judge("equal", other)
        contents = self._sppo_plain("contents", list)
        if contents:
            value = self._sppo_one_of(contents) == other
            self._sppo_must_say("equal", other, value)
            return value
        return self._sppo_differs_from(other)

    def _sppo_must_say(self, what: str, other: object, value: bool) -> None:
        """A class that extends a list has to agree with its contents."""
        link = self._sppo_link
        if link.can_send(other) and link.do(what, self._sppo_number, other) is not value:
            raise link.refuse()

    def _sppo_one_of(self, contents: list[Any]) -> Any:
        """What a container of the program holds."""
        if len(contents) > 1 or type(contents[0]) not in (list, dict, set, deque, tuple):
            raise self._sppo_link.refuse()
        return contents[0]

    def __ne__(self, other: object) -> bool:
        if not isinstance(other, Remote) or self._sppo_are_told_apart(other):
            value = not self == other
            if not isinstance(other, Remote):
                self._sppo_must_say("differ", other, value)
            return value
        return not self._sppo_judge("equal", other, negated=True)

    def __reversed__(self) -> Iterator[Any]:
        return iter(self._sppo_link.do("reversed", self._sppo_number))

    def __copy__(self) -> Any:
        return self._sppo_of_operation(self._sppo_link.do("copy", self._sppo_number))

    def __deepcopy__(self, _: Any) -> Any:
        return self._sppo_of_operation(self._sppo_link.do("deep copy", self._sppo_number))

    def __lt__(self, other: object) -> bool:
        return self._sppo_judge("less", other)

    def __le__(self, other: object) -> bool:
        return self._sppo_judge("less or equal", other)

    def __gt__(self, other: object) -> bool:
        return self._sppo_judge("greater", other)

    def __ge__(self, other: object) -> bool:
        return self._sppo_judge("greater or equal", other)

    __hash__ = Remote.__hash__

    def _sppo_judge(self, what: str, *other: object, negated: bool = False) -> bool:
        """Record its own verdict; the tests must get both True and False: see `Link.one_sided`."""
        value = self._sppo_link.do("differ" if negated else what, self._sppo_number, *other)
        if type(value) is not bool:
            raise self._sppo_link.refuse()
        value = value is not negated
        self._sppo_link.answers.setdefault(what, set()).add(value)
        self._sppo_link.judged += 1
        return value

    def _sppo_of_operation(self, value: Any) -> Any:
        return self._sppo_link.instance(value)


def _operator(name: str) -> Any:
    def operate(self: Instance, *other: Any) -> Any:
        link = self._sppo_link
        is_value = self._sppo_number in link.returned and not any(isinstance(one, Remote) for one in other)
        if is_value:  # of a method that was asked for a plain one: `abs(s.mean() - 2) < 1e-9`
            raise link.refuse()
        return self._sppo_of_operation(self._sppo_link.do("operator", self._sppo_number, name, *other))

    return operate


Instance.__doc__ = Remote.__dict__["__doc__"]
for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "matmul",
    "lshift",
    "rshift",
    "divmod",
):
    setattr(Instance, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(Instance, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(Instance, f"__i{_name}__", _operator(f"__i{_name}__"))
for _name in ("neg", "pos", "abs", "invert", "round"):
    setattr(Instance, f"__{_name}__", _operator(f"__{_name}__"))


def type_name(value: Any) -> Any:
    """`type(value).__name__`"""
    if type(value) not in (Remote, Instance):
        return type(value).__name__
    return value._sppo_link.do("type name", value._sppo_number)


class RemoteIterator:
    """An iterator or generator of the program. It may be endless: its values are fetched in growing
    batches, or `one_by_one` where the tests may see how far it is.
    """

    def __init__(self, link: Link, number: int, *, is_generator: bool, one_by_one: bool = False) -> None:
        self._link, self._sppo_number, self._batch, self._is_generator = link, number, 1, is_generator
        self._growth = 1 if one_by_one else 2
        self._values: list[Any] = []
        self._ended: BaseException | None = None

    @property
    def __class__(self) -> type:  # type: ignore[override]
        """For isinstance(g, types.GeneratorType)."""
        return _GENERATOR if self._is_generator else RemoteIterator

    def __iter__(self) -> RemoteIterator:
        return self

    def _refuse(self, *_: Any) -> NoReturn:
        raise self._link.refuse()

    __bool__ = __eq__ = __hash__ = _refuse  # type: ignore[assignment]

    def __contains__(self, one: Any) -> bool:
        return one in list(self)  # an endless one holds every number

    def __next__(self) -> Any:
        if not self._values and self._ended is None:
            values, self._ended = self._link.following(self._sppo_number, self._batch)
            self._values = values[::-1]
            self._batch = min(self._growth * self._batch, 1000)
            if not values and self._ended is None:
                raise self._link.gone()
        if self._values:
            return self._values.pop()
        ended, self._ended = self._ended, StopIteration()
        raise ended or StopIteration

    def send(self, value: Any) -> Any:
        return self._moved("send", value)

    def close(self) -> None:
        self._moved("close")
        self._ended = StopIteration()

    def _moved(self, what: str, *given: Any) -> Any:
        if not self._is_generator:
            raise AttributeError(what)
        return self._link.moved(self._sppo_number, what, *given)


_GENERATOR = type(one for one in ())
