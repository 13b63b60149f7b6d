r"""Reading an expression in LaTeX or plain text into a tree: `\frac{2}{3}\pi r^3`, `2*pi/3`,
`3\frac{1}{2}`, `0.1\overline{6}`.

A reader of its own, because a verifier needs what the parsers of algebra systems do not give: it
evaluates nothing and runs nothing while it reads, it refuses what it does not know, and it takes
linear time. What the tree is worth is worked out, within bounds, by `exact_values`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from sppo_ray.rewards.math.nodes import Node, has_variables
from sppo_ray.rewards.math.ordered import DOTS, dot, is_dot, is_vector, power, product
from sppo_ray.rewards.math.tokens import (
    CONSTANTS,
    FUNCTIONS,
    GREEK,
    MARKS,
    OF_SEVERAL,
    SAME_FUNCTION,
    TIMES,
    Unreadable,
    in_rows,
    numeral,
    raise_if,
    recurring,
    tokens,
)
from sppo_ray.rewards.math.vector_letters import are_letters, has_vectors, product_in_brackets

_OVER = ("/", r"\div")
_FRACTIONS = (r"\frac", r"\dfrac", r"\tfrac", r"\cfrac")
_BINOMIALS = (r"\binom", r"\dbinom", r"\tbinom")
_CLOSED_BY = {
    "(": (")",), "[": ("]",), "{": ("}",), "|": ("|", r"\rvert", r"\vert"), r"\lvert": (r"\rvert", "|"),
    r"\vert": (r"\vert",),
    r"\|": (r"\|",), r"\lfloor": (r"\rfloor",), r"\lceil": (r"\rceil",),
}  # fmt: skip
UNKNOWN = "function "
"""Before the name of a function that is not known, in a call."""
_FUNCTION_NAMES = frozenset("fgFG")
_MEANS = frozenset(["E", "mathbb E", "mathbb P", "P", "V", "Var"])  # before square brackets
_OFTEN_FUNCTIONS = frozenset(
    ["h", "H", "P", "p", "u", "v", "T", "S", "B", "J", "Gamma", "zeta", "Phi", "phi", "varphi", "psi",
     "sigma", "tau", "mu", "beta", "Beta", "Psi", "Theta", "theta", "Pr", "q", "Q", "R", "r", "y", "E"]
)  # fmt: skip
"""Functions where a name or a number alone stands in the brackets: h(x), P(A). Else factors."""
_DIFFERENTIATED = frozenset("xyztuvwrsfghpqABDFGHIKLMNPQRSTUVWXYZ") | frozenset(
    [r"\theta", r"\phi", r"\varphi", r"\rho", r"\tau", r"\omega", "theta", "phi"]
)
"""Variables that make dx a differential everywhere; the others do in a quotient of two."""
_DERIVATIVE = re.compile(
    r"(?<![a-zA-Z\\])[dD]\s*(?:\^\s*\{?\s*[0-9n]\s*\}?)?\s*(?:[a-zA-Z]|\([^(){}]*\))?\s*\)?\s*(?:/|\}\s*\{)"
    r"\s*\(?\s*[dD]\s*[a-zA-Z(]"
)
_BAR_LIKE = frozenset(["|", r"\vert", r"\|"])
_MAX_DEPTH = 60


def read_expression(text: str, *, grouped: bool = True) -> Node:
    """The tree of an expression; `grouped` takes 1,000 for a thousand. Raises Unreadable."""
    reader = _Reader(in_rows(list(tokens(text, grouped))), derives=_DERIVATIVE.search(text) is not None)
    node = reader.expression()
    reader.end()
    return node


class _Reader:
    """Recursive descent over the tokens."""

    def __init__(self, tokens: list[tuple[str, str]], *, derives: bool) -> None:
        self._tokens = tokens
        self._has_vectors = has_vectors(tokens)
        self._derives = derives
        self._at = 0
        self._open: list[str] = []  # brackets around the place
        self._groups: dict[tuple[int, str, int, int], tuple[Node, int]] = {}
        self._indices: list[str] = []  # of the sums around the place; i is one of them there

    # --------------------------------------------------------------------------------------- tokens

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        return self._tokens[self._at + ahead] if self._at + ahead < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def _take(self, *texts: str) -> str | None:
        if self._peek()[1] in texts and self._peek()[0] != "end":
            return self._next()[1]
        return None

    def _need(self, *texts: str) -> None:
        if self._take(*texts) is None:
            raise Unreadable(f"{texts[0]!r} is missing")

    def end(self) -> None:
        if self._peek()[0] != "end":
            raise Unreadable(f"{self._peek()[1]!r} is left over")

    # ----------------------------------------------------------------------------------- operations

    def expression(self) -> Node:
        node = self._signed(self._term)
        while sign := self._take("+", "-", r"\pm", r"\mp"):
            op = {r"\pm": "±", r"\mp": "∓"}.get(sign, sign)
            node = Node(op, (node, self._signed(self._term)))
        return node

    def _signed(self, read: Any) -> Node:
        sign = self._take("+", "-", r"\pm", r"\mp")
        if sign is None:
            return read()
        node = self._signed(read)
        return {"+": node, "-": Node("neg", (node,)), r"\pm": Node("±", (node,)), r"\mp": Node("∓", (node,))}[
            sign
        ]

    def _term(self) -> Node:
        node = self._factor()
        while True:
            if sign := self._take(*TIMES):
                node = self._product(node, self._signed(self._behind(sign)), sign)
            elif self._take(*_OVER):
                node = Node("/", (node, self._signed(self._factor)))
            elif self._starts_factor():
                self._refuse_number()
                node = product(node, self._factor(), "")
            else:
                return node

    def _product(self, left: Node, right: Node, sign: str) -> Node:
        if self._has_vectors and sign in DOTS and are_letters(left, right):
            return dot(left, right)
        return product(left, right, sign)

    def _behind(self, sign: str) -> Callable[[], Node]:
        return self._cross_factor if sign == r"\times" else self._dot_factor if sign in DOTS else self._factor

    def _dot_factor(self) -> Node:
        r"""What stands behind \cdot: a \cdot b \times c is a \cdot (b \times c)."""
        node = self._factor()
        while is_vector(node) and self._take(r"\times"):
            node = product(node, self._signed(self._cross_factor), r"\times")
        return node

    def _cross_factor(self) -> Node:
        r"""What stands behind \times: a \times 2b is a \times (2b)."""
        node = self._factor()
        while self._starts_factor():
            self._refuse_number()
            node = product(node, self._factor(), "")
        return node

    def _refuse_number(self) -> None:
        """Refuse a number behind a factor, as in x2, but for a power: n2^{n-1}, 2^{3}5^{2}."""
        before, behind = self._peek(-1), self._peek(1)
        is_power = behind[1] in ("^", "**") and before[0] not in ("number", "recurring")
        raise_if(self._peek()[0] in ("number", "recurring") and not is_power, "a number beside a value")

    def _starts_factor(self) -> bool:
        kind, text = self._peek()
        if kind in ("number", "recurring", "name"):
            return True
        if text in _BAR_LIKE:
            return not (self._open and text in _CLOSED_BY[self._open[-1]])
        if kind == "command":
            return (
                text in _STARTS
                or text[1:] in GREEK
                or text[1:] in MARKS
                or text[1:] in FUNCTIONS
                or text[1:] in CONSTANTS
                or text[1:] in OF_SEVERAL
            )
        return text in ("(", "[", "{")

    def _factor(self) -> Node:
        start = self._at
        node = self._postfix()
        is_name = self._at == start + 1  # AB^{-1}, and not (AB)^{-1}
        if self._take("^", "**"):
            if self._is_degree():
                return Node("*", (node, _DEGREE))
            exponent = self._exponent()
            node = power(node, exponent, is_name=is_name)
            while self._peek()[1] == "!":
                node = self._factorial(node)
        return self._mixed(node) if node.op == "num" and node.args[1] is None else node

    def _mixed(self, whole: Node) -> Node:
        """A whole number with the proper fraction beside it, as in 3\\frac{1}{2} and 3 1/2."""
        start, fraction = self._at, None
        if self._peek()[1] in _FRACTIONS:
            fraction = self._command(self._next()[1])
        elif [self._peek(n)[0] for n in (0, 2)] == ["number", "number"] and self._peek(1)[1] == "/":
            top, _, bottom = (self._next()[1] for _ in range(3))
            fraction = Node("/", (Node("num", numeral(top)), Node("num", numeral(bottom))))
        if fraction is not None and _is_proper(fraction):
            return Node("mixed", (whole, fraction))
        self._at = start
        return whole

    def _is_degree(self) -> bool:
        if self._take(r"\circ", r"\degree"):
            return True
        if [self._peek(n)[1] for n in range(3)] == ["{", r"\circ", "}"]:
            self._at += 3
            return True
        return False

    def _exponent(self) -> Node:
        grouped = self._peek()[1] in ("{", "(")
        node = self._group(self._next()[1]) if grouped else self._signed(self._postfix)
        return Node("^", (node, self._exponent())) if self._take("^", "**") else node

    def _postfix(self) -> Node:
        node = self._primary()
        while True:
            if self._peek()[1] == "!":
                node = self._factorial(node)
            elif self._take("%", r"\%"):
                node = Node("/", (node, Node("num", (Fraction(100), None))))
            elif self._take(r"\degree"):
                node = Node("*", (node, _DEGREE))
            else:
                return node

    def _factorial(self, node: Node) -> Node:
        self._next()
        return Node("!!", (node,)) if self._take("!") else Node("!", (node,))

    # ------------------------------------------------------------------------------------- operands

    def _primary(self) -> Node:
        kind, text = self._next()
        if kind == "number":
            return Node("num", numeral(text))
        if kind == "recurring":
            return Node("num", (recurring(text), None))
        if text in _CLOSED_BY:
            return self._group(text)
        if kind == "name":
            return self._named(text, typed=True)
        if kind == "command":
            return self._command(text)
        raise Unreadable(f"{text or 'the end'!r} where a value is due")

    def _group(self, opens: str) -> Node:
        """A bracket's content. It is read once: the operand of a function may be a factor."""
        key = (self._at, opens, len(self._open), len(self._indices))
        if key not in self._groups:
            self._groups[key] = self._read_group(opens), self._at
        node, self._at = self._groups[key]
        return node

    def _read_group(self, opens: str) -> Node:
        self._open.append(opens)
        if len(self._open) > _MAX_DEPTH:
            raise Unreadable("too deep")
        start = self._at
        node = self.expression()
        if opens == "{" and (word := self._take(r"\over", r"\choose")):
            right = self.expression()
            node = Node("/", (node, right)) if word == r"\over" else Node("call", ("binom", node, right))
        self._need(*_CLOSED_BY[opens])
        self._open.pop()
        vectors = product_in_brackets(self._tokens, start, self._at - 1) if opens in ("(", "[") else None
        if vectors is not None:
            return vectors
        if opens in _BAR_LIKE or opens == r"\lvert":
            return Node("abs", (node,))
        rounding = {r"\lfloor": "floor", r"\lceil": "ceil"}.get(opens)
        return Node("call", (rounding, node)) if rounding else node

    def _named(self, name: str, *, typed: bool = False) -> Node:
        if name in FUNCTIONS:
            return self._function(SAME_FUNCTION.get(name, name))
        if name in OF_SEVERAL:
            return self._of_several(name)
        if name == "sqrt":
            return Node(
                "call",
                ("root", _TWO, self._group(self._next()[1]) if self._peek()[1] == "(" else self._postfix()),
            )
        if typed and name in ("abs", "floor", "ceil") and self._peek()[1] == "(":
            inner = self._group(self._next()[1])
            return Node("abs", (inner,)) if name == "abs" else Node("call", (name, inner))
        if name in self._indices:
            return Node("sym", (name,))
        constant = CONSTANTS.get(name) or CONSTANTS.get(name.casefold() if len(name) > 1 else name)
        if constant and self._peek()[1] != "_":
            return Node("const", (constant,))
        return self._symbol(name)

    def _symbol(self, name: str) -> Node:
        if self._differentiates(name):
            name += self._next()[1]
        if self._take("_"):
            name += "_" + self._raw()
        while self._take("'", r"\prime"):
            name += "'"
        return self._applied(name) or Node("sym", (name,))

    def _differentiates(self, name: str) -> bool:
        r"""Whether d or \Delta forms one symbol with the variable behind it, as in dy."""
        kind, text = self._peek()
        letter = kind == "name" and len(text) == 1
        if name in ("Delta", "delta"):
            return letter
        return (name == "d" and text in _DIFFERENTIATED) or (name in ("d", "D") and self._derives and letter)

    def _applied(self, name: str) -> Node | None:
        r"""A function that is not known: f(2x), P(A), \Gamma(3), J_0(2), f^{-1}(4), E[X].

        None of a product: h(a+b), x(x+1).
        """
        start, inverse = self._at, ""
        if [self._peek(n)[1] for n in range(5)] in (["^", "{", "-", "1", "}"], ["^", "{", "-1", "}", "("]):
            self._at += 5 if self._peek(4)[1] == "}" else 4
            inverse = "^-1"
        is_mean = name in _MEANS and self._peek()[1] == "["
        if (self._peek()[1] != "(" and not is_mean) or (inverse and name[0] not in _FUNCTION_NAMES):
            self._at = start
            return None
        inner = self._group(self._next()[1])
        derives = self._derives and name in ("d", "D")  # d(y)/d(x)
        is_function = is_mean or name[0] in _FUNCTION_NAMES or "'" in name or derives
        may_be_function = name in _OFTEN_FUNCTIONS or ("_" in name and name[0].isupper())
        alone = inner.op in ("num", "const") or (inner.op == "sym" and not is_dot(inner))
        if is_function or (may_be_function and alone):
            return Node("call", (f"{UNKNOWN}{name}{inverse}", inner))
        self._at = start
        return None

    def _raw(self) -> str:
        """A subscript as text."""
        if not self._take("{"):
            return self._next()[1]
        text, depth = "", 1
        while depth:
            kind, piece = self._next()
            if kind == "end":
                raise Unreadable("'}' is missing")
            depth += {"{": 1, "}": -1}.get(piece, 0)
            text += piece if depth else ""
        return text

    def _command(self, text: str) -> Node:
        name = text[1:]
        if text in _FRACTIONS:
            return Node("/", (self._argument(), self._argument()))
        if text in _BINOMIALS:
            return Node("call", ("binom", self._argument(), self._argument()))
        if text == r"\sqrt":
            return self._root()
        if name in OF_SEVERAL:
            return self._of_several(name)
        if text in (r"\sum", r"\prod"):
            return self._series(name)
        if name in MARKS:
            return Node("sym", (f"{name} {self._raw()}",))
        if name in GREEK:
            return self._symbol(name)
        if name in FUNCTIONS or name in CONSTANTS:
            return self._named(name)
        if text == r"\mathbb":
            name = f"mathbb {self._raw()}"
            return self._applied(name) or Node("sym", (name,))
        raise Unreadable(f"unknown command {text}")

    def _root(self) -> Node:
        degree = self._group("[") if self._take("[") else _TWO
        return Node("call", ("root", degree, self._group("(") if self._take("(") else self._argument()))

    def _argument(self) -> Node:
        """The argument of a TeX command: a group, or one sign (the first digit of a number)."""
        if self._take("{"):
            return self._group("{")
        kind, text = self._peek()
        if kind == "number" and len(text) > 1 and text.isdecimal():
            self._tokens[self._at] = (kind, text[1:])
            return Node("num", (Fraction(int(text[0])), None))
        if kind == "name" and text in ("d", "D"):  # \\frac dt is d / t, and no differential
            return Node("sym", self._next()[1:])
        if kind in ("number", "name", "command"):
            return self._primary()
        raise Unreadable("an argument is missing")

    def _function(self, name: str) -> Node:
        power = base = None
        while mark := self._take("^", "_"):
            if mark == "^":
                power = self._argument_of_mark()
            else:
                base = self._argument_of_mark()
        bracketed = self._peek()[1] in _CLOSED_BY
        inner = self._group(self._next()[1]) if bracketed else self._operand()
        if power == Node("neg", (_ONE,)) and name[:3] in ("sin", "cos", "tan", "cot", "sec", "csc"):
            name, power = "arc" + name, None
        if name == "log":
            node = Node("call", (name, base or Node("num", (Fraction(10), None)), inner))
        else:
            node = Node("call", (name, inner))
        return Node("^", (node, power)) if power else node

    def _argument_of_mark(self) -> Node:
        return self._group(self._next()[1]) if self._peek()[1] in ("{", "(") else self._signed(self._argument)

    def _operand(self) -> Node:
        """The operand of a function without brackets: the product that follows it."""
        node = self._signed(self._factor)
        while self._starts_factor() and self._peek()[1].lstrip("\\") not in FUNCTIONS:
            node = Node("*", (node, self._factor()))
        while self._peek()[1] == "/" and not has_variables(node):
            self._next()
            node = Node("/", (node, self._factor()))
        return node

    def _of_several(self, name: str) -> Node:
        """gcd, lcm, max and min of a list in brackets."""
        opens = self._take("(", "[")
        raise_if(opens is None, f"{name} without brackets")
        values = [self.expression()]
        while self._take(","):
            values.append(self.expression())
        self._need(*_CLOSED_BY[opens or "("])
        return Node("call", (name, *values))

    def _series(self, name: str) -> Node:
        self._need("_")
        self._need("{")
        kind, index = self._next()
        raise_if(kind != "name", "a sum without an index")
        self._need("=")
        first = self.expression()
        self._need("}")
        self._need("^")
        last = self._argument_of_mark()
        self._indices.append(index)
        term = self._term()
        self._indices.pop()
        return Node(name, (index, first, last, term))


def _is_proper(node: Node) -> bool:
    """Whether it is a fraction of whole numbers below 1, as in a mixed number."""
    if node.op != "/" or any(part.op != "num" or part.args[1] is not None for part in node.args):
        return False
    return 0 < node.args[0].args[0] < node.args[1].args[0]


_ONE, _TWO = Node("num", (Fraction(1), None)), Node("num", (Fraction(2), None))
_DEGREE = Node("/", (Node("const", ("pi",)), Node("num", (Fraction(180), None))))
_STARTS = frozenset(
    [*_FRACTIONS, *_BINOMIALS, r"\sqrt", r"\lvert", r"\lfloor", r"\lceil", r"\sum", r"\prod", r"\mathbb"]
)
