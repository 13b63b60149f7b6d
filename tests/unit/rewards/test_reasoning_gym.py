"""Answers to reasoning-gym tasks whose scorer evaluates text: code is never run, and no right
answer is lost.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from decimal import Context, localcontext
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from sppo_ray.config import ReasoningGymReward, RewardSettings
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import BadGroundTruth
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.rewards.reasoning_gym import verifier as gym
from sppo_ray.rewards.reasoning_gym.evaluated import ANSWERS, ENTRIES
from sppo_ray.rewards.reasoning_gym.evaluators import evaluating
from sppo_ray.rewards.reasoning_gym.grammar import Names, is_expression, is_integer_expression
from sppo_ray.rewards.registry import build_verifier
from sppo_ray.types import ScoreRequest, Verdict
from tests import fuzz_reasoning_gym

PARTIAL = gym.make_reasoning_gym_verifier(full_only=False)
SECRET = "sk-of-a-judge"


def entry_of(task: str, seed: int = 0, **settings: Any) -> dict[str, Any]:
    return json.loads(json.dumps(reasoning_gym.create_dataset(task, size=1, seed=seed, **settings)[0]))


def extra_of(task: str, entry: dict[str, Any]) -> dict[str, Any]:
    return {"reasoning_gym_task": task, "reasoning_gym_entry": json.dumps(entry)}


def tagged(text: str) -> str:
    return f"<answer>{text}</answer>"


def through_a_pool(samples: Sequence[tuple[str, str, dict[str, Any]]], **settings: Any) -> list[Verdict]:
    """Verdicts on (task, answer, entry), one after another."""

    async def session() -> list[Verdict]:
        pool = VerifierPool(RewardSettings(function=ReasoningGymReward(full_only=False), **settings))
        try:
            requests = (
                ScoreRequest(tagged(text), "", "", "", extra_of(task, entry)) for task, text, entry in samples
            )
            return [await pool.score(request) for request in requests]
        finally:
            await pool.close()

    return asyncio.run(session())


# ----------------------------------------------------------------------------- which tasks evaluate


def test_every_task_whose_scorer_evaluates_text_is_in_the_table() -> None:
    """Fails for a release of reasoning-gym whose scorers evaluate what nobody has written a grammar
    for.
    """
    found = {task for task, (dataset, _) in DATASETS.items() if evaluating(dataset.score_answer, dataset)}
    assert found == ANSWERS.keys() | ENTRIES.keys()


def test_what_evaluates_is_seen_through_methods_functions_and_classes() -> None:
    class Helper:
        @staticmethod
        def read(text: str) -> object:
            return [eval(one) for one in text.split()]

    def score_answer(self: object, answer: str, entry: object) -> object:
        return self.parse(answer)  # type: ignore[attr-defined]

    class Dataset:
        parse = staticmethod(Helper.read)

    score_answer.__module__ = Helper.read.__module__
    assert evaluating(score_answer, Dataset) == {"eval"}
    assert evaluating(score_answer) == frozenset()


def test_a_task_that_evaluates_and_has_no_grammar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ANSWERS, "countdown")
    gym._score_function.cache_clear()
    entry = entry_of("countdown")
    with pytest.raises(
        UserError,
        match="scorer of 'countdown' may run code out of an answer .*parse_expr.*leave the task out",
    ):
        PARTIAL(tagged(entry["answer"]), "", extra_of("countdown", entry))


def test_every_task_is_scored_behind_the_walls() -> None:
    """Also those that import or read something only then."""
    samples, bare = [], []
    for task in DATASETS:
        if task in ("composite",):  # needs datasets of its own
            continue
        entry = entry_of(task)
        samples.append((task, str(entry["answer"]), entry))
        bare.append(reasoning_gym.get_score_answer_fn(task)(answer=str(entry["answer"]), entry=entry))
    verdicts = through_a_pool(samples, deadline_s=30.0)
    for (task, _, entry), verdict, score in zip(samples, verdicts, bare, strict=True):
        due = score if entry["answer"] is None else 1.0
        assert verdict.reward == due, (task, verdict)


# -------------------------------------------------------------------------- no right answer is lost

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("binary_matrix", {}),
    ("binary_matrix", {"min_n": 8, "max_n": 12}),
    ("countdown", {}),
    ("countdown", {"min_numbers": 8, "max_numbers": 12}),
    ("intermediate_integration", {}),
    ("n_queens", {"n": 4, "min_remove": 1, "max_remove": 3}),
    ("n_queens", {"n": 8}),
    ("polynomial_multiplication", {}),
    (
        "polynomial_multiplication",
        {"allow_cross_variable_product": True, "allow_multivariate_polynomials": True},
    ),
    (
        "polynomial_multiplication",
        {"min_polynomials": 4, "max_polynomials": 5, "max_degree": 5, "max_terms": 6},
    ),
    ("puzzle24", {}),
    ("simple_integration", {}),
    ("simple_integration", {"min_degree": -10, "max_degree": 30, "max_terms": 12}),
    ("spiral_matrix", {}),
    ("spiral_matrix", {"min_n": 8, "max_n": 12}),
    ("string_insertion", {}),
    ("string_insertion", {"min_string_length": 40, "max_string_length": 60}),
    ("bitwise_arithmetic", {"difficulty": 4}),
    ("number_sorting", {}),
]


def variants(task: str, answer: str) -> list[str]:
    """Of a right answer: other spellings of it, some right, some for partial credit, some wrong."""
    rows = [row.split() for row in answer.split("\n")]
    lists = [
        str(rows),
        str(rows[0]),
        str(list(answer)),
        str(tuple(answer)),
        str([list(map(len, row)) for row in rows]),
    ]
    if all(cell.isdigit() for row in rows for cell in row):
        lists += [str([[int(cell) for cell in row] for row in rows]), str([int(cell) for cell in rows[0]])]
    return [
        answer,
        f"({answer})",
        f" {answer} ",
        f"{answer} + 1",
        f"-({answer})",
        f"2*({answer})/2",
        "0",
        "x",
        "1/0",
        "24",
        *lists,
    ]


@pytest.mark.parametrize(("task", "settings"), KINDS)
def test_right_and_wrong_answers_score_what_the_bare_scorer_gives(
    task: str, settings: dict[str, Any]
) -> None:
    dataset = reasoning_gym.create_dataset(task, size=20, seed=11, **settings)
    bare = reasoning_gym.get_score_answer_fn(task)
    for item in dataset:
        entry = json.loads(json.dumps(item))
        own = bare(answer=entry["answer"].strip(), entry=entry)
        unsolved = "Integral(" in entry["answer"]  # the question again: paid by the bare scorer only
        score = PARTIAL(tagged(entry["answer"]), "", extra_of(task, entry))[0]
        assert score == (0.0 if unsolved else own)
    for text in variants(task, entry["answer"]):
        given = gym.answer(tagged(text))
        ours, theirs = PARTIAL(tagged(text), "", extra_of(task, entry))[0], bare(answer=given, entry=entry)
        refused = task in ANSWERS and ANSWERS[task](given, entry) is None
        assert ours == (0.0 if refused else theirs) and not (refused and theirs > 0.05), (text, ours, theirs)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("simple_integration", "x**2*(1 + 2/x) + C"),
        ("intermediate_integration", "exp(2*x)*sin(x)/2 - log(Abs(x), 2) + sqrt(x**2 + 1)**(3/2) + K"),
        ("countdown", "((25 - 3) * 4 / 2 + 7)"),
        ("puzzle24", "(1 + 2 + 3)*4"),
    ],
)
def test_answers_in_other_forms_reach_the_scorer(task: str, answer: str) -> None:
    entry = {"answer": "x + C", "metadata": {"variable": "x", "integrand": "1"}}
    assert ANSWERS[task](answer, entry) == answer


@pytest.mark.parametrize(
    "box", ["daughter", r"\text{daughter}", r" \mathrm{daughter} ", r"\textbf{ daughter }"]
)
def test_a_word_in_a_box_may_be_marked_as_text(box: str) -> None:
    entry = {"answer": "daughter", "metadata": {}}
    assert PARTIAL(rf"It is \boxed{{{box}}}.", "", extra_of("family_relationships", entry))[0] == 1.0
    assert PARTIAL(r"\boxed{\text{son}}", "", extra_of("family_relationships", entry))[0] < 1.0


@pytest.mark.parametrize("answer", ["3*Integral(x**3*cos(3*x), x) + C", "Integral(3*x**3*cos(3*x), x)"])
def test_the_question_itself_is_no_antiderivative(answer: str) -> None:
    """SymPy found no closed form for a tenth of the entries, and left the integral."""
    metadata = {"variable": "x", "integrand": "3*x**3*cos(3*x)"}
    entry = {"answer": "3*Integral(x**3*cos(3*x), x) + C", "metadata": metadata}
    extra = extra_of("intermediate_integration", entry)
    assert PARTIAL(tagged(answer), "", extra)[0] == 0.0
    solved = "x**3*sin(3*x) + x**2*cos(3*x) - 2*x*sin(3*x)/3 - 2*cos(3*x)/9"
    assert PARTIAL(tagged(solved), "", extra)[0] == 1.0


# -------------------------------------------------------------------------------------- the grammar


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "x.y", "x[0]", "lambda: 1", "'a'", "f'{x}'", "x if x else 1",
        "[x for x in x]", "x := 1", "x == 1", "x; 1",
        "entry", "self", "metadata", "solution", "eval(1)", "sin.func(1)", "sin(*x)", "sin(x, y=1)",
        "sin", "sin()", "x(1)", "1(2)",
        "9**9**9", "9**999", "(9**99)**99", "2**1.0000001", "9**-999", "1e9", "0x10", "1_000", "1j",
        "True", "x!", "x^2", "~x", "x//2",
        "x % 2", "x @ x", "9" * 41, "x" + "*1" * 200, "-" * 900 + "1", "x" + "+x" * 600, "", " ",
        "x\\\n", "x # 1",
        "ｘ", "１", "x\x00", "*" * 900, "1." * 300, "await x", "print(x)", "x and x", "not x", "...",
        "{1}", "(1, 2)", "sin(1, 2, 3)",
    ],
)  # fmt: skip
def test_what_is_no_expression(text: str) -> None:
    started = time.monotonic()
    assert not is_expression(text, Names({"x"}, {"sin"}))
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    "text",
    ["1", "-x", "x**2 + 3.5*x/2", "sin(x)**2", "(x + 1)**(1/2)", "2**x", ".5", "+x", "(\nx\n)", "x**-3"],
)
def test_what_is_an_expression(text: str) -> None:
    assert is_expression(text, Names({"x"}, {"sin"}))


def test_problems_of_integers() -> None:
    assert is_integer_expression("((0xab20 * 0xf737) >> 0x2)") and is_integer_expression("~(3 | 4) ^ -2")
    for text in ("__import__('os')", "x", "0xab20 if 1 else 2", "(1, 2)", "1.5", "", "f(1)", "a.b"):
        assert not is_integer_expression(text)


# ---------------------------------------------------------------------------- attacks, task by task


def code(text: str) -> str:
    """As an expression that SymPy's parser lets through too."""
    return f"__import__('builtins').exec({text!r})"


SCOPE = {  # the solution, out of the names that `eval` finds in the scorer
    "binary_matrix": "[row.split() for row in oracle_answer.split(chr(10))]",
    "n_queens": "[row.split() for row in valid_solutions[0].split(chr(10))]",
    "spiral_matrix": "oracle_answer.split()",
    "string_insertion": "list(oracle_answer)",
    "simple_integration": code("import sys; f = sys._getframe(); [f := f.f_back for _ in range(4)]"),
}
PATCHED = "sppo_ray.rewards.reasoning_gym.verifier"
PATCH = code(f'import sys; sys.modules["{PATCHED}"]._score_function = lambda task: lambda answer, entry: 1.0')


def test_no_answer_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each task: a command, a key out of the environment, a patched scorer, the solution; then
    a wrong and a right answer.
    """
    monkeypatch.setenv("KEY_OF_A_JUDGE", SECRET)
    canary = tmp_path / "canary"
    attacks = [
        f"__import__('os').system('touch {canary}')",
        code(f"import os; open({str(canary)!r}, 'w').write(os.environ['KEY_OF_A_JUDGE'])"),
        f"[1 for _ in [__import__('os').system('touch {canary}')]]",
        PATCH,
    ]
    samples = []
    for task in ANSWERS:
        entry = entry_of(task)
        texts = [*attacks, *([SCOPE[task]] if task in SCOPE else []), "nonsense", entry["answer"]]
        samples += [(task, text, entry) for text in texts]
    verdicts = through_a_pool(samples)
    assert not canary.exists()
    for (task, text, entry), verdict in zip(samples, verdicts, strict=True):
        right = text == entry["answer"]
        assert (verdict.reward, SECRET in str(verdict)) == (float(right), False), (task, text, verdict)


def test_fuzzed_answers_run_no_code() -> None:
    assert fuzz_reasoning_gym.run(150, seed=5) == 0


def test_the_fuzzer_finds_faults(tmp_path: Path) -> None:
    entry = entry_of("puzzle24")
    right = fuzz_reasoning_gym.Case("puzzle24", entry["answer"], entry, 1.0)
    verdicts = [
        Verdict(1.0, "correct", 0.1),
        Verdict(0.0, "wrong", 0.1),
        Verdict(None, "error", 0.1),
        Verdict(1.0, SECRET, 0.1),
    ]
    assert len(fuzz_reasoning_gym.find_faults([right] * 4, verdicts, tmp_path / "canary")) == 3
    (tmp_path / "canary").touch()
    assert fuzz_reasoning_gym.find_faults([], [], tmp_path / "canary") == ["the canary was touched"]


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("simple_integration", {"metadata": {"variable": "x", "integrand": "{code}"}}),
        ("intermediate_integration", {"metadata": {"variable": "x", "integrand": "{code}"}}),
        ("simple_integration", {"metadata": {"variable": "__class__", "integrand": "1"}}),
        ("polynomial_multiplication", {"answer": "{code}", "metadata": {"variables": ["x"]}}),
        ("number_sorting", {"answer": "{code}", "metadata": {"direction": "ascending"}}),
        ("bitwise_arithmetic", {"metadata": {"problem": "{code}"}}),
    ],
)
def test_code_in_an_entry_is_an_error_and_not_run(tmp_path: Path, task: str, change: dict[str, Any]) -> None:
    canary = tmp_path / "canary"
    text = json.dumps(entry_of(task) | change).replace("{code}", f"__import__('os').system('touch {canary}')")
    extra = {"reasoning_gym_task": task, "reasoning_gym_entry": text}
    with pytest.raises(BadGroundTruth, match=f"none of reasoning-gym's {task}"):
        build_verifier(ReasoningGymReward()).score(
            tagged("[1]" if task == "number_sorting" else "1"), "", extra
        )
    assert not canary.exists()


def test_an_answer_that_makes_a_scorer_fail_is_wrong_and_a_bad_entry_an_error() -> None:
    survo = entry_of("survo")  # its parser wants integers
    deep = "[" * 100_000
    samples = [("survo", "a b c", survo), ("jugs", deep, entry_of("jugs"))]
    samples += [("boxnet", text, entry_of("boxnet")) for text in (deep, "[]")]
    for (task, *_), verdict in zip(samples, through_a_pool(samples), strict=True):
        assert verdict.reward in (0.0, 0.05) and not verdict.is_error, (task, verdict)
    (broken,) = through_a_pool([("survo", "a b c", {"answer": "1", "metadata": {}})])
    assert broken.reason.startswith("error: KeyError")


@pytest.mark.parametrize("task", [task for task in DATASETS if task != "composite"])
def test_what_answers_nothing_is_never_right(task: str) -> None:
    for seed in range(3):
        entry = entry_of(task, seed)
        for text in ("nan", "inf", "nan + nani", "0", "[]", "{}", "[[]]", "None", "garbage", "1e999", "-"):
            try:
                reward, _ = PARTIAL(tagged(text), "", extra_of(task, entry))
            except Exception:  # wrong in the verifier process, see above
                continue
            if reward == 1.0:
                assert text == str(entry["answer"]) or (text == "0" and float(entry["answer"]) == 0), (
                    text,
                    entry["answer"],
                )


# ------------------------------------------------------------------------------------- full credit


def score_of(task: str, answer: str, entry: dict[str, Any]) -> float:
    return PARTIAL(tagged(answer), "", extra_of(task, entry))[0]


def made(answer: str | None, **metadata: Any) -> dict[str, Any]:
    return {"question": "", "answer": answer, "metadata": metadata}


ANGLE = made("63.43°", task_type="angle_measure", angle_ABC_degrees=63.43494882292201)
POINT = made("(4.051, -5.487)", task_type="orthocenter", ortho=["158/39", "-214/39"])
BOXES, BOX_PLAN = fuzz_reasoning_gym.SOLVED["boxnet"]
CARS, _ = fuzz_reasoning_gym.SOLVED["rush_hour"]
CANDIDATES = {"candidates": [5.12, 5.13], "formatted_candidates": ["5.120000", "5.13"], "solution": 5.12}
COINS = made("0.3125", rational={"numerator": 10, "denominator": 32})
CRYPTARITHM = made("A=1,B=2", words_letters=["A", "A"], result_letters="B", letters=["A", "B"])
GRAPH = made(None, puzzle={"vertices": [0, 1], "edges": [[0, 1]], "color_options": [1, 2]})
GRID = made("1 0\n0 1", n_rows=2, n_cols=2, row_sums=[1, 2], col_sums=[1, 2])
JUGS = made('["fill A"]', puzzle={"jug_capacities": [3, 5], "target": 3})
KNIGHTS = made("Ann is a knight, and Bob is a knave.", names=["Ann", "Bob"])
LOGIC = made(None, premises=["P"], variables=["P", "Q"])
PALINDROMES = made('[["a", "a"], ["aa"]]', solution=[["a", "a"], ["aa"]])
POOLED = made("4.75 2.0", solution=[[4.75, 2.0]])
QUOTIENT = made("0.333333333333") | {"question": "Compute.\n1.0/3.0 = ?"}
SOKOBAN = made("R", gamestr="+ + + + +\n+ * @ X +\n+ + + + +\n")
TIME = made("00:34:28", task_type="time_seconds")
TOWER = made(None, num_disks=1, num_pegs=3, start_peg=1, target_peg=3)


@pytest.mark.parametrize(
    ("task", "entry", "wrong", "right"),
    [
        ("gsm_symbolic", made("20"), ["-20", "not 20", "20 or 12345", "20.5"], ["20", "20.0"]),
        ("gsm_symbolic", made("-20"), ["20", "- 20 0"], ["-20"]),
        ("gsm_symbolic", made("1200"), ["1,2,0,0", "1_200", "1"], ["1200.0"]),
        ("puzzle24", made(None, numbers=[4, 7, 8, 8]), ["6*4*1*1", "4*8-7.5", "4*8*7/9"], ["(7-8/8)*4"]),
        (
            "countdown",
            made(None, numbers=[1, 300, 7], target=301),
            ["300+7/7", "300+1**7", "300+1+7/1000"],
            [],
        ),
        ("countdown", made(None, numbers=[300, 7, 7], target=301), [], ["300 + 7/7"]),
        ("countdown", made(None, numbers=[1, 90000, 300], target=90000), ["90000+1/300"], []),
        (
            "number_sorting",
            made("['-81.87', '2.0']", direction="ascending"),
            ["['-82.87', '2.0']", "['-81.87', '2.001']"],
            ["[-81.87, 2]"],
        ),
        ("power_function", made("534321.25"), ["5.34499e5", "5.3e5"], ["5.34e5", "534000", "534321"]),
        ("power_function", made("-0.0013674811612376526"), ["-1.3701e-3", "1.37e-3"], ["-1.367e-3"]),
        ("number_format", made("5.12", **CANDIDATES), ["5.1205", "5.1209"], ["5.120000"]),
        ("decimal_arithmetic", QUOTIENT, ["0.3334", "0.33", "0.333433333333"], ["0.333"]),
        ("coin_flip", COINS, ["0.3126", "0.31", "0"], ["5/16", "10/32", "0.31250"]),
        ("pool_matrix", POOLED, ["4.79 2.0", "4.75\n2.0", "4.75 2.0 # not"], ["4.75 2"]),
        ("advanced_geometry", ANGLE, ["63.4269", "63.43 °°"], ["63.4349", "63.43"]),
        ("advanced_geometry", POINT, ["(4.051, -5.487, 7)", "4.0514, -5.487"], ["4.051, -5.487"]),
        ("complex_arithmetic", made("15.0 + 3.0i", result=[15, 3]), ["1_5+3i", "nan"], ["(15+3i)"]),
        ("polynomial_equations", made("-1.5, 2.0"), ["not, -1.5, 2.0", "-1.5, 2.0, x"], ["2, -1.5"]),
        ("polynomial_equations", made(""), ["no idea"], ['""']),
        ("knights_knaves", KNIGHTS, ["not " + KNIGHTS["answer"]], ["Bob is a knave. Ann is a knight"]),
        ("kakurasu", GRID, ["-1 1 0\n0 1", "-1 0\n0 1", "1 0 2\n0 1", "10 0\n1"], ["10\n01"]),
        ("sokoban", SOKOBAN, ["R or 12345", "not R"], ["R", "LR"]),
        ("game_of_life", made("[[0,1]]"), ["[[0,true]]", "[[0,1,1]]", "[[0,1],[1,1]]"], ["[[0, 1]]"]),
        ("codeio", made('{"a": 1}'), ['{"a": true}', '{"a": 2, "a": 1}'], ['{"a": 1.0}']),
        ("graph_color", GRAPH, ['{"0": true, "1": 2}', '{"0": 1, "1": 2, "2": 3}'], ['{"0": 2, "1": 1}']),
        ("graph_color", GRAPH, ['{"0": 2, "0": 1, "1": 2}', "None"], []),
        ("cryptarithm", CRYPTARITHM, ["A=9,A=1,B=2", "A=+1,B=2"], ["B=2, A=1"]),
        ("jugs", JUGS, ['["fill A not"]', '{"fill A": 1}'], ['["fill A", "fill B"]']),
        ("palindrome_partitioning", PALINDROMES, ['["aa", ["aa"]]'], ['[["aa"], ["a", "a"]]']),
        ("prime_factorization", made("2 × 3"), ["2 × 3 ×", "+2 × 3"], ["3×2"]),
        (
            "fraction_simplification",
            made("1/2", simplified_numerator=1, simplified_denominator=2, numerator=2, denominator=4),
            [r"\frac{1}{2} or 12345"],
            [r"$\dfrac{1}{2}$"],
        ),
        ("time_intervals", TIME, ["00:34:28:99", "-00:34:28", "00:33:88"], ["0:34:28"]),
        ("time_intervals", made("3 days", task_type="date"), ["3 or 12345", "3 days, 23:59", "3:00"], ["3"]),
        ("propositional_logic", LOGIC, ["(P ∨ x)", "(P ∨ P Q)", "(P ∨ 1)"], ["(P ∨ Q)", "¬¬P ∧ P"]),
        (
            "tower_of_hanoi",
            TOWER,
            ["notMove disk 1 from Peg 1 to Peg 3"],
            ["Move disk 1 from Peg 1 to Peg 3"],
        ),
        ("rubiks_cube", made(None, cube_size=3, scramble_moves="R"), ["R' 12345", "R' R9x9"], ["R'"]),
        ("rush_hour", made(None, **CARS), ["B+2 A+5", "B+2 or A+4", "A+4 B+2 A+4"], ["B+2 A+2 A+2"]),
        ("boxnet", made(None, **BOXES), [BOX_PLAN.replace("_red)\"", "_red) no\"")], [BOX_PLAN]),
        (
            "boxnet",
            made(None, **BOXES),
            [BOX_PLAN.replace("[{", '[{"Agent[9.5, 9.5]": "move(box_red, target_red)"}, {')],
            [],
        ),
        ("letter_jumble", made("Fritz and Bob"), ["fritz and bob"], ["Fritz  and Bob"]),
    ],
)  # fmt: skip
def test_full_credit_is_for_answers_that_are_right_as_a_whole(
    task: str, entry: dict[str, Any], wrong: list[str], right: list[str]
) -> None:
    for text in wrong:
        assert score_of(task, text, entry) < 1.0, text
    for text in right:
        assert score_of(task, text, entry) == 1.0, text


def test_a_turn_of_the_cube_is_not_repeated_without_end() -> None:
    entry = entry_of("rubiks_cube", seed=5)
    begun = time.process_time()
    assert score_of("rubiks_cube", "U999999", entry) == 0.0
    assert time.process_time() - begun < 2.0


def test_thinking_is_no_answer() -> None:
    entry = entry_of("chain_sum", seed=2)
    texts = (f"<think>so {entry['answer']}", f"<think>hm</think>{entry['answer']}")
    assert [PARTIAL(text, "", extra_of("chain_sum", entry))[0] for text in texts] == [0.0, 1.0]


def test_quantum_lock_reads_the_whole_answer() -> None:
    entry = entry_of("quantum_lock")
    assert score_of("quantum_lock", f"{entry['answer']} or 12345", entry) == 0.0
    assert score_of("quantum_lock", entry["answer"].replace("→", "->"), entry) == 1.0


@pytest.mark.parametrize("task", ["arc_agi", "rearc"])
def test_a_board_is_right_after_a_round_trip_through_json(task: str) -> None:
    entry = entry_of(task)
    assert score_of(task, entry["answer"], entry) == 1.0
    assert score_of(task, entry["answer"] + " 1", entry) < 1.0


@pytest.mark.parametrize(
    ("task", "own", "answer"),
    [
        ("count_primes", "20", "-20"),
        ("count_primes", "20", "not 20"),
        ("isomorphic_strings", "True", "It isn't True"),
        ("tsumego", "D3", "not D3"),
        ("group_anagrams", "[]", "[[]]"),
    ],
)
def test_a_negated_or_empty_answer_gets_no_partial_credit(task: str, own: str, answer: str) -> None:
    assert score_of(task, answer, made(own, solution=[["a"]])) == 0.0


def test_an_empty_answer_can_be_the_right_one() -> None:
    for response in ("Nothing is left: <answer></answer>", r"Nothing is left: $\boxed{}$"):
        assert PARTIAL(response, "", extra_of("ab", made("")))[0] == 1.0
        assert PARTIAL(response, "", extra_of("ab", made("A#")))[0] == 0.0
    assert PARTIAL("Nothing is left", "", extra_of("ab", made("")))[0] == 0.0


def test_partial_credit_stays() -> None:
    assert score_of("count_primes", "It is 20", made("20")) == 2 / 8
    assert score_of("prime_factorization", "2 × 6", made("2 × 2 × 3")) == 0.5


def test_a_change_of_the_decimal_precision_changes_no_score() -> None:
    """A task of reasoning-gym sets it for the whole process."""
    with localcontext(Context(prec=4)):
        assert score_of("number_format", "5.1201", made("5.12", **CANDIDATES)) == 0.0
        assert score_of("coin_flip", "0.31251", COINS) == 0.0


# -------------------------------------------------------------- the verifiers that evaluate nothing

NOTHING_ELSE_COMPILED = r"""
import sys, json
from sppo_ray.rewards.registry import build_verifier
from sppo_ray.config import MathReward, RunningSumReward
from tests.hostile_rewards import cases
verifiers = [build_verifier(MathReward()), build_verifier(RunningSumReward())]
code = ["__import__('os').system('true')", "x.__class__", "eval(1)", "open('a')", r"\text{exec(1)}", "lambda: 1", "x.y"]
code += ["sin(eval(1))"]
code += ["os.system", "\"a\"", "x := 1", "[eval(1)]", r"\{eval(1), 2\}", "x = eval(1)", "eval(1) < 2", r"\frac{eval(1)}{2}"]
truths = [r"\frac{1}{2}", "x^2", "34", r"\{1, 2\}", "(1, 2)", "x < 2", r"\text{even}", "5 cm"]
samples = [(f"\\boxed{{{text}}}", truth) for text in code for truth in truths]
quick = ("broken LaTeX", "Unicode", "injections", "control characters")
samples += [(case["response"], case["truth"]) for case in cases() if case["family"] in quick and len(case["response"]) < 300]
compiled = []
text_of = lambda source: source.decode() if isinstance(source, bytes) else str(source)
sys.addaudithook(lambda event, args: compiled.append(text_of(args[0])) if event == "compile" and args[0] is not None else None)
for response, truth in samples:
    for verifier in verifiers:
        try:
            verifier.score(response, truth if verifier.name == "math" else "34", {})
        except Exception:
            pass
print(len(samples), json.dumps(compiled))
"""  # noqa: E501


NUMBER_OR_SYMPYS_OWN = re.compile(
    r"from sympy import \*|(Integer|Float|Symbol) \('?[\d._eE+-]*'?\s?\)"
    r"|def monomial_\w+\([ABk, ]+\):\n[a-z0-9\s(),=+*<>\-AB_ifelsrtuNone:k]*"
)


def test_math_and_the_running_sum_evaluate_numbers_alone() -> None:
    """An audit hook sees every `eval`, `exec` and `compile` of a text, SymPy's `parse_expr` and
    `lambdify` among them.

    latex2sympy2 hands the digits of a number to `sympy.Number`, which evaluates "Integer (34 )";
    nothing else of an answer.
    """
    ran = subprocess.run(
        [sys.executable, "-c", NOTHING_ELSE_COMPILED], capture_output=True, text=True, timeout=120, check=True
    )
    count, compiled = ran.stdout.split(" ", 1)
    assert int(count) > 150
    assert [text for text in json.loads(compiled) if not NUMBER_OR_SYMPYS_OWN.fullmatch(text)] == []
