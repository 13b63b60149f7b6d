"""Rewrite the tests so that a program cannot pass a test by preventing it from running.

assert a == b                    counts that it was reached: a test in which none is reached has
                                 failed
for x in f(3): assert x > 0      a loop over a value of the program, and a branch on one, must reach
                                 an assertion at least once
sort(row)                        the value is thrown away: the program may change `row`, and only
                                 then
zip(f(xs), [1, 2])               strict, where a side comes from the program
try: ... except Exception: pass  hides neither a failure of the tests nor, where an assertion is
                                 skipped, an exception of the program
np.array(f()) == [1, 2]          NumPy repeats no empty array of the program
"""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox.aliases import aliases
from sppo_ray.rewards.code.sandbox.flow import Flow

REACHED, IN_PLACE, CAUGHT, TRIED = "_test_reached", "_test_in_place", "_test_caught", "_test_tried"
STARMAP, ALL, ZIP = "_test_starmap", "_test_all", "_test_zip"
ENTER, MARK, OPERATE, CHECKS = "_test_enter", "_test_mark", "_test_operate", "_test_checks"
TYPE_NAME = "_test_type_name"
"""Names of the functions that the changed code calls."""
_FAIL = ("assert", "fail", "raises", "exit")
_ENDLESS = frozenset({"count", "cycle", "repeat"})
_JUMPS = (ast.Return, ast.Break, ast.Continue)
_OPERATIONS = {
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Sub: "sub",
    ast.Add: "add",
    ast.Mult: "mul",
    ast.Div: "truediv",
}
_DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.Lambda)


def asserts(tree: ast.AST) -> bool:
    """Whether the code contains an assertion."""
    return any(isinstance(node, (ast.Assert, ast.Raise)) or _fails(node) for node in ast.walk(tree))


def expects(tree: ast.AST) -> bool:
    """Whether the code contains an assertion that a right program reaches: not `assert False`."""
    return any(
        (isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant))
        or _is_check(name_of_call(node))
        for node in ast.walk(tree)
    )


def asserting(tree: ast.Module) -> set[str]:
    """The names of the tests' functions and methods that contain or call an assertion, of variables
    that stand for such only, and of classes that assert when they are made.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    stands_for: dict[str, set[str]] = {}
    for name, function in aliases(tree):
        stands_for.setdefault(name, set()).add(function)
    names = {one.name for one in functions if expects(one)}
    while (
        more := (
            {one.name for one in functions if _calls(one, names)}
            | {name for name, of in stands_for.items() if of <= names}
        )
        - names
    ):
        names |= more
    for one in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        made = [of for of in one.body if isinstance(of, ast.FunctionDef) and of.name == "__init__"]
        names |= {one.name} if any(expects(of) or _calls(of, names) for of in made) else set()
    return names


def rewrite(tree: ast.Module, flow: Flow, *, numpy: bool) -> None:
    """Change the tests in place. `numpy`: they may use arrays."""
    rewriter = _Rewriter(flow, tree, numpy=numpy)
    rewriter.visit(tree)
    rewriter.watch(tree)
    ast.fix_missing_locations(tree)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, flow: Flow, tree: ast.Module, *, numpy: bool) -> None:
        self._flow, self._numpy, self._sites = flow, numpy, 0
        self._asserting = asserting(tree)

    # ------------------------------------------------------------------------------- expressions

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.test, ast.Constant):
            node.test = _call(REACHED, node.test)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        of_program = self._flow.of(node)
        self.generic_visit(node)
        if len(node.ops) != 1:
            return node
        right = node.comparators[0]
        is_none = isinstance(right, ast.Constant) and right.value is None
        if not is_none and self._numpy and of_program and type(node.ops[0]) in _OPERATIONS:
            return _call(OPERATE, ast.Constant(_OPERATIONS[type(node.ops[0])]), node.left, right)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        of_program = self._flow.of(node)
        self.generic_visit(node)
        if self._numpy and of_program and type(node.op) in _OPERATIONS:
            return _call(OPERATE, ast.Constant(_OPERATIONS[type(node.op)]), node.left, node.right)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) and not self._flow.of(node.func) else ""
        if name == "zip" and self._is_comparison(node.args):
            self._make_strict(node)
        elif name == "map" and len(node.args) > 2 and self._is_comparison(node.args[1:]):
            pairs = ast.Call(ast.Name("zip", ast.Load()), node.args[1:], [])
            self._make_strict(pairs)
            node.func, node.args = ast.Name(STARMAP, ast.Load()), [node.args[0], pairs]
        elif name == "all" and len(node.args) == 1 and self._flow.of(node.args[0]):
            node.func = ast.Name(ALL, ast.Load())
        self.generic_visit(node)
        if _is_check(name_of_call(node)):
            node.func = _call(CHECKS, node.func)
        elif id(node) in self._flow.in_place:
            node.func = _call(IN_PLACE, node.func)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """`type(x).__name__` and `x.__class__.__name__`, where x may be a proxy."""
        self.generic_visit(node)
        owner = node.value if node.attr == "__name__" else None
        if isinstance(owner, ast.Attribute) and owner.attr == "__class__":
            return _call(TYPE_NAME, owner.value)
        if name_of_call(owner) == "type" and len(owner.args) == 1 and isinstance(owner.func, ast.Name):
            return _call(TYPE_NAME, owner.args[0])
        return node

    def _is_comparison(self, sides: list[ast.expr]) -> bool:
        """Whether a side comes from the program, and equal lengths are due: not `zip(row, row[1:])`
        and no endless side of the tests.
        """
        whole = {ast.dump(_unsliced(side)) for side in sides}
        neighbours = len(sides) > 1 and len(whole) == 1 and any(_unsliced(one) is not one for one in sides)
        endless = any(name_of_call(side) in _ENDLESS and not self._flow.of(side) for side in sides)
        return bool(self._flow.of(*sides)) and not neighbours and not endless

    def _make_strict(self, node: ast.Call) -> None:
        counted = any(name_of_call(side) == "range" and not self._flow.of(side) for side in node.args)
        node.func = ast.Name(ZIP, ast.Load())
        node.keywords = [ast.keyword("counted", ast.Constant(counted))]

    # ------------------------------------------------------------------------- what must be reached

    def watch(self, tree: ast.Module) -> None:
        for node in [tree, *(one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef))]:
            node.body, _ = self._watched(node.body, frozenset(), False, False)

    def _watched(
        self, body: list[ast.stmt], sites: frozenset[int], follows: bool, fails: bool
    ) -> tuple[list[ast.stmt], frozenset[int]]:
        """Rewrite a block in which an assertion covers `sites`. `follows`: an assertion follows the
        block; `fails`: a failure does. Returns also the sites that continue behind it.
        """
        changed: list[ast.stmt] = []
        left_open: frozenset[int] = frozenset()
        last = max((index for index, node in enumerate(body) if self._expects(node)), default=-1)
        for index, node in enumerate(body):
            more = follows or index < last
            failing = _always_fails(body[index + 1]) if index + 1 < len(body) else fails
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                changed.append(node)
                continue
            site = self._site(node, more, failing)
            inner = sites | site
            changed += [_do(ENTER, one) for one in sorted(site)]
            if isinstance(node, ast.Try):
                self._sites += 1
                changed.append(_do(TRIED, self._sites))
                self._catch(node, self._sites, failing)
            after = site if site and _jumps([node]) else frozenset()
            blocks = [("body", node), ("orelse", node), ("finalbody", node)]
            blocks += [("body", one) for one in getattr(node, "handlers", [])]
            for name, holder in blocks:
                if block := getattr(holder, name, []):
                    block, open_sites = self._watched(block, inner, more, failing)
                    setattr(holder, name, block)
                    after |= open_sites
            # a compound statement is marked inside
            whole = node.items if isinstance(node, ast.With) else [] if hasattr(node, "body") else [node]
            if any(map(self._expects, whole)):
                changed += [_do(MARK, one) for one in sorted(inner)]
            changed.append(node)
            sites |= after
            left_open |= after
        return changed, left_open

    def _site(self, node: ast.stmt, more: bool, failing: bool) -> frozenset[int]:
        """A new site for a statement in which the program's value decides what is reached."""
        if not hasattr(node, "body"):
            return frozenset()
        decides: ast.expr | None = None
        if isinstance(node, (ast.If, ast.While)):
            decides = node.test
        elif isinstance(node, ast.For):
            decides = node.iter
        skips = _jumps([node]) and more and not failing
        inner = any(map(self._expects, [*getattr(node, "body", []), *getattr(node, "orelse", [])]))
        if isinstance(node, ast.Try):
            watched = _jumps(node.handlers) and more and not _must_raise(node, failing)
        else:
            watched = decides is not None and bool(self._flow.of(decides)) and (skips or inner)
        self._sites += watched
        return frozenset([self._sites] if watched else [])

    def _expects(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return False
        return expects(node) or _calls(node, self._asserting)

    def _compares(self, node: ast.stmt) -> bool:
        """Whether the statement asserts what a value of the program equals."""
        equal = any(isinstance(one, ast.Eq) or name_of_call(one) == "assertEqual" for one in ast.walk(node))
        return equal and _judges(node) and bool(self._flow.of(node))

    def _catch(self, node: ast.Try, site: int, failing: bool) -> None:
        """Report what each handler catches: see `tester.CodeTests._catch`."""
        skipping = any(map(self._expects, node.body))
        own = skipping or any(isinstance(one, ast.Raise) for part in node.body for one in ast.walk(part))
        for handler in node.handlers:
            judges = any(_judges(one) or _always_fails(one) for one in handler.body)
            replaces = any(_always_fails(one) or self._compares(one) for one in handler.body)
            skips = skipping or any(_gives_up(one) for part in handler.body for one in ast.walk(part))
            report = _call(
                CAUGHT,
                handler.type or ast.Constant(None),
                *map(ast.Constant, (site, judges, replaces, _must_raise(node, failing), skips, own)),
            )
            handler.body.insert(0, ast.Expr(report))


def _must_raise(node: ast.Try, failing: bool) -> bool:
    """Whether the tests fail where nothing is raised."""
    return failing or any(map(_always_fails, [*node.body, *node.orelse]))


def _always_fails(node: ast.AST) -> bool:
    """`raise`, `assert False`, `self.fail()`, `pytest.fail()`."""
    if isinstance(node, ast.With):
        return any(map(_always_fails, node.body))
    return (
        isinstance(node, ast.Raise)
        or (isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and not node.test.value)
        or (isinstance(node, ast.Expr) and name_of_call(node.value) == "fail")
    )


def _judges(node: ast.stmt) -> bool:
    """Whether the statement itself is an assertion."""
    if isinstance(node, ast.With):
        return any(name_of_call(one.context_expr) in ("raises", "assertRaises") for one in node.items)
    return isinstance(node, (ast.Assert, ast.Expr)) and (expects(node) or name_of_call(node) == "exit")


def _gives_up(node: ast.AST) -> bool:
    """A jump without a value."""
    bare = isinstance(node, ast.Return) and (node.value is None or _is_none(node.value))
    return bare or isinstance(node, (ast.Break, ast.Continue))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _jumps(nodes: list[ast.stmt] | list[ast.ExceptHandler]) -> bool:
    """Whether they leave the block early; jumps of inner functions do not count."""
    left: list[ast.AST] = list(nodes)
    while left:
        node = left.pop()
        if isinstance(node, _JUMPS):
            return True
        if not isinstance(node, _DEFINITIONS):
            left += ast.iter_child_nodes(node)
    return False


def _is_check(name: str) -> bool:
    return name.startswith("assert") or name in ("raises", "warns")


def _calls(node: ast.AST, names: set[str]) -> bool:
    return any(name_of_call(one) in names for one in ast.walk(node))


def _unsliced(node: ast.expr) -> ast.expr:
    while isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        node = node.value
    return node


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _do(name: str, site: int) -> ast.stmt:
    return ast.Expr(_call(name, ast.Constant(site)))


def called_names(tree: ast.AST) -> set[str]:
    """Plain names that are called in it."""
    functions = (_function_of(node) for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {function.id for function in functions if isinstance(function, ast.Name)}


def _function_of(call: ast.Call) -> ast.expr:
    """What is called; the rewriter may have wrapped it."""
    inner = call.func
    while isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in _WRAPPERS:
        inner = inner.args[0]
    return inner


_WRAPPERS = (IN_PLACE, CHECKS)


def name_of_call(node: ast.AST | None) -> str:
    function = _function_of(node) if isinstance(node, ast.Call) else None
    return (
        function.id
        if isinstance(function, ast.Name)
        else function.attr
        if isinstance(function, ast.Attribute)
        else ""
    )


def _fails(node: ast.AST) -> bool:
    return name_of_call(node).startswith(_FAIL)
