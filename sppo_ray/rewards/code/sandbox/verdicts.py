"""Verdicts that the tests leave to a class of the program: `Point(1) == Point(1)`."""

from __future__ import annotations

import ast

from sppo_ray.rewards.code.sandbox.forms import TestsUnfit, name_of

_COMPARISONS: dict[type[ast.cmpop], tuple[str, bool]] = {
    ast.Eq: ("==", True),
    ast.NotEq: ("==", False),
    ast.Lt: ("<", True),
    ast.LtE: ("<=", True),
    ast.Gt: (">", True),
    ast.GtE: (">=", True),
    ast.In: ("in", True),
    ast.NotIn: ("in", False),
}
_METHODS: dict[str, type[ast.cmpop]] = {
    "assertEqual": ast.Eq,
    "assertNotEqual": ast.NotEq,
    "assertLess": ast.Lt,
    "assertLessEqual": ast.LtE,
    "assertGreater": ast.Gt,
    "assertGreaterEqual": ast.GtE,
    "assertIn": ast.In,
    "assertNotIn": ast.NotIn,
}


def refuse_one_sided(tree: ast.Module, classes: set[str]) -> None:
    """Raise TestsUnfit when a class of the program gives a verdict on its own objects and the tests
    expect the same one each time. `in` and truth count beside other assertions.
    """
    verdicts = _Verdicts(tree, classes)
    for what, (line, answers) in verdicts.found.items():
        if len(answers | verdicts.possible.get(what, set())) == 1 and (
            what not in ("in", "truth") or not verdicts.others
        ):
            raise TestsUnfit(
                f"line {line}: the tests leave a verdict ({what}) to the program's own class and expect the "
                "same one each time"
            )


class _Verdicts:
    def __init__(self, tree: ast.Module, classes: set[str]) -> None:
        self._classes = classes
        self.found: dict[str, tuple[int, set[bool]]] = {}
        self.possible: dict[str, set[bool]] = {}  # verdicts on what may be its object
        self.others = 0
        self._made: set[str] = set()
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        size = -1
        while size != (size := len(self._made)):
            for node in assigned:
                if self._is_made(node.value):
                    self._made.update(name_of(one) for target in node.targets for one in ast.walk(target))
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
                self._judge(node.test, True)
            elif isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Raise):
                self._judge(node.test, False)
            elif isinstance(node, ast.Call) and name_of(node.func).startswith("assert") and node.args:
                self._method(node, name_of(node.func))

    def _method(self, node: ast.Call, name: str) -> None:
        if name in ("assertTrue", "assertFalse"):
            self._judge(node.args[0], name == "assertTrue")
        elif name in _METHODS and len(node.args) > 1:
            self._compare(node.args[0], _METHODS[name], node.args[1], True)
        else:
            self.others += 1

    def _judge(self, node: ast.expr, wanted: bool) -> None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._judge(node.operand, not wanted)
        elif isinstance(node, ast.BoolOp):
            for one in node.values:
                self._judge(one, wanted)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            self._compare(node.left, type(node.ops[0]), node.comparators[0], wanted)
        elif self._is_made(node):
            self._record("truth", node, wanted)
        else:
            self.others += 1

    def _compare(self, left: ast.expr, kind: type[ast.cmpop], right: ast.expr, wanted: bool) -> None:
        what, positive = _COMPARISONS.get(kind, ("is", True))
        sides = [right] if what == "in" else [left, right]
        literal = any(not self._is_made(one) and _is_literal(one) for one in (left, right))
        if what == "is" or not any(map(self._is_made, sides)) or (what == "==" and literal):
            self.others += 1
            if not literal:
                self.possible.setdefault(what, set()).add(wanted == positive)
        else:
            self._record(what, left, wanted == positive)

    def _record(self, what: str, node: ast.expr, answer: bool) -> None:
        self.found.setdefault(what, (node.lineno, set()))[1].add(answer)

    def _is_made(self, node: ast.expr) -> bool:
        """Whether it is an object that the tests made of a class of the program."""
        if isinstance(node, ast.Call):
            return name_of(node.func) in self._classes and isinstance(node.func, ast.Name)
        if isinstance(node, (ast.Name, ast.Attribute)):
            return name_of(node) in self._made
        if isinstance(node, ast.BinOp):
            return self._is_made(node.left) or self._is_made(node.right)
        return isinstance(node, (ast.List, ast.Tuple)) and any(map(self._is_made, node.elts))


def _is_literal(node: ast.expr) -> bool:
    kinds = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp, ast.JoinedStr)
    return isinstance(node, kinds)
