"""Values of classes under test that extend an immutable built-in one: `class Money(float)`. The
tests get a value of the built-in class whose methods and operators are those of the program, run in
its process. Standard library only: see `confine`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Link = Any  # `remote.Link`

BASES = (int, float, str, bytes, frozenset, tuple)
_ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "divmod", "matmul"),
    *("and", "or", "xor", "lshift", "rshift"),
)
_RETURNS: dict[str, type] = {
    **dict.fromkeys(("__str__", "__repr__", "__format__"), str),
    **dict.fromkeys(("__int__", "__index__", "__len__"), int),
    "__float__": float,
    "__bytes__": bytes,
}
_VERDICTS = {
    "__eq__": "equal",
    "__ne__": "differ",
    "__lt__": "less",
    "__le__": "less or equal",
    "__gt__": "greater",
    "__ge__": "greater or equal",
    "__contains__": "has",
    "__bool__": "truth",
}
_MAKERS = {"__new__", "__init__"}
_OPERATORS = {
    *(f"__{before}{name}__" for name in _ARITHMETIC for before in ("", "r", "i")),
    *(f"__{name}__" for name in ("neg", "pos", "abs", "invert", "round", "trunc", "floor", "ceil")),
    *("__getitem__", "__iter__", "__reversed__", "__call__"),
    *_RETURNS,
    *_VERDICTS,
}
_MOST_NAMES = 200


def own_names(kind: type, module: str) -> list[str] | None:
    """Return the methods and operators that a class of the program, whose module has this name, has
    of its own. None: it extends no built-in class of `BASES`, or a plain copy says all of it.
    """
    if not issubclass(kind, BASES):
        return None
    # classes made by `enum` and `namedtuple` have methods that no program wrote
    is_made = hasattr(kind, "__members__") or hasattr(kind, "_fields")
    found = {
        name
        for one in kind.__mro__
        if one.__module__ == module
        for name, what in vars(one).items()
        if not is_made or _is_written(what, one, module)
        if name in _OPERATORS | _MAKERS or (name[:1] != "_" and hasattr(what, "__get__"))
    }
    return sorted(found - _MAKERS)[:_MOST_NAMES] if found else None


def _is_written(what: Any, owner: type, module: str) -> bool:
    function = getattr(what, "fget", None) or getattr(what, "func", None) or what
    return not isinstance(what, owner) and getattr(function, "__module__", None) == module


def make(link: Link, number: int, plain: Any, names: Iterable[Any]) -> Any:
    """Return a value equal to `plain` that stands for the program's object of this number. Raises
    TypeError for a value of no such class.
    """
    base = next((one for one in BASES if isinstance(plain, one)), None)
    if base is None or isinstance(plain, bool):
        raise TypeError("no value of a class that extends one of BASES")
    own: dict[str, Any] = {"_sppo_link": link, "_sppo_number": number, "__getattr__": _attribute}
    for name in names:
        if name in _VERDICTS:
            own[name] = _verdict(name, base)
        elif name in _OPERATORS:
            own[name] = _operator(name)
        elif str(name).isidentifier() and name[0] != "_":
            own[name] = property(_reader(name))
    kind = type(plain)
    made = base.__new__(type(kind.__name__, (kind,), own | {"__hash__": base.__hash__}), plain)
    if hasattr(plain, "__dict__"):  # name and value of a member of an Enum
        vars(made).update(vars(plain))
    return made


def _attribute(value: Any, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return value._sppo_link.do("attribute", value._sppo_number, name)


def _reader(name: str) -> Callable[[Any], Any]:
    return lambda value: _attribute(value, name)


def _operator(name: str) -> Callable[..., Any]:
    def operate(value: Any, *other: Any) -> Any:
        made = value._sppo_link.do("operator", value._sppo_number, name, *other)
        if name in _RETURNS and type(made) is not _RETURNS[name]:
            raise value._sppo_link.refuse()
        return made

    return operate


def _verdict(name: str, base: type) -> Callable[..., Any]:
    """The program's own `==` has to agree with the built-in one. Where that has none, the tests
    must get both True and False: see `Link.one_sided`.
    """
    built_in = getattr(base, name, None)

    def judge(value: Any, *other: Any) -> Any:
        link = value._sppo_link
        expected = None if built_in is None else built_in(value, *other)
        if expected is NotImplemented:
            return expected
        if not link.can_send(other):
            if expected is None:  # nothing says it
                raise link.refuse()
            return expected
        found = link.do("operator", value._sppo_number, name, *other)
        if type(found) is not bool or expected not in (None, found):
            raise link.refuse()
        if expected is None:
            link.answers.setdefault(_VERDICTS[name], set()).add(found)
            link.judged += 1
        return found

    return judge
