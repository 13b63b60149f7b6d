"""Trace which values in the tests come from which function of the program: approximate, by name."""

from __future__ import annotations

import ast
import builtins

from sppo_ray.rewards.code.sandbox import known
from sppo_ray.rewards.code.sandbox.aliases import unchangeable
from sppo_ray.rewards.code.sandbox.scopes import Scopes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

Sources = frozenset[str]
_NONE: Sources = frozenset()
_APPLY_THE_FIRST = frozenset({"map", "filter", "reduce", "partial", "starmap"})
_PRINTS = frozenset({"print", "str", "repr", "format", "isinstance", "append", "list", "tuple", "range"})
"""Calls in which values do not meet."""
_EQUAL = frozenset({"assertEqual", "assertEquals", "assertListEqual"})
_COMPARES = _EQUAL | {"array_equal", "allclose", "assert_array_equal", "assert_allclose"}
_MANY_READS = 100  # of one name; each call looks at all of them
_CHANGES = frozenset({"append", "appendleft", "extend", "add", "update", "put"})
_NONE_OR_NOT = frozenset({"assertIsNone", "assertIsNotNone"})
_TRUE_OR_NOT = frozenset({"assertTrue", "assertFalse"})


_SIGNS = (ast.expr_context, ast.operator, ast.cmpop, ast.unaryop)
_WITHOUT_INTEREST = (ast.Constant, ast.Name, ast.List, ast.Tuple, ast.Dict, *_SIGNS)


def is_class(name: str) -> bool:
    """Whether a called name is a class, by naming convention: tests do not declare it."""
    return name.rpartition(".")[2][:1].isupper()


def hide_literals(tree: ast.AST) -> bool:
    """Hide lists and dicts of plain values from `ast.walk`, because some tests hold 100,000
    numbers. They stay in the tree: `compile` finds children without their `_fields`. Returns
    whether `tree` is a plain value.
    """
    if isinstance(tree, ast.Constant):
        return True
    inner = [hide_literals(child) for child in ast.iter_child_nodes(tree) if not isinstance(child, _SIGNS)]
    if isinstance(tree, ast.UnaryOp):
        return all(inner)
    if isinstance(tree, (ast.List, ast.Tuple, ast.Set, ast.Dict)) and all(inner):
        tree._fields = ()
        return True
    return False


def is_literal(node: ast.AST) -> bool:
    """Whether it is a plain value: see `hide_literals`."""
    if isinstance(node, ast.UnaryOp):
        return is_literal(node.operand)
    return isinstance(node, ast.Constant) or (
        isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict)) and not node._fields
    )


class Flow:
    """`of(expression)`: the names among `subjects` that its value may come from. Rather too many
    than too few: `refuse_judges` must not miss one.
    """

    def __init__(self, tree: ast.Module, subjects: set[str], entry: str | None) -> None:
        self._subjects, self._all = subjects, frozenset(subjects)
        self._names: dict[ast.AST, frozenset[str]] = {}
        self._known: dict[str, Sources] = {name: self._all & {name} for name in subjects}
        self._nodes = [node for node in ast.walk(tree) if not isinstance(node, _WITHOUT_INTEREST)]
        self._functions: dict[str, list[ast.FunctionDef]] = {}
        for node in self._nodes:
            if isinstance(node, ast.FunctionDef):
                self._functions.setdefault(node.name, []).append(node)
        self._classes = {node.name for node in self._nodes if isinstance(node, ast.ClassDef)}
        self._keys = Scopes().of(tree)
        for check in self._functions.get("check", []) if entry is not None else []:
            for one in check.args.args[:1]:
                self._add(one, frozenset([entry or ""]))
        self._open_parameters()
        self._unchangeable = unchangeable(tree)
        self.in_place = {id(call) for call in self._without_a_use(tree)}
        size = -1
        while size != (size := sum(map(len, self._known.values()))):
            for node in self._nodes:
                self._follow(node)

    def of(self, *expressions: ast.AST | None) -> Sources:
        names = _NONE.union(*(self._names_in(one) for one in expressions if one is not None))
        return _NONE.union(*(self._known.get(name, _NONE) for name in names))

    def _without_a_use(self, tree: ast.Module) -> Iterator[ast.Call]:
        """Calls that may change the tests' lists, because no expected value can come from these:
        the value is not used, is only compared with None, or is the length of what is read
        (`row[:k]`). With one function under test, it may also be asserted to be true, or compared
        with a plain value.
        """
        is_alone = len(self._subjects) == 1
        alone = _NONE_OR_NOT | (_TRUE_OR_NOT if is_alone else frozenset())
        dropped: list[ast.expr] = []
        slices = set()
        raising = {id(node.body[-1]) for node in self._nodes if isinstance(node, ast.With) and _raises(node)}
        for node in self._nodes:
            sides: list[ast.expr] = []
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.Is, ast.IsNot)):
                sides = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and _name_of_call(node) in _EQUAL:
                sides = node.args[:2]
            elif isinstance(node, ast.Call) and _name_of_call(node) in alone:
                dropped += node.args[:1]
            elif isinstance(node, ast.Expr) and id(node) not in raising:
                dropped.append(node.value)
            elif is_alone and isinstance(node, ast.Assert):
                dropped.append(node.test)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
                slices.add((self._key(node.value), self._key(node.slice.upper)))
            is_known = is_literal if is_alone else _is_none
            if len(sides) == 2 and any(map(is_known, sides)):
                dropped += sides
        checked = {id(one) for one in dropped}
        read = {
            key
            for node, key in self._keys.items()
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and id(node) not in checked
        }
        for node in self._nodes:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                keys = {self._key(one) for one in node.targets}
                lengths = {(self._key(one), key) for one in _arguments(node.value) for key in keys}
                if (all(keys) and not keys & read) or lengths & slices:
                    dropped.append(node.value)
        yield from (one for one in dropped if isinstance(one, ast.Call))
        yield from self._with_compared_arguments()

    def _with_compared_arguments(self) -> Iterator[ast.Call]:
        """Calls whose arguments the tests only compare afterwards: `r = f(row)`, then
        `row == [2, 1]` or `row[i] == due[i]`. Whether the function changes them is what the tests
        ask.
        """
        reads: dict[str, list[ast.Name]] = {}
        for node, key in self._keys.items():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                reads.setdefault(key, []).append(node)
        results: dict[int, set[str]] = {}
        compared: dict[int, set[str]] = {}  # name -> what it is compared with
        pinned: set[str] = set()  # compared with a plain value as a whole
        copied, shown = set(), set()
        passed: dict[int, str] = {}
        calls: list[ast.Call] = []
        for node in self._nodes:
            sides: list[ast.expr] = []
            if isinstance(node, ast.Compare) and len(node.ops) == 1:
                if isinstance(node.ops[0], ast.Eq):
                    sides = [node.left, *node.comparators]
                elif isinstance(node.ops[0], (ast.Is, ast.IsNot)):
                    shown.update(map(id, (node.left, *node.comparators)))
            elif isinstance(node, ast.Call):
                calls.append(node)
                passed.update((id(one), ast.dump(node.func)) for one in _arguments(node))
                copied.update(map(id, _arguments(node)))
                if _name_of_call(node) in _COMPARES:
                    sides = node.args[:2]
                elif _name_of_call(node) in ("assertIs", "assertIsNot"):
                    shown.update(map(id, node.args[:2]))
            elif isinstance(node, (ast.Subscript, ast.Attribute)):
                copied.add(id(node.value))
            elif isinstance(node, ast.FormattedValue):
                shown.add(id(node.value))
            elif isinstance(node, ast.Assign):
                keys = set().union(*map(self._names_in, node.targets))
                results.update((id(one), keys) for one in ast.walk(node.value) if isinstance(one, ast.Call))
            for one, other in zip(sides, sides[::-1], strict=True):
                compared[id(_read_from(one))] = set(self._names_in(other))
                if isinstance(one, ast.Name) and is_literal(other):
                    pinned.add(self._key(one))
        for call in calls:
            end = call.end_lineno or 0, call.end_col_offset or 0
            given = [one for one in _arguments(call) if isinstance(one, ast.Name)]
            of_program = results.get(id(call), set()) - pinned  # `r == [1, 2]` says what `row == r` has to be
            taken = self._subjects | of_program | {self._key(one) for one in given}
            function = ast.dump(call.func)

            def is_harmless(read: ast.Name) -> bool:
                before = id(read) in copied and (read.lineno, read.col_offset) < end  # noqa: B023
                again = passed.get(id(read)) == function  # noqa: B023
                return before or again or id(read) in shown or is_compared(read)

            def is_compared(read: ast.Name) -> bool:
                return id(read) in compared and not compared[id(read)] & taken  # noqa: B023

            lists = [reads[self._key(one)] for one in given]
            if any(len(one) > _MANY_READS or not all(map(is_harmless, one)) for one in lists):
                continue
            if any(any(map(is_compared, one)) for one in lists):
                yield call

    def _key(self, node: ast.AST | None) -> str:
        return self._keys.get(node, node.id) if isinstance(node, ast.Name) else ""

    def _names_in(self, node: ast.AST) -> frozenset[str]:
        if isinstance(node, ast.Name):
            return frozenset([self._keys.get(node, node.id)])
        if (found := self._names.get(node)) is None:
            found = _NONE.union(*[self._names_in(one) for one in ast.iter_child_nodes(node)])
            if isinstance(node, ast.Attribute):
                found |= {"." + node.attr}
            self._names[node] = found
        return found

    def fed(self) -> set[str]:
        """Subjects that receive a value of another subject."""
        return {name for function, given in self._calls() if given - function for name in function}

    def refuse_judges(self, error: type[Exception]) -> None:
        """Raises `error` when a function of the program would judge, or receive, a value of another
        one.
        """
        if len(self._subjects) < 2:
            return
        for function, given in self._calls():
            if function and _functions(given - function):
                raise error(_JUDGED.format(", ".join(sorted(function)), ", ".join(sorted(given - function))))
        for sides in self._meetings():
            sides = [side for side in sides if side]
            together = _NONE.union(*sides)
            if len(sides) > 1 and len(together) > 1 and _functions(together):
                names = ", ".join(sorted(sides[0])), ", ".join(sorted(sides[1]))
                raise error(_JUDGED.format(*names))

    def refuse_own_methods(self, error: type[Exception]) -> None:
        """Raises `error` when the tests pass `found.append` of their own list to the program."""
        for node in self._nodes:
            if isinstance(node, ast.Call) and self.of(node.func):
                for one in _arguments(node):
                    if _is_change(one) and not self.of(one):
                        where = f"line {node.lineno}: "
                        raise error(f"{where}the tests pass a method of their own to the program")

    def _calls(self) -> Iterator[tuple[Sources, Sources]]:
        """Return for each call the sources of the function and of the arguments."""
        for node in self._nodes:
            if isinstance(node, ast.Call):
                given, name = _arguments(node), _name_of_call(node)
                if name in _APPLY_THE_FIRST and given:
                    yield self.of(given[0]), self.of(*given[1:])
                elif name in self._functions or name in self._classes:
                    continue  # what happens in there is read there
                elif not name.startswith("assert"):
                    yield self.of(node.func), self.of(*given)

    def _meetings(self) -> Iterator[list[Sources]]:
        """Return the sides of each operation on several values."""
        for node in self._nodes:
            if isinstance(node, ast.Compare):
                yield [self.of(node.left), self.of(*node.comparators)]
            elif isinstance(node, ast.BinOp):
                yield [self.of(node.left), self.of(node.right)]
            elif isinstance(node, ast.Subscript):
                yield [self.of(node.value), self.of(node.slice)]
            elif isinstance(node, (ast.Set, ast.Dict)):
                yield [self.of(one) for one in ast.iter_child_nodes(node)]
            elif isinstance(node, ast.Call) and not self.of(node.func):
                name = _name_of_call(node)
                if name.startswith("assert"):
                    yield [self.of(one) for one in node.args[:2]]
                elif name not in _PRINTS and name not in self._functions:
                    # the members of a list, as in set([f(1), g(2)]), meet too
                    yield [side for one in node.args for side in self._members(one)]

    def _members(self, node: ast.expr) -> list[Sources]:
        if isinstance(node, (ast.List, ast.Tuple)):
            return [side for one in node.elts for side in self._members(one)] if node._fields else []
        return [frozenset([one]) for one in self.of(node)]

    def _open_parameters(self) -> None:
        """A function that is handed on, a method that an operation calls, and a lambda may receive
        anything.
        """
        calls = [node for node in self._nodes if isinstance(node, ast.Call)]
        called = {id(node.func) for node in calls}
        inline = {id(one) for node in calls if _is_pure(_name_of_call(node)) for one in _arguments(node)}
        decorators = {
            id(inner)
            for node in self._nodes
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            for one in node.decorator_list
            for inner in ast.walk(one)
        }
        by_name = any(_name_of_call(node) in ("getattr", "methodcaller") for node in calls)
        names = [node for node in self._keys if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
        for node in [*names, *self._nodes]:
            if isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in called | decorators:
                for one in self._functions.get(_name(node), []):
                    self._receive(one, self._all)
            is_open = isinstance(node, ast.Lambda) and id(node) not in inline
            if is_open or (isinstance(node, ast.FunctionDef) and (by_name or _is_operation(node.name))):
                self._receive(node, self._all)

    def _receive(self, function: ast.FunctionDef | ast.Lambda, given: Sources) -> None:
        places = function.args
        for one in (*places.posonlyargs, *places.args, *places.kwonlyargs, places.vararg, places.kwarg):
            if one is not None and one.arg not in ("self", "cls"):
                self._add(one, given)

    def _follow(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)):
            self._bind(node.target, node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            for value in (
                node.iter.elts
                if isinstance(node.iter, (ast.List, ast.Tuple)) and node.iter._fields
                else [node.iter]
            ):
                self._bind(node.target, value)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._bind(node.optional_vars, node.context_expr)
        elif isinstance(node, ast.Try):
            for handler in node.handlers:
                self._add(handler, self.of(*node.body))
        elif isinstance(node, ast.FunctionDef):
            returned = [
                n.value for n in ast.walk(node) if isinstance(n, (ast.Return, ast.Yield, ast.YieldFrom))
            ]
            self._add(node.name, self.of(*returned))
            self._add("." + node.name, self.of(*returned))
            self._receive(node, self.of(*node.decorator_list))
            self._default(node)
        elif isinstance(node, ast.Lambda):
            self._default(node)
        if isinstance(node, ast.Call):
            if id(node) in self.in_place:
                self._changed_in_place(node)
            self._follow_call(node)

    def _default(self, node: ast.FunctionDef | ast.Lambda) -> None:
        places = [*node.args.posonlyargs, *node.args.args]
        for place, value in zip(reversed(places), reversed(node.args.defaults), strict=False):
            self._add(place, self.of(value))
        for place, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            self._add(place, self.of(value))

    def _follow_call(self, call: ast.Call) -> None:
        given, name = self.of(*_arguments(call)), _name_of_call(call)
        for keyword in call.keywords:
            if keyword.arg == "file":
                self._bind_sources(keyword.value, given)
        for one in [call.func, *_arguments(call)]:
            if isinstance(one, ast.Lambda):
                self._receive(one, given | self.of(call.func))
        for function in self._functions.get("__init__" if name in self._classes else name, []):
            self._pass_on(call, function)
        if name in self._classes:
            self._add("self", given)
        if not (_is_pure(name) or name.startswith("assert") or name in self._functions):
            self._put_into(call, given)

    def _pass_on(self, call: ast.Call, function: ast.FunctionDef) -> None:
        given = _arguments(call)
        if any(isinstance(one, ast.Starred) for one in call.args) or any(
            o.arg is None for o in call.keywords
        ):
            return self._receive(function, self.of(*given))
        places = [one for one in function.args.args if one.arg not in ("self", "cls")]
        for place, one in zip(places, call.args, strict=False):
            self._add(place, self.of(one))
        if len(call.args) > len(places) and function.args.vararg is not None:
            self._add(function.args.vararg, self.of(*call.args[len(places) :]))
        for keyword in call.keywords:
            for place in (*function.args.args, *function.args.kwonlyargs, function.args.kwarg):
                if place is not None and (place.arg == keyword.arg or place is function.args.kwarg):
                    self._add(place, self.of(keyword.value))

    def _put_into(self, call: ast.Call, given: Sources) -> None:
        """`found.append(f(x))` and `setattr(found, 'a', f(x))` put f's value into `found`."""
        if isinstance(call.func, ast.Attribute) and not known.is_known(_root(call.func.value)):
            self._bind_sources(call.func.value, given)
        for one in call.args if len(call.args) > 1 else []:
            self._bind_sources(one, given)

    def _changed_in_place(self, call: ast.Call) -> None:
        """`f(row)` and `f(row) is None` may change `row`."""
        for one in _arguments(call):
            fixed = isinstance(one, ast.Name) and one.id in self._unchangeable
            if not (fixed or _is_change(one)):
                self._bind_sources(one, self.of(call.func))

    def _bind_sources(self, target: ast.expr, sources: Sources) -> None:
        while isinstance(target, (ast.Attribute, ast.Subscript, ast.Starred)):
            if isinstance(target, ast.Attribute):
                self._add("." + target.attr, sources)
            target = target.value
        if isinstance(target, ast.Name) and target.id not in ("self", "cls"):
            self._add(target, sources)

    def _bind(self, target: ast.expr, *values: ast.expr | None) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            value = values[0] if len(values) == 1 else None
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
                for one, part in zip(target.elts, value.elts, strict=True):
                    self._bind(one, part)
            else:
                for one in target.elts:
                    self._bind(one, *values)
            return
        self._bind_sources(target, self.of(*values))

    def _add(self, name: str | ast.AST, sources: Sources) -> None:
        if not isinstance(name, str):
            plain = getattr(name, "id", None) or getattr(name, "arg", None) or getattr(name, "name", None)
            name = self._keys.get(name, plain or "")
        if name not in self._subjects and sources:
            self._known[name] = self._known.get(name, _NONE) | sources


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _root(node: ast.AST) -> str:
    """`np` of `np.linalg`; the last name of what is no plain chain of names."""
    start = node
    while isinstance(start, ast.Attribute):
        start = start.value
    return start.id if isinstance(start, ast.Name) and known.is_known(start.id) else _name(node)


def _name_of_call(node: ast.Call) -> str:
    return _name(node.func)


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(one.value for one in call.keywords)]


def _read_from(side: ast.expr) -> ast.expr:
    """`row` of `row`, `row[0]` and `len(row)`."""
    if isinstance(side, ast.Call) and _name_of_call(side) == "len" and len(side.args) == 1:
        return side.args[0]
    while isinstance(side, ast.Subscript):
        side = side.value
    return side


def _raises(node: ast.With) -> bool:
    """`with pytest.raises(...)`: the last statement has to raise."""
    calls = [one.context_expr for one in node.items if isinstance(one.context_expr, ast.Call)]
    return any(_name_of_call(one) in ("raises", "assertRaises", "assertRaisesRegex") for one in calls)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_change(node: ast.expr) -> bool:
    """Whether it is the method of a list that changes it."""
    return isinstance(node, ast.Attribute) and node.attr in _CHANGES


def _is_operation(name: str) -> bool:
    return name.startswith("__") and name not in ("__init__", "__post_init__")


def _is_pure(name: str) -> bool:
    """Whether the call puts no value into another."""
    changes = name.startswith(("heap", "insort", "setattr", "next"))
    return (known.is_known(name) or hasattr(builtins, name)) and not changes


def _functions(names: Sources) -> set[str]:
    return {name for name in names if not is_class(name)}


_JUDGED = (
    "{} of the program would judge what {} of it gives: put one of them into the tests, or name the function "
    "under test"
)
