"""Whether an answer is a value, or leaves to the verifier what was asked.

Where the ground truth is a plain number, `12345 \\cdot 6789`, `\\gcd(12, 18)` and `3^2 + 1` repeat
the question. They are no answers, whatever they are worth.
"""

from __future__ import annotations

from fractions import Fraction

from sppo_ray.rewards.math.evaluator import TooLarge, Undefined
from sppo_ray.rewards.math.nodes import Node, walk
from sppo_ray.rewards.math.tokens import OF_SEVERAL
from sppo_ray.rewards.math.values import value_of, within


def leaves_work(truth: Node, answer: Node, *, inside: bool = False) -> bool:
    """Whether the truth is a plain number and the answer an operation of numbers.

    One function of a number (5!, \\sqrt{36}) is a value. `inside` a tuple or a matrix, so is a
    fraction that divides.
    """
    divides = inside or any(part.op in ("/", "^") for part in walk(truth))
    if not is_value(truth) or _is_finished(answer, divides=divides):
        return False
    try:
        value = value_of(answer)
        return isinstance(value, Fraction) or within(value_of(truth), value, _NEAR)
    except (TooLarge, KeyError):  # KeyError: a variable, x - x
        return True
    except Undefined:
        return False


def is_value(node: Node) -> bool:
    """A numeral, a fraction, a mixed number or a power of ten."""
    numerals = ("num", "neg", "/", "mixed", "+", "*", "^")
    return all(part.op in numerals for part in walk(node)) and _is_finished(node, divides=True)


def _is_finished(node: Node, *, divides: bool) -> bool:
    """`divides`: a fraction may have a whole value."""
    while node.op == "neg":
        node = node.args[0]
    if node.op in ("num", "mixed"):
        return True
    if node.op == "const":
        return True
    if node.op in ("!", "!!", "abs", "^"):
        return all(_is_finished(part, divides=divides) for part in node.args)
    if node.op == "call":
        name, *operands = node.args
        return name not in OF_SEVERAL and all(_is_finished(part, divides=divides) for part in operands)
    if node.op == "*":  # 6.63 \times 10^{-34}
        number, power = node.args
        is_power = power.op == "^" and power.args[0] == _TEN and _is_numeral(power.args[1])
        return is_power and _is_numeral(number)
    if node.op == "+":  # 3 + \frac{2}{9}
        whole, part = node.args
        return whole.op == "num" and part.op == "/" and _is_finished(part, divides=False)
    if node.op == "/":
        return _is_finished_fraction(*node.args, divides=divides)
    return False


def _is_finished_fraction(top: Node, bottom: Node, *, divides: bool) -> bool:
    if not _is_numeral(top) or not _is_numeral(bottom):
        # \frac{1}{2^{60}}
        return divides and all(part.op == "num" or part.op == "^" and _is_finished(part, divides=divides)
                   for part in (top, bottom))  # fmt: skip
    above, below = (_numeral(part) for part in (top, bottom))
    return below in (1, 100) or (divides or not below or above % below != 0)


def _is_numeral(node: Node) -> bool:
    return node.op == "num" or (node.op == "neg" and node.args[0].op == "num")


def _numeral(node: Node) -> Fraction:
    return -node.args[0].args[0] if node.op == "neg" else node.args[0]


_NEAR = Fraction(1, 10**20)
_TEN = Node("num", (Fraction(10), None))
