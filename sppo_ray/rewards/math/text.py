r"""Reading a final answer as text before any mathematics: one LaTeX for all styles, plain numbers,
words, letters of a choice.

What is decided here is decided exactly and in microseconds. `answer_forms` reads the rest.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from sppo_ray.rewards.math.words import canonical_words


def _fraction_of(sign: str) -> str:
    """½ as \\frac{1}{2}."""
    value = Fraction(unicodedata.numeric(sign)).limit_denominator(10)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-",
        "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
        "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≈": r"\approx ",
        "≡": r"\equiv ", "°": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F", "º": r"^\circ ",
        "→": r"\to ", "⟶": r"\to ", "⇒": r"\to ", "⟹": r"\to ", "←": r"\gets ", "⇐": r"\gets ",
        "↔": r"\iff ", "⇔": r"\iff ", "⟺": r"\iff ", "¬": r"\neg ", "⊕": r"\oplus ", "∀": r"\forall ",
        "∃": r"\exists ", "∅": r"\emptyset ", "Ø": r"\emptyset ", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ",
        "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ", "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "∨": r"\lor ",
        "∧": r"\wedge ", "…": r"\ldots ", "⋯": r"\ldots ", "∶": ":", "、": ",", "。": ".",
        "〈": "(", "〉": ")", "⟨": "(", "⟩": ")", "【": "[", "】": "]", "′": "'", "⁄": "/",
        "∖": r"\setminus ", "㎡": r"\text{ m}^2", "㎝": r"\text{ cm}", "㎞": r"\text{ km}", "\u00a0": " ",
        "\u2009": " ", "\u202f": " ", "\u3000": " ", "\u200b": "", "\u200c": "", "\u200d": "",
        "\u2060": "", "\ufeff": "",
    }
    # directions
    | {chr(mark): "" for mark in (*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
    | {one: _fraction_of(one)
       for one in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
    | {chr(0xFF01 + i): chr(0x21 + i) for i in range(94) if i != 12}  # full-width forms of ASCII
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_ROOT_SIGN = re.compile(r"√\s*([0-9]+|[a-zA-Z])?")

_TEXT_COMMAND = (
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up|sc|md)?|mbox|hbox|mathrm|mathsf|mathtt|mathit|operatorname\*?|emph)"
    r"\s*(?=\{)"
)
_NAMES = ("sin", "cos", "tan", "arcsin", "arccos", "arctan", "ln", "log", "exp", "cot", "sec", "csc", "pi")
_OPERATOR_NAMES = frozenset([
    "tr", "Tr", "trace", "Re", "Im", "rank", "det", "dim", "ker", "im", "span", "sgn", "sign", "adj", "cov",
    "Cov", "var", "Var", "arg", "Arg", "lcm", "gcd", "max", "min", "sup", "inf", "grad", "div", "curl",
    "rot", "deg", "ord", "Res", "erf", "diag", "Li", "Si", "Ci", "proj", "vol", "area", "cosh", "sinh",
    "tanh", "coth", "arcsinh", "arccosh", "arctanh",
])  # fmt: skip
_NUMBER_BEFORE = re.compile(r"[0-9}](?:\s|\\[ ,;:])*$")
_WRAPPER = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|pmb|mathcal|mathnormal|underline|underbrace|overbrace|boxed|fbox|framebox|ensuremath|mathstrut"
    r"|textcolor\s*\{[^{}]*\}|color\s*\{[^{}]*\}|colorbox\s*\{[^{}]*\})\s*(?=\{)"
)
_BOLD = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|pmb)\s*(?:\{\s*([a-zA-Z])\s*\}|(?<![a-z])([a-zA-Z])(?![a-zA-Z]))"
)
"""A letter in bold is a vector, where a product of vectors can stand."""
_BOLD_DOT = re.compile(rf"(?:{_BOLD.pattern})\s*\\cdot\s*(?:{_BOLD.pattern})")
_GONE = re.compile(
    r"\\(?:hspace|vspace|phantom|hphantom|vphantom|label|tag)\*?\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}|\\(?:left|right)\s*\."
    r"|\\(?:left|right|bf|rm|it|sf|tt|sc|bfseries|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge"
    r"|displaystyle|textstyle|scriptstyle|limits|nolimits|strut|mathstrut|middle|[bB]igg?[lrm]?|normalfont|centering|hfill"
    r"|mathrm|mathbf|mathit|text|ensuremath)(?![a-zA-Z])(?!\s*\{(?<=\{))"
)
_SPACING = re.compile(r"\\\\|\\!\s*|\\[,;:> ]|\\(?:q?quad|thinspace|enspace|space|newline)(?![a-zA-Z])|~|\s+")
_SIGN_OF_LOGIC = {
    name: rf"\{sign} "
    for sign, names in {
        "lor": "lor vee", "land": "land", "neg": "neg lnot", "oplus": "oplus veebar",
        "iff": "iff leftrightarrow Leftrightarrow longleftrightarrow Longleftrightarrow <",
        "gets": "gets leftarrow Leftarrow longleftarrow Longleftarrow impliedby because",
        "to": "to rightarrow Rightarrow longrightarrow Longrightarrow implies therefore ie",
    }.items()
    for name in names.split()
}  # fmt: skip
_SIGNS_OF_LOGIC = rf"\\({'|'.join(set(_SIGN_OF_LOGIC) - {'<'})})(?![a-zA-Z])|<[-=]+>|-+>"
_TOP = r"(?:\\(?:top|intercal)(?![a-zA-Z])|\\text\{\s*T\s*\})"
"""Of a transposed matrix."""
_ONE_SPELLING = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (_SIGNS_OF_LOGIC, lambda sign: _SIGN_OF_LOGIC.get(sign[1] or sign[0].strip("-=>"), r"\to ")),
        (r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])|=<|<=", r"\\le "),
        (r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\(?:neq|not\s*=)(?![a-zA-Z])|(?<![0-9)}])!=|\\not\s*=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:mid|colon|ratio)(?![a-zA-Z])", lambda mark: " | " if mark[0] == r"\mid" else ":"),
        (r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:lbrace)(?![a-zA-Z])", r"\\{"),
        (r"\\(?:rbrace)(?![a-zA-Z])", r"\\}"),
        (r"\\langle(?![a-zA-Z])(?=[^,]*,.*\\rangle)|\\angle(?![a-zA-Z])(?=[^\\]*,[^\\]*\\rangle)", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"<\s*([^<>=]*,[^<>=]*)>$", r"(\1)"),
        (r"\\(?:[lc]?dots[cbmio]?|hdots)(?![a-zA-Z])|\.\.\.+", r"\\ldots "),
        (r"\\(?:log|ln)\s*_\s*(?:e|\{\s*e\s*\})", r"\\ln "),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        (r"\\(?:R|Reals|mathbb\s*R|mathbf\s*\{\s*R\s*\})(?![a-zA-Z])", r"\\mathbb{R}"),
        (r"\\(?:Z|mathbb\s*Z|mathbf\s*\{\s*Z\s*\})(?![a-zA-Z])", r"\\mathbb{Z}"),
        (r"\\(?:approxeq|simeq|doteq)(?![a-zA-Z])", r"\\approx "),
        (rf"\^\s*(?:\{{\s*{_TOP}\s*\}}|{_TOP})", "^{T}"),
        (r"\\(?:cr|tabularnewline)(?![a-zA-Z])|\\\\\s*\[[^\]]*\]", r"\\\\"),
        (r"\\begin\s*\{(?:[bvBV]?matrix|smallmatrix|array)\}", lambda begin: begin[0].replace(" ", "")),
        (r"\\(?:imath|mathi)(?![a-zA-Z])", "i"),
        (r"\\(?:exponentialE|mathe)(?![a-zA-Z])", "e"),
    )
)
_LEAD = re.compile(
    r"^(?:(?:\\text\{)?\s*(?:(?:the|my|our|so|thus|hence|final|correct)\s+)*(?:answer|result|solution|ans)\b"
    r"(?:\s*(?:is|=|:|：)\s*[:：]?\s*\}?|\s*\}?(?!\s*[-+*/^]))"
    r"|\\to|\\gets|\\approx|=|:)\s*",
    re.IGNORECASE,
)
_CHINESE_LEAD = re.compile(r"^(?:\\text\{)?\s*(?:最终)?(?:答案|结果|解)(?:是|为)?\s*[::]?\s*\}?\s*")
_CONNECTIVE = {"或": "or", "或者": "or", "和": "and", "与": "and", "且": "and", "以及": "and"}
_THIN_GROUPS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?: [0-9]{3})+(?![0-9]| ?/)")
_AMOUNT = (
    r"(?<![0-9])(-?)\s*{sign}\s*([0-9][0-9.,]*|\.[0-9]+|\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}})"
    r"(\s*(?:\\text\{{)?\s*(?:hundred|thousand|million|billion|trillion)s?\s*\}}?)?"
)
_CURRENCIES = tuple(
    (re.compile(_AMOUNT.format(sign=sign)), re.compile(rf"(?<=[0-9])\s*{sign}"), name)
    for sign, name in (
        (r"(?:US)?\\?\$", "dollar"),
        ("€", "euro"),
        ("£", "sterling"),
        ("₹", "rupee"),
        ("¥", "yuan"),
    )
)
_PHRASES = {
    "infinity": r"\infty", "positive infinity": r"\infty", "negative infinity": r"-\infty",
    "minus infinity": r"-\infty",
    "empty set": r"\emptyset", "the empty set": r"\emptyset", "no solution": r"\emptyset",
    "no solutions": r"\emptyset", "there is no solution": r"\emptyset",
    "there are no solutions": r"\emptyset",
    "no real solution": r"\emptyset", "no real solutions": r"\emptyset", "无解": r"\emptyset",
} | dict.fromkeys(
    ("all real numbers", "all reals", "the real numbers", "all real x", "any real number", "全体实数"),
    r"\mathbb{R}"
) | dict.fromkeys(
    ("dne", "doesn't exist", "it does not exist", "limit does not exist", "the limit does not exist",
     "不存在"),
    r"\text{does not exist}"
)  # fmt: skip


def tidy(text: str) -> str:
    r"""The same answer in one spelling: no look-alikes, styles, spacing, delimiters or final dots;
    \$5 is 5\text{ dollar}.
    """
    text = _ROOT_SIGN.sub(lambda root: f"\\sqrt{{{root[1]}}}" if root[1] else r"\sqrt ", text)
    text = _SUPERSCRIPT.sub(lambda digits: f"^{{{digits.group().translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda digits: f"_{{{digits.group().translate(_SUBSCRIPTS)}}}", text)
    text = text.translate(_UNICODE).strip()
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z({])", r"\\", text)  # escaped once too often
    text = _connect(text)
    if r"\times" in text or r"\wedge" in text or _BOLD_DOT.search(text):
        text = _BOLD.sub(r"\\vec{\1\2}", text)
    text = _one_style(text)
    text = re.sub(r",\s*\\!\s*|\{\\,\}", ",", re.sub(r"\{\s*([,:;=<>])\s*\}", r"\1", text))
    text = " ".join(_SPACING.sub(_space, text.removesuffix("\\")).split())
    for pattern, replacement in _ONE_SPELLING:
        text = pattern.sub(replacement, text)
    text = _undelimited(text)
    text = _in_currency(text).replace("$", "")
    text = _LEAD.sub("", _CHINESE_LEAD.sub("", text)).strip()
    text = unbraced(_final_marks(text))
    text = _THIN_GROUPS.sub(lambda number: number.group().replace(" ", ""), text)
    return _PHRASES.get(canonical_words(text), text) if text[-1:].isalpha() or text[-1:] == "}" else text


def _space(match: re.Match[str]) -> str:
    if match.group() == r"\\":  # a matrix's new row, whatever follows it
        return r"\\"
    return "" if match.group().startswith(r"\!") else " "


def _connect(text: str) -> str:
    """Chinese connectives in English."""
    for word, english in _CONNECTIVE.items():
        if word in text:
            text = re.sub(rf"\\text\s*\{{\s*{word}\s*\}}|{word}", rf"\\text{{ {english} }}", text)
    return text


def _one_style(text: str) -> str:
    r"""Styles gone: \mathbf{7} is 7, and all that is words stands in \text{...} without braces of
    its own.
    """
    for _ in range(8):
        changed = _GONE.sub(" ", _unwrapped(text))
        if changed == text:
            break
        text = changed
    pieces, position = [], 0
    for match in re.finditer(_TEXT_COMMAND, text):
        if match.start() < position:
            continue
        end = closing_brace(text, match.end())
        if end is None:
            break
        content = text[match.end() + 1 : end - 1]
        named = "operatorname" in match[0] and content.strip() in _OPERATOR_NAMES
        inner = f"\\{content.strip()} " if named else _words_or_formula(content)
        if content.strip() == "sec" and _is_unit(text[: match.start()], text[end:]):
            inner = r"\text{sec}"
        pieces += [text[position : match.start()], inner]
        position = end
    return "".join([*pieces, text[position:]])


def _is_unit(before: str, behind: str) -> bool:
    """Whether "sec" is a second: a number before it, and no argument behind it."""
    return _NUMBER_BEFORE.search(before) is not None and not behind.strip(" .$")


def _unwrapped(text: str) -> str:
    match = _WRAPPER.search(text)
    while match:
        end = closing_brace(text, match.end())
        if end is None:
            return text
        text = f"{text[: match.start()]}{{{text[match.end() + 1 : end - 1]}}}{text[end:]}"
        match = _WRAPPER.search(text, match.start())
    return text


def _words_or_formula(content: str) -> str:
    inner = re.sub(_TEXT_COMMAND, "", content)
    plain = (re.sub(r"[{}]", "", inner) if "^" not in inner else inner).strip(" ~")
    if plain in _NAMES:
        return f"\\{plain} "
    letters = re.sub(r"\\[a-zA-Z]+", "", plain)
    if not any(c.isalpha() for c in letters) or plain in ("i", "e", "x", "d"):
        return f" {plain} " if plain else " "
    flat = inner.replace("{", "").replace("}", "") if "\\" not in inner or "^" in inner else inner
    return f"\\text{{{flat}}}" if "{" not in flat else f"\\text{{{plain}}}"


def _undelimited(text: str) -> str:
    text = _final_marks(text.strip())
    for opens, closes in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if len(text) > len(opens) + len(closes) and text.startswith(opens) and text.endswith(closes):
            text = _final_marks(text[len(opens) : -len(closes)].strip())
    return re.sub(r"\\[()\[\]]", " ", text) if r"\(" in text or r"\[" in text else text


def _final_marks(text: str) -> str:
    return text if text.endswith(r"\ldots") else text.rstrip(" .,;") if not text.endswith("\\,") else text


def _in_currency(text: str) -> str:
    r"""A sign of currency as a word behind its number."""
    if text.count("$") == 2 and "\\$" not in text and not re.match(r"\$-?[0-9]", text):
        return text.replace("$", "")
    for amount, behind, name in _CURRENCIES:
        text = amount.sub(
            lambda found, name=name: f"{found[1]}{found[2]}{found[3] or ''}\\text{{ {name} }}", text
        )
        text = behind.sub(rf"\\text{{ {name} }}", text)
    return text


def unbraced(text: str) -> str:
    """Without the braces that enclose all of it."""
    while text.startswith("{") and closing_brace(text, 0) == len(text) > 2:
        text = text[1:-1].strip()
    return text


def closing_brace(text: str, start: int) -> int | None:
    """Behind the brace that closes the one at `start`; None when it is never closed."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return start + token.end()
    return None
