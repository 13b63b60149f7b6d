"""Check again the answers that a reasoning-gym scorer gives full credit.

Many scorers search the answer for what they expect ("20 or 12345" for 20), skip what they cannot
read, or allow a wide tolerance. Full credit needs more: the whole answer is the entry's own answer
in another spelling, or has the form that the task asks for. Where a task has many right answers,
its scorer has tried the answer, and the form makes sure that nothing of it was skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

from reasoning_gym.games.boxnet import action_from_response
from reasoning_gym.games.rush_hour import Board

from sppo_ray.rewards.reasoning_gym.grammar import Names, evaluate, is_expression

Entry = Mapping[str, Any]

_UNREADABLE = (ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RecursionError)
_NUMBER = r"[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
_NOT = re.compile(r"\bnot\b|n['’]t\b", re.IGNORECASE)
_EMPTY = re.compile(r"(?:<answer>\s*</answer>|\\boxed\{\s*\}\$*)\s*\Z")
_NOTHING = re.compile(r"[\s\[\](){}<>\"'`.,:;_-]*")


def is_own_answer(answer: str, entry: Entry) -> bool:
    """Whether the answer is the entry's own one; runs of spaces count as one. For an empty one the
    response has an empty box or tag, and the answer is then the whole response. An integral that
    SymPy has left in its solution is the question again, and not an answer.
    """
    if "Integral(" in str(entry["answer"]):
        return False
    if entry["answer"] == "":
        return _EMPTY.search(answer) is not None
    return entry["answer"] is not None and _lines(answer) == _lines(str(entry["answer"]))


def deserves_full_credit(task: str, answer: str, entry: Entry) -> bool:
    """Whether an answer that the scorer of `task` gives full credit is right as a whole."""
    try:
        with localcontext(Context(prec=60)):  # some tasks of reasoning-gym change the precision for all
            return _CHECKS.get(task, _is_same)(answer, entry)
    except _UNREADABLE:
        return False


def deserves_no_credit(answer: str, entry: Entry) -> bool:
    """Whether the answer is empty or negates the entry's own one; no task gives these partial
    credit.
    """
    own = str(entry["answer"]).strip()
    if _NOTHING.fullmatch(answer) or len(_NOT.findall(answer)) > len(_NOT.findall(own)):
        return True
    return own != "" and re.search(r"[-−¬~!]\s*" + re.escape(own), answer) is not None


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().split("\n")]


# --------------------------------------------------------------------------------- one right answer


def _is_same(answer: str, entry: Entry) -> bool:
    """The entry's own answer up to spaces and case, or the same number. The scorer has refused what
    its task tells apart.
    """
    own = str(entry["answer"])
    return _without_spaces(answer) == _without_spaces(own) or _number(answer) == _number(own)


def _without_spaces(text: str) -> str:
    """In lower case, without spaces but those between digits: 1 2 is not 12."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", " ".join(text.split())).casefold()


def _number(text: str) -> Decimal:
    """Raises ValueError for a text that is no decimal number."""
    text = text.strip()
    if not re.fullmatch(_NUMBER, text):
        raise ValueError(text)
    return Decimal(text.replace(",", ""))


def _numbers(text: str, separator: str = ",") -> list[Decimal]:
    return [_number(part) for part in text.split(separator)]


def _is_rounding(answer: Decimal, exact: Decimal, *, places: int) -> bool:
    """Whether the answer is `exact`, rounded to at least `places` decimal places."""
    exponent = answer.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    # `exact` may come from a float, which holds 15 digits
    places = min(max(places, -exponent), 14 - exact.adjusted())
    return abs(answer - exact) <= Decimal(5).scaleb(-places - 1)


def _is_rounding_to_digits(answer: Decimal, exact: Decimal, *, digits: int) -> bool:
    """Whether the answer is `exact`, rounded to at least `digits` significant digits."""
    return _is_rounding(answer, exact, places=digits - 1 - exact.adjusted())


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def _json(text: str) -> Any:
    """JSON in which no key occurs twice; 1.0 becomes 1."""
    return json.loads(text, object_pairs_hook=_without_repeats, parse_float=_plain_number)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _plain_number(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() else value


def _is_same_json(answer: str, entry: Entry) -> bool:
    """In Python true is 1; as JSON it is not."""
    ours, own = (json.dumps(_json(text), sort_keys=True) for text in (answer, entry["answer"]))
    return ours == own


def _is_same_angle_point_or_radius(answer: str, entry: Entry) -> bool:
    metadata = entry["metadata"]
    if metadata["task_type"] == "angle_measure":
        exact = Decimal(str(metadata["angle_ABC_degrees"]))
        return _is_rounding(_number(answer.removesuffix("°")), exact, places=2)
    if metadata["task_type"] == "orthocenter":
        point = [_decimal(Fraction(value)) for value in metadata["ortho"]]
        found = _numbers(answer.removeprefix("(").removesuffix(")"))
        return len(found) == 2 and all(
            _is_rounding(one, exact, places=3) for one, exact in zip(found, point, strict=True)
        )
    return _is_same(answer, entry)


def _is_same_probability(answer: str, entry: Entry) -> bool:
    rational = entry["metadata"]["rational"]
    exact = Fraction(rational["numerator"], rational["denominator"])
    if re.fullmatch(r"[0-9]+\s*/\s*[0-9]+", answer):
        return Fraction(answer.replace(" ", "")) == exact
    return _is_rounding_to_digits(_number(answer), _decimal(exact), digits=4)


def _is_same_result(answer: str, entry: Entry) -> bool:
    """The solution has rounding errors in its last digits, because each step was rounded."""
    problem = re.search(r"^([-+*/(). 0-9]+) = \?$", entry["question"], re.MULTILINE)
    exact = _decimal(evaluate(problem[1])[0]) if problem else Decimal(entry["answer"])
    return _is_rounding(_number(answer), exact, places=3)


def _is_same_power(answer: str, entry: Entry) -> bool:
    return _is_rounding_to_digits(_number(answer), Decimal(entry["answer"]), digits=3)


def _is_same_candidate(answer: str, entry: Entry) -> bool:
    """The number of the solution, or the number as the question shows it."""
    metadata = entry["metadata"]
    shown = metadata["formatted_candidates"][metadata["candidates"].index(metadata["solution"])]
    return _number(answer) in (_number(shown), _number(entry["answer"]))


def _is_same_matrix(answer: str, entry: Entry) -> bool:
    rows, solution = _lines(answer), entry["metadata"]["solution"]
    return list(map(len, rows)) == list(map(len, solution)) and all(
        _is_rounding(_number(cell), Decimal(str(exact)), places=2)
        for row, exacts in zip(rows, solution, strict=True)
        for cell, exact in zip(row, exacts, strict=True)
    )


def _are_same_roots(answer: str, entry: Entry) -> bool:
    if not entry["answer"]:  # no root: the question asks for an empty string
        return re.fullmatch(r"\"\"|''", answer) is not None
    return sorted(_numbers(answer)) == sorted(_numbers(entry["answer"]))


def _are_same_in_order(answer: str, entry: Entry) -> bool:
    ours, own = (json.loads(text.replace("'", '"')) for text in (answer, entry["answer"]))
    return [_number(str(one)) for one in ours] == [_number(str(one)) for one in own]


def _are_same_partitions(answer: str, entry: Entry) -> bool:
    partitions, solution = _json(answer), entry["metadata"]["solution"]
    return all(isinstance(one, list) for one in partitions) and sorted(partitions) == sorted(solution)


# ------------------------------------------------------------------------------- many right answers


def _form(pattern: str) -> Callable[[str, Entry], bool]:
    """A check that the whole answer matches the pattern."""
    compiled = re.compile(pattern, re.ASCII | re.DOTALL)
    return lambda answer, entry: compiled.fullmatch(answer) is not None


def _is_interval(answer: str, entry: Entry) -> bool:
    """Days alone where days are asked for: the scorer would not read a time behind them."""
    time = r"(?:[0-9]+ days, )?[0-9]+:[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{3})?)?"
    asked = r"[0-9]+(?: days?)?" if entry["metadata"]["task_type"] == "date" else time
    return re.fullmatch(asked, answer, re.ASCII) is not None


def _uses_each_number_once(numbers: str, target: int | str) -> Callable[[str, Entry], bool]:
    def check(answer: str, entry: Entry) -> bool:
        value, used = evaluate(answer)
        metadata = entry["metadata"]
        due = metadata[target] if isinstance(target, str) else target
        return value == due and sorted(used) == sorted(metadata[numbers])

    return check


def _is_mapping_of_letters(answer: str, entry: Entry) -> bool:
    pairs = answer.split(",")
    return len(pairs) == len(entry["metadata"]["letters"]) and all(
        re.fullmatch(r"\s*[A-Z]\s*=\s*[0-9]\s*", pair) for pair in pairs
    )


def _is_coloring(answer: str, entry: Entry) -> bool:
    colors = _json(answer)
    return sorted(colors) == sorted(map(str, entry["metadata"]["puzzle"]["vertices"])) and all(
        type(color) is type(entry["metadata"]["puzzle"]["color_options"][0]) for color in colors.values()
    )


def _is_list_of(pattern: str) -> Callable[[str, Entry], bool]:
    def check(answer: str, entry: Entry) -> bool:
        items = _json(answer)
        return isinstance(items, list) and all(re.fullmatch(pattern, item) for item in items)

    return check


def _are_roles(answer: str, entry: Entry) -> bool:
    parts = re.split(r"\s*(?:[,.]|\band\b)\s*", answer, flags=re.IGNORECASE)
    statements = [part for part in parts if part]
    return len(statements) == len(entry["metadata"]["names"]) and all(
        re.fullmatch(r"\S+ is an? \w+", one, re.IGNORECASE) for one in statements
    )


def _is_formula(answer: str, entry: Entry) -> bool:
    """Only the operators of the task, between the entry's variables."""
    if not re.fullmatch(r"[A-Z∧∨¬→↔()\s]+", answer):
        return False
    as_arithmetic = re.sub("[∧∨→↔]", "+", answer.replace("¬", "-"))
    return is_expression(as_arithmetic, Names(entry["metadata"]["variables"]))


def _are_moves_of_cars(answer: str, entry: Entry) -> bool:
    """Each car goes as far as its move says; the scorer stops it where it cannot go on."""
    board = Board(entry["metadata"]["board_config"])
    for move in answer.split():
        if not re.fullmatch(r"[A-Z][-+][1-5]", move):
            return False
        piece = board._pieces[ord(move[0]) - ord("A")]
        due = piece.position + int(move[1:]) * piece.stride
        board.move(move[0], int(move[1:]))
        if piece.position != due:
            return False
    return True


def _are_moves_of_boxes(answer: str, entry: Entry) -> bool:
    """Each move changes the board; the scorer skips moves that are not possible."""
    state = entry["metadata"]["initial_state"]
    square = r"\[[0-9]+\.5, [0-9]+\.5\]"
    for step in _json(answer):
        for agent, move in step.items():
            before, state = state, action_from_response(state, [{agent: move}])
            if (
                state == before
                or not re.fullmatch(rf"Agent{square}", agent)
                or not re.fullmatch(rf"move\(box_\w+, (?:square{square}|target_\w+)\)", move)
            ):
                return False
    return True


def _is_from_the_scorer(answer: str, entry: Entry) -> bool:
    """The scorer reads the whole answer and skips nothing."""
    return True


_CHECKS: dict[str, Callable[[str, Entry], bool]] = {
    "advanced_geometry": _is_same_angle_point_or_radius,
    "bitwise_arithmetic": _form(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|[0-9]+)"),
    "boxnet": _are_moves_of_boxes,
    "codeio": _is_same_json,
    "coin_flip": _is_same_probability,
    "complex_arithmetic": _form(r"[-+.()0-9eEijIJ ]+"),
    "countdown": _uses_each_number_once("numbers", "target"),
    "cryptarithm": _is_mapping_of_letters,
    "decimal_arithmetic": _is_same_result,
    "fraction_simplification": _form(
        r"\$*\s*(?:\\d?frac\s*\{\s*[0-9]+\s*\}\s*\{\s*[0-9]+\s*\}|[0-9]+\s*/\s*[0-9]+)\s*\$*"
    ),
    "game_of_life": _is_same_json,
    "graph_color": _is_coloring,
    "group_anagrams": _is_from_the_scorer,
    "intermediate_integration": _is_from_the_scorer,
    "jugs": _is_list_of(r"(?:fill|empty) [A-Z]|pour [A-Z]->[A-Z]"),
    "kakurasu": _form(r"[01](\s+[01])*|[01]+(\n[01]+)*"),
    "knight_swap": _is_from_the_scorer,
    "knights_knaves": _are_roles,
    # "the style of the sentence is preserved (i.e. punctuation, capitalization, new lines, etc.)"
    "letter_jumble": lambda answer, entry: False,
    "n_queens": _is_from_the_scorer,
    "number_format": _is_same_candidate,
    "number_sorting": _are_same_in_order,
    "palindrome_generation": _is_from_the_scorer,
    "palindrome_partitioning": _are_same_partitions,
    "polynomial_equations": _are_same_roots,
    "polynomial_multiplication": _is_from_the_scorer,
    "pool_matrix": _is_same_matrix,
    "power_function": _is_same_power,
    "prime_factorization": _form(r"[0-9]+(?:\s*\u00d7\s*[0-9]+)*"),
    "propositional_logic": _is_formula,
    "puzzle24": _uses_each_number_once("numbers", 24),
    "quantum_lock": _form(r"[A-Ca-c](?:\s*(?:\u2192|->|,)?\s*[A-Ca-c])*"),
    "rubiks_cube": _form(r"[A-Z]w?'?[0-9]?(?:\s+[A-Z]w?'?[0-9]?)*"),
    "rush_hour": _are_moves_of_cars,
    "shortest_path": _is_from_the_scorer,
    "simple_integration": _is_from_the_scorer,
    "sokoban": _form(r"[LRUD]+"),
    "time_intervals": _is_interval,
    "tower_of_hanoi": _form(r"(?:\s*Move disk [0-9]+ from Peg [0-9]+ to Peg [0-9]+\s*(?:\n|$))+"),
    "word_ladder": _form(r"[A-Za-z]+(?:\s*,\s*[A-Za-z]+)*"),
}  # fmt: skip
"""For each task that takes other answers than the entry's own one: the check of the whole."""
