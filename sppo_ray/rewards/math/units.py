r"""What stands behind a number: units, words of magnitude, percent, and other words (5.4\text{
cents}, 3 million, 12 apples).

Known units are compared by their dimensions and converted by an exact factor. The noun of what is
counted may be added or left out (12 apples is 12). Any other word could change the value
(6 recurring): an answer adds none, and leaves none out that is known to do so (5 squared, 1990 BC).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from sppo_ray.rewards.math.counted import is_adjective, is_counted, singular

Dimensions = tuple[tuple[str, int], ...]
"""Base units and their powers, sorted: (("m", 1), ("s", -2))."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What stands behind a number."""

    scale: Fraction = Fraction(1)  # of its words of magnitude: 1,000,000 for "million"
    percent: bool = False
    factor: Fraction = Fraction(1)  # of the unit, in base units
    dimensions: Dimensions = ()
    shorthand: bool = False  # the unit may also be a word of magnitude: 5 K, 5 B, 5 T
    words: frozenset[str] = field(default_factory=frozenset)  # all others, in the singular
    unknown: frozenset[str] = field(default_factory=frozenset)  # those that could change the value
    changing: frozenset[str] = field(default_factory=frozenset)  # those that are known to

    @property
    def has_unit(self) -> bool:
        return bool(self.dimensions)

    @property
    def is_known(self) -> bool:
        """Whether it begins with a unit, a word of magnitude or percent."""
        return self.has_unit or self.percent or self.scale != 1


NO_TAIL = Tail()

# factor in base units, dimensions as text, symbols, names (plural s is understood); * takes SI
# prefixes
_TABLE = """
1 m:1 | m* | meter* metre*
1/100 m:1 | | centimeter centimetre
1609344/1000 m:1 | mi | mile
9144/10000 m:1 | yd | yard
3048/10000 m:1 | ft | foot feet
254/10000 m:1 | in | inch inche
1852 m:1 | nmi |
1/1000 kg:1 | g* | gram* gramme*
1000 kg:1 | t | ton tonne
45359237/100000000 kg:1 | lb lbs | pound
45359237/1600000000 kg:1 | oz | ounce
1 s:1 | s* sec | second* 秒
60 s:1 | min mins | minute 分钟
3600 s:1 | h hr hrs | hour 小时
86400 s:1 | d | day 天
604800 s:1 | wk | week 周
1 month:1 | mo | month
12 month:1 | yr yrs | year 年
1 A:1 | A* | ampere* amp*
1 K:1 | K | kelvin
1 celsius:1 | °C degC | celsius
1 fahrenheit:1 | °F degF | fahrenheit
1 mol:1 | mol* | mole*
1 cd:1 | cd | candela
1 kg:1,m:1,s:-2 | N* | newton*
1 kg:1,m:2,s:-2 | J* | joule*
4184/1000 kg:1,m:2,s:-2 | cal* | calorie*
3600 kg:1,m:2,s:-2 | Wh* |
1602176634/10000000000000000000000000000 kg:1,m:2,s:-2 | eV* |
1 kg:1,m:2,s:-3 | W* | watt*
1 kg:1,m:-1,s:-2 | Pa* | pascal*
101325 kg:1,m:-1,s:-2 | atm | atmosphere
100000 kg:1,m:-1,s:-2 | bar* |
1 A:-1,kg:1,m:2,s:-3 | V* | volt*
1 A:-2,kg:1,m:2,s:-3 | Ω* Ohm ohm* | ohm*
1 A:1,s:1 | C* | coulomb*
1 A:2,kg:-1,m:-2,s:4 | F* | farad*
1 A:-1,kg:1,s:-2 | T* | tesla*
1 A:-1,kg:1,m:2,s:-2 | Wb* | weber*
1 A:-2,kg:1,m:2,s:-2 | H* | henry
1 s:-1 | Hz* | hertz
1/1000 m:3 | L* l* | liter* litre* 升
10000 m:2 | ha | hectare
40468564224/10000000 m:2 | ac | acre
1/1000000 m:3 | cc |
3785411784/1000000000000 m:3 | gal | gallon
3785411784/4000000000000 m:3 | qt | quart
3785411784/8000000000000 m:3 | pt | pint
1 dollar:1 | USD usd | dollar buck
1/100 dollar:1 | ¢ | cent
1 euro:1 | EUR | euro
1 sterling:1 | GBP | sterling
1 yuan:1 | CNY RMB | yuan 元
1 yen:1 | JPY | yen
1 rupee:1 | Rs INR | rupee
1 degree:1 | ° deg | degree 度
1/60 degree:1 | arcmin |
1 radian:1 | rad | radian
1 bit:1 | bit* |
8 bit:1 | B* | byte*
1609344/3600000 m:1,s:-1 | mph |
1000/3600 m:1,s:-1 | kph kmh |
1 m:1 | | 米
1/100 m:1 | | 厘米
1000 m:1 | | 千米 公里
1 kg:1 | | 千克 公斤
1/1000 kg:1 | | 克
"""
_PREFIXES = {
    "p": -12, "n": -9, "µ": -6, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "h": 2, "k": 3, "K": 3, "M": 6,
    "G": 9, "T": 12,
}  # fmt: skip
_PREFIX_NAMES = {
    "pico": -12,
    "nano": -9,
    "micro": -6,
    "milli": -3,
    "centi": -2,
    "deci": -1,
    "kilo": 3,
    "mega": 6,
    "giga": 9,
}
_ILLIONS = ["m", "b", "tr", "quadr", "quint", "sext", "sept", "oct", "non", "dec"]
_SCALES = {f"{name}illion": 10 ** (3 * number) for number, name in enumerate(_ILLIONS, 2)} | {
    "hundred": 100, "thousand": 1000, "googol": 10**100,
    "dozen": 12, "score": 20, "gross": 144, "lakh": 10**5, "crore": 10**7, "万": 10**4, "亿": 10**8,
    "十": 10, "百": 100, "千": 1000, "百万": 10**6, "千万": 10**7,
}  # fmt: skip
_SHORTHAND = (["K"], ["B"], ["T"])
_PERCENT = frozenset(["percent", "percents", "pct", "percentage", "%"])
_CHANGING = frozenset([
    "squared", "cubed", "half", "halves", "third", "thirds", "quarter", "quarters", "fourth", "fourths",
    "fifth", "fifths", "sixth", "sixths", "seventh", "sevenths", "eighth", "eighths", "ninth", "ninths",
    "tenth", "tenths", "hundredth", "hundredths", "thousandth", "thousandths", "millionth", "millionths",
    "pair", "pairs", "couple", "couples", "times", "fold", "double", "doubled", "triple", "tripled",
    "twice", "thrice", "halved", "am", "pm", "ad", "bc", "bce", "ce", "less", "more", "fewer", "greater",
    "larger", "smaller", "higher", "lower", "loss", "losses", "lost", "profit", "profits", "profited",
    "gain", "gained", "gains", "above", "below", "under", "over", "before", "after", "ago", "later",
    "earlier", "left", "north", "south", "east", "west", "n", "s", "e", "w", "northern", "southern",
    "eastern", "western", "northeast", "northwest", "southeast", "southwest", "up", "down", "upward",
    "downward", "clockwise", "counterclockwise", "anticlockwise", "increase", "increased", "decrease",
    "decreased", "debt", "deficit", "surplus", "credit", "debit", "owed", "minus", "negative", "plus",
    "positive", "not", "no", "except", "least", "most", "remainder", "remaining", "mod", "modulo", "base",
    "factorial", "root", "roots", "power", "cube", "square", "reciprocal", "inverse", "opposite", "per",
    "maximum", "minimum", "max", "min", "or", "and", "but", "than", "inward", "outward", "withdrawn",
    "deposited", "hence", "consecutive", "wrong", "incorrect", "false", "impossible", "maybe", "perhaps",
    "possibly", "either", "unless", "guess", "unsure", "nearly", "almost", "without", "excluding",
    "including", "divided", "multiplied", "short", "too", "else", "instead", "rather", "never", "none",
    "neither", "nor", "if", "should", "would", "could", "might", "may", "complement", "cannot",
    "isn't", "percentile", "outside", "beyond", "behind", "inverted", "reversed",
    "mirrored", "negated", "rejected", "tens", "grand", "point", "through", "basis", "ppm", "ppb", "permille",
    "bn", "mn", "tn", "mln", "bln", "mil", "mill", "mio", "thou", "myriad", "excluded", "k", "m", "untrue",
    "one", "two", "three", "four", "five", "six", "seven",
    "eight", "nine", "ten", "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "hundred",
    "成", "折", "倍", "半", "不对", "错", "错误", "不是", "以上", "以下",
    "log", "logarithm", "ln", "sin", "sine", "cos", "cosine", "tan", "tangent", "exp", "exponential", "sqrt",
    "pi", "infinity", "infinite", "infinitesimal", "imaginary", "complex", "conjugate", "recurring",
    "repeating", "repeated", "reoccurring", "binary", "ternary", "octal", "hex", "hexadecimal", "radix",
    "quintuple", "quadruple", "triplet", "trio", "twin", "quartet", "doubles", "kilo", "mega", "giga",
    "tera", "milli", "micro", "nano", "pico", "googolplex", "zillion", "gazillion", "exponent", "xor",
    "nand", "nor", "implies", "iff", "equals", "exceeds", "mille", "permil", "zeros", "zeroes", "orders",
    "order", "magnitude", "decade", "century", "centuries", "fortnight", "score", "thrice", "quarterly",
    "halving", "doubling",
])  # fmt: skip
"""Words known to say another value, side or sign than the number alone."""
_FRACTION = re.compile(r"(?!months?$)[a-z-]{2,}(?:(?:n|r|f|x|h|ie|d|illion)ths?|illions?)$")
"""Sixteenths, octillions."""
_LOGIC = frozenset(["if", "iff", "implies", "unless", "when", "whenever", "provided", "where"])
"""Words that join statements: p only if q is no p with words behind it."""
_LEFT = frozenset(["left", "remaining", "remain", "remains"])
_STEPS = frozenset([
    "step", "block", "space", "place", "position", "turn", "seat", "row", "column", "floors", "stair",
    "tile", "page", "key", "house", "street", "door", "cell", "box", "stop", "shift", "exit", "lane", "side",
    "corner", "rotation", "screen", "pixel",
])  # fmt: skip
_MOVED = frozenset(["m", "degree", "radian"])
"""What is counted or measured to the left as well."""
_EMPTY = frozenset([
    "of", "the", "a", "an", "total", "in", "exactly", "only", "altogether", "different", "distinct",
    "possible", "unit", "units", "way", "ways", "about", "approximately", "roughly", "around", "such",
    "these", "both", "all", "answer", "is", "are", "was", "were", "each", "long", "away",
])  # fmt: skip
_NUMBER_WORD = re.compile(
    r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|[a-z]+ty|hundred|thousand"
    r"|dozen|score|pair|gross)s?"
)
_CANCELLED: Dimensions = (("1", 1),)
"""Of km/km, which is not the same as no unit."""
_UNITS = re.compile(r"\b(?:square|sq|cubic|cu)\.?\s+units?\b|\bunits?\s*\^\s*[23](?![0-9])")
_ORDINAL = re.compile(r"(?<=[0-9])\s*\^?\s*(?:st|nd|rd|th)(?![A-Za-z])")
_HYPHENS = frozenset("-'’")
_TOKENS = re.compile(r"[A-Za-zµμΩ°¢%一-鿿]+\.?(?:[A-Za-z]\.)?|\^\s*-?[0-9]+|[0-9]+|/|[-'’]")


def read_tail(text: str, *, attached: bool = False) -> Tail | None:
    """What words and signs behind a number mean; None where they are none (a formula goes on).

    `attached` says that no space stands before them: then they must be known (2ab is no number of
    "ab").
    """
    plain = _UNITS.sub("units", _plain(text))
    tokens = _TOKENS.findall(plain)
    if "".join("".join(tokens).split()) != "".join(plain.split()):
        return None
    scale, percent, at = Fraction(1), False, 0
    while at < len(tokens) and (
        tokens[at].casefold() in _SCALES or tokens[at].casefold().removesuffix("s") in _SCALES
    ):
        scale *= _SCALES.get(tokens[at].casefold()) or _SCALES[tokens[at].casefold().removesuffix("s")]
        at += 1
    if at < len(tokens) and tokens[at].casefold().rstrip(".") in _PERCENT:
        percent, at = True, at + 1
    factor, dimensions, at = _unit(tokens, at)
    shorthand = bool(dimensions) and tokens[at - 1 : at] in _SHORTHAND
    rest = [word for token in tokens[at:] if (word := token.casefold().replace(".", "").strip("-'’"))]
    if attached and at == 0 or any(not word[:1].isalpha() for word in rest):
        return None
    # loaves of bread, pounds of meat
    materials = {
        singular(word)
        for place, word in enumerate(rest)
        if (place or dimensions) and "of" in rest[:place] and not _NUMBER_WORD.fullmatch(word)
    }
    if not _LOGIC.isdisjoint(rest):
        return None
    if len(rest) > 1 or rest[:1] != ["a"]:  # 6a is no 6
        rest = [word for word in rest if word not in _EMPTY]
    rest = rest[: _end_of_nouns(rest, dimensions, materials)]
    words, changing = frozenset(map(singular, rest)), frozenset(filter(_is_changing, rest))
    changing = frozenset(map(singular, changing))
    known = {word for word in words if word in materials or is_counted(word) or _is_unit(word)}
    if not _HYPHENS.isdisjoint(tokens[:1]) or any(map(is_adjective, rest[-1:])):  # 6-tuple, 6 real
        known = set()
    unknown = changing | (words - known)
    return Tail(scale, percent, factor, dimensions, shorthand, words, unknown, changing)


def _end_of_nouns(words: Sequence[str], dimensions: Dimensions, materials: set[str]) -> int:
    """Where a word that changes nothing starts: 4 cookies left, 5 dollars remaining. 4 steps left
    are steps to the left, and so may be 4 metres.
    """
    if list(words[-2:]) == ["left", "over"]:
        return _end_of_nouns(words[:-1], dimensions, materials)
    *before, last = words or [""]
    noun = singular(before[-1]) if before else ""
    counted = is_counted(noun) or noun in materials if before else bool(dimensions)
    moved = noun in _STEPS if before else not _MOVED.isdisjoint(name for name, _ in dimensions)
    return len(words) - (last in _LEFT and counted and not (last == "left" and moved))


def _is_changing(word: str) -> bool:
    forms = (word, singular(word))
    return any(form in _CHANGING or _FRACTION.match(form) for form in forms)


def _is_unit(word: str) -> bool:
    """Whether a word that follows another one names a unit: 6 whole days."""
    return len(word) > 2 and _named(word) is not None


def without_ordinal(text: str) -> str:
    r"""14th, 14^{th} and 14^\text{th} as 14."""
    return _ORDINAL.sub("", _plain(text)) if _ORDINAL.search(_plain(text)) else text


def _plain(text: str) -> str:
    """Text blocks, spaces and powers as plain signs."""
    text = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree", "° ", text)
    text = re.sub(r"°\s*([CF])(?![A-Za-z])", r" °\1 ", text)
    text = re.sub(r"\^\s*\{\s*(-?[0-9]+|st|nd|rd|th)\s*\}", r"^\1", text)
    text = re.sub(r"\^\s+(?=(?:st|nd|rd|th)(?![A-Za-z]))", "^", text)
    text = re.sub(r"(?<=[A-Za-z])([23])(?![0-9])", r"^\1", text)  # cm2; but 7 m 8 is no power
    text = text.replace(r"\mu", "µ").replace(r"\Omega", "Ω").replace(r"\%", "%").replace("*", " ")
    text = re.sub(r"\\(?:cdot|times|[,;:! ])|[~·⋅{}]", " ", text)
    return re.sub(r"\bper cent\b", "percent", re.sub(r"µ\s+(?=[A-Za-zΩ])|\b([kMGm])\s+(?=Ω)", _glued, text))


def _glued(prefix: re.Match[str]) -> str:
    return prefix.group().strip()


def _unit(tokens: list[str], at: int) -> tuple[Fraction, Dimensions, int]:
    """The unit that starts at a token: its factor and dimensions, and where it ends; no dimensions
    where there is none.
    """
    factor, powers, sign, start = Fraction(1), dict[str, int](), 1, at
    while at < len(tokens):
        if tokens[at] in ("/", "per") and powers and sign == 1:
            sign, at = -1, at + 1
            continue
        found = _single(tokens, at)
        if found is None:
            break
        size, dimensions, power, at = found
        factor *= size ** (power * sign)
        for name, exponent in dimensions:
            powers[name] = powers.get(name, 0) + exponent * power * sign
    if at > start and tokens[at - 1] in ("/", "per"):
        at -= 1
    dimensions = tuple(sorted((name, power) for name, power in powers.items() if power))
    return factor, dimensions or (_CANCELLED if powers and factor == 1 else ()), at


def _single(tokens: list[str], at: int) -> tuple[Fraction, Dimensions, int, int] | None:
    """One unit with its power, and where it ends."""
    power = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}.get(tokens[at].casefold().rstrip("."), 1)
    at += power > 1
    if at >= len(tokens):
        return None
    if tokens[at].casefold().rstrip("s.") in ("degree", "deg", "°") and at + 1 < len(tokens):
        scale = tokens[at + 1].strip("°").casefold()
        if scale in ("c", "celsius", "centigrade", "f", "fahrenheit"):
            return Fraction(1), (("celsius" if scale[0] == "c" else "fahrenheit", 1),), 1, at + 2
    found = _named(tokens[at])
    if found is None:
        return None
    at += 1
    if at < len(tokens) and (exponent := re.fullmatch(r"\^\s*(-?[0-9])", tokens[at])):
        return *found, int(exponent[1]), at + 1
    if at < len(tokens) and tokens[at].casefold() in ("squared", "cubed"):
        return *found, 2 if tokens[at].casefold() == "squared" else 3, at + 1
    return *found, power, at


def _named(word: str) -> tuple[Fraction, Dimensions] | None:
    """A unit by its symbol (case counts) or its name, with an SI prefix where it takes one."""
    word = word.rstrip(".")
    if word in _SYMBOLS:
        return _SYMBOLS[word][:2]
    plain = word.casefold()
    for name in (plain, plain.removesuffix("s"), plain.removesuffix("es")):
        if name in _NAMES:
            return _NAMES[name][:2]
        for prefix, power in _PREFIX_NAMES.items():
            base = _NAMES.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
            if base and base[2]:
                return base[0] * Fraction(10) ** power, base[1]
    base = _SYMBOLS.get(word[1:]) if word[:1] in _PREFIXES else None
    if base and base[2]:
        return base[0] * Fraction(10) ** _PREFIXES[word[0]], base[1]
    return _SYMBOLS[plain][:2] if len(plain) > 1 and plain in _SYMBOLS else None


def _tables() -> tuple[dict[str, tuple[Fraction, Dimensions, bool]], ...]:
    symbols: dict[str, tuple[Fraction, Dimensions, bool]] = {}
    names: dict[str, tuple[Fraction, Dimensions, bool]] = {}
    for line in _TABLE.strip().splitlines():
        size, dimensions, rest = line.split(maxsplit=2)
        pairs = (part.split(":") for part in dimensions.split(","))
        unit = Fraction(size), tuple(sorted((name, int(power)) for name, power in pairs))
        for table, column in zip((symbols, names), rest.split("|")[1:], strict=True):
            table |= {word.rstrip("*"): (*unit, word.endswith("*")) for word in column.split()}
    return symbols, names


_SYMBOLS, _NAMES = _tables()
