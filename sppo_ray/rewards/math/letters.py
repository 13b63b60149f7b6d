r"""What letters stand for where an expression does not say: AB for A times B, z for a complex
number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sppo_ray.rewards.math.expressions import UNKNOWN
from sppo_ray.rewards.math.matrix_letters import is_run, letters_of
from sppo_ray.rewards.math.nodes import Node, substitute, walk

_COMPLEX = re.compile("[zw](?:_.*)?'*")
_CONJUGATE = re.compile("(?:overline|bar) ([zw](?:_.*)?'*)")
_I = Node("const", ("i",))


def with_complex(truth: Node, answer: Node) -> tuple[Node, Node]:
    r"""Both with z and w as complex numbers, a + bi, where one of them stands in bars or is
    conjugated: |z|^2 is z\bar{z} and not z^2. Beside x or y, z is a real coordinate.
    """
    trees = (truth, answer)
    names = {part.args[0] for tree in trees for part in walk(tree) if part.op == "sym"}
    conjugates = {match[0]: match[1] for match in map(_CONJUGATE.fullmatch, names) if match}
    complex_names = {name for tree in trees for name in _in_bars(tree)} | set(conjugates.values())
    if not complex_names or not names.isdisjoint("xy"):
        return trees
    values = {name: Node("+", _parts(name)) for name in complex_names}
    values |= {name: Node("-", _parts(one)) for name, one in conjugates.items()}
    return substitute(truth, values), substitute(answer, values)


def as_products(truth: Node, answer: Node) -> tuple[Node, Node] | None:
    r"""Both with AB as A times B, where they show that A and B are numbers; None where they do not.

    Letters that stand alone as well, as in A^2 + 2AB + B^2, are numbers if no other order of them
    occurs. So are, in any order, those under a root, in a function or in a denominator. Capitals in
    a row alone may be a segment, a word or matrices: they keep their order.
    """
    trees = (truth, answer)
    parts = [part for tree in trees for part in walk(tree)]
    runs = {part.args[0] for part in parts if is_run(part)}
    if not runs or _is_another_row(*trees) or any(part.op == "^" and is_run(part.args[0]) for part in parts):
        return None  # AB^2 may be A times B^2, or (AB)^2
    numbers = {letter for part in parts for letter in _of_numbers(part)}
    alone = {part.args[0] for part in parts if part.op == "sym"} - runs
    several_orders = len({"".join(sorted(run)) for run in runs}) < len(runs)
    known = numbers if several_orders else numbers | alone
    if not all(known.issuperset(run) for run in runs):
        return None
    values = {run: _product(run) for run in runs}
    return substitute(truth, values), substitute(answer, values)


def _is_another_row(truth: Node, answer: Node) -> bool:
    """Whether one of them is capitals in a row, and the other has others or another order."""
    trees = (truth, answer)
    bare = any(is_run(tree.args[-1] if tree.op in ("*", "neg") else tree) for tree in trees)
    rows = ["".join(name for part in walk(tree) for name in letters_of(part)) for tree in trees]
    return bare and rows[0] != rows[1]


def _parts(name: str) -> tuple[Node, Node]:
    """The real part of a complex variable, and the imaginary one times i."""
    return Node("sym", (name,)), Node("*", (_I, Node("sym", (f"imaginary {name}",))))


def _in_bars(tree: Node) -> Iterator[str]:
    r"""Names of complex numbers in bars; \ln|z| is the integral of a real 1/z."""
    if tree.op == "call" and tree.args[0] in ("ln", "log"):
        return
    if tree.op == "abs":
        names = (part.args[0] for part in walk(tree) if part.op == "sym")
        yield from filter(_COMPLEX.fullmatch, names)
    for part in tree.args:
        if isinstance(part, Node):
            yield from _in_bars(part)


def _of_numbers(part: Node) -> Iterator[str]:
    """The letters of a root's or a function's operands, or of a denominator."""
    if part.op == "/" or (part.op == "call" and not part.args[0].startswith(UNKNOWN)):
        yield from (name for one in part.args[1:] for below in walk(one) for name in letters_of(below))


def _product(letters: str) -> Node:
    product = Node("sym", (letters[0],))
    for letter in letters[1:]:
        product = Node("*", (product, Node("sym", (letter,))))
    return product
