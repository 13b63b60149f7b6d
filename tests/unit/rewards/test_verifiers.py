"""Verifiers in process: extraction, the running sum, reasoning-gym, functions of the user's own,
ranges.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sppo_ray.config import CustomReward, MathReward, ReasoningGymReward, RunningSumReward
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import RewardRangeError, Verifier
from sppo_ray.rewards.extract import last_boxed, last_program, last_tagged
from sppo_ray.rewards.registry import build_verifier

RUNNING_SUM = build_verifier(RunningSumReward())


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{5} no, \boxed{6}", "6"),  # contradicting answers: the last decides
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # the escaped brace is text
        (r"\boxed{5} and then \boxed{6", None),  # truncated inside its last box: no answer
        (r"\boxed{5} and then \boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed 5", "5"),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_the_last_box_decides(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="\\{}"), min_size=1).filter(str.strip))
def test_whatever_comes_before_the_last_box_does_not_matter(before: str, content: str) -> None:
    assert last_boxed(before.replace("\\", "") + r"\boxed{" + content + "}") == content.strip()


def test_extraction_is_linear_in_the_text() -> None:
    assert last_boxed(r"\boxed{" * 100_000 + "5" + "}" * 100_000) == "5"
    assert last_boxed(r"\boxed{5}" * 100_000) == "5"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("line", [" " * 90_000, "\t" * 90_000, "a" * 90_000, " " * 45_000 + "a" * 45_000])
def test_a_long_line_that_is_no_fence_takes_no_time(line: str) -> None:
    """As a minute would make the sample an error, and no 0."""
    assert last_program(f"```python\nx = 1\n```\n```{line}`") == "x = 1"


def test_the_last_tag_decides() -> None:
    assert last_tagged("<answer>4</answer> <ANSWER> 5\n</ANSWER>") == "5"
    assert last_tagged("<answer></answer>") is None
    assert last_tagged("5") is None


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (r"a+7=07;b+5=12;c+9=21;\boxed{21}", (1.0, "correct")),
        (r"\boxed{021}", (1.0, "correct")),  # two digits are how it writes sums: 07 is 7
        (r"\boxed{ 21 }", (1.0, "correct")),
        (r"\boxed{20}", (0.0, "wrong")),
        (r"\boxed{21}\boxed{20}", (0.0, "wrong")),
        (r"\boxed{21.0}", (0.0, "wrong")),
        (r"\boxed{2１}", (0.0, "wrong")),  # a full-width 1 is not a digit of this task
        (r"\boxed{" + "9" * 100_000 + "}", (0.0, "wrong")),
        ("21", (0.0, "no_answer")),
        ("", (0.0, "no_answer")),
    ],
)
def test_running_sum(response: str, verdict: tuple[float, str]) -> None:
    assert RUNNING_SUM.score(response, "21", {}) == verdict


def test_running_sum_without_an_integer_truth_is_an_error_and_no_reward() -> None:
    with pytest.raises(ValueError, match="no integer"):
        RUNNING_SUM.score(r"\boxed{21}", "twenty-one", {})


def test_reasoning_gym_scores_with_the_tasks_own_verifier() -> None:
    entry = reasoning_gym.create_dataset("basic_arithmetic", size=1, seed=3)[0]
    extra = {"reasoning_gym_task": "basic_arithmetic", "reasoning_gym_entry": json.dumps(entry)}
    verifier = build_verifier(ReasoningGymReward())
    answer = str(entry["answer"])
    for response in (f"it is \\boxed{{{answer}}}", f"<answer>{answer}</answer>", f"  {answer}\n"):
        assert verifier.score(response, answer, extra) == (1.0, "correct")
    assert verifier.score(f"\\boxed{{{answer}}} \\boxed{{x}}", answer, extra)[0] == 0.0
    assert verifier.score(" ", answer, extra) == (0.0, "no_answer")


def test_reasoning_gym_partial_credit_is_a_setting() -> None:
    entry = reasoning_gym.create_dataset("letter_counting", size=1, seed=0)[0]
    extra = {"reasoning_gym_task": "letter_counting", "reasoning_gym_entry": json.dumps(entry)}
    wrong = str(int(entry["answer"]) + 1)
    full = build_verifier(ReasoningGymReward(full_only=True)).score(wrong, "", extra)
    partial = build_verifier(ReasoningGymReward(full_only=False)).score(wrong, "", extra)
    own = reasoning_gym.get_score_answer_fn("letter_counting")(answer=wrong, entry=entry)
    assert full == (0.0, "wrong")
    assert partial[0] == own < 1.0


def test_reasoning_gym_names_what_a_sample_lacks() -> None:
    verifier = build_verifier(ReasoningGymReward())
    with pytest.raises(UserError, match="reasoning_gym_task"):
        verifier.score("5", "5", {})
    with pytest.raises(UserError, match="no task 'no-such'"):
        verifier.score("5", "5", {"reasoning_gym_task": "no-such", "reasoning_gym_entry": "{}"})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "cannot be imported.*no_such_module"),
        ("tests.unit.rewards.verifier_functions:no_such", "no_such does not exist"),
        ("tests.unit.rewards.verifier_functions:NOT_A_FUNCTION", "is a int, not a function"),
    ],
)
def test_a_custom_function_that_cannot_be_loaded_is_named(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_verifier(CustomReward(function=path))


@pytest.mark.parametrize(
    "path",
    [
        "tests.unit.rewards.verifier_functions",
        ":by_command",
        "../elsewhere:f",
        "/etc/rewards.py:f",
        "..up:f",
        "a..b:f",
        "a-b:f",
        "a:f()",
        "1a:f",
    ],
)
def test_an_import_path_that_is_none_is_refused_with_the_settings(path: str) -> None:
    with pytest.raises(ValidationError, match=r"is not an import path: write it as package.module:function"):
        CustomReward(function=path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("timeit:timeit", "timeit is of Python's standard library"),
        ("os.path:join", "os is of Python's standard library"),
        ("builtins:eval", "builtins is of Python's standard library"),
        ("numpy:full", r"numpy is an installed package: name it in reward.function.packages \(\[numpy\]\)"),
    ],
)
def test_a_custom_function_comes_from_the_working_directory(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_verifier(CustomReward(function=path))


def test_an_installed_package_that_is_named_may_judge() -> None:
    assert build_verifier(CustomReward(function="numpy:full", packages=("numpy",))).name == "numpy:full"
    with pytest.raises(UserError, match="standard library"):
        build_verifier(CustomReward(function="timeit:timeit", packages=("timeit",)))


def test_a_link_does_not_lead_out_of_the_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    (outside / "leaky_package").mkdir(parents=True)
    inside.mkdir()
    for place in (outside / "leaky_rewards.py", outside / "leaky_package" / "rewards.py"):
        place.write_text("raise SystemExit('imported')\n")
    (inside / "leaky_rewards.py").symlink_to(outside / "leaky_rewards.py")
    (inside / "leaky_package").symlink_to(outside / "leaky_package")
    (inside / "own_rewards.py").write_text("def f(response, ground_truth, extra):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(inside))
    for path in ("leaky_rewards:f", "leaky_package.rewards:f"):
        with pytest.raises(UserError, match="is a link that leads to .*outside"):
            build_verifier(CustomReward(function=path))
    assert build_verifier(CustomReward(function="own_rewards:f")).score("", "", {}) == (1.0, "correct")


def test_a_custom_function_scores() -> None:
    verifier = build_verifier(CustomReward(function="tests.unit.rewards.verifier_functions:by_command"))
    assert verifier.score("yes", "yes", {}) == (1.0, "correct")  # a bool is a number
    assert verifier.score("no", "yes", {}) == (0.0, "wrong")
    assert verifier.score("reward 0.25", "", {}) == (0.25, "partial")
    assert verifier.score("extra", "", {"credit": 0.5}) == (0.5, "partial")
    with pytest.raises(UserError, match="returned str where a number"):
        verifier.score("text", "", {})


@pytest.mark.parametrize("reward", ["1.0000001", "-0.1", "nan", "inf"])
def test_a_reward_out_of_range_is_never_clipped(reward: str) -> None:
    verifier = build_verifier(CustomReward(function="tests.unit.rewards.verifier_functions:by_command"))
    with pytest.raises(
        RewardRangeError,
        match=f"by_command returned .* response 'reward {reward}' .*truth 'T'.*never clipped",
    ):
        verifier.score(f"reward {reward}", "T", {})


def test_the_declared_range_is_what_is_checked() -> None:
    verifier = Verifier("half", lambda *_: (0.6, "partial"), 0.0, 0.5)
    with pytest.raises(RewardRangeError, match=r"declared range \[0, 0.5\]"):
        verifier.score("r" * 1000, "t", {})


def test_the_worker_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, sppo_ray.rewards.pool.worker, sppo_ray.rewards.math; print({'torch', 'ray'} & "
        "set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )


@pytest.mark.parametrize(
    ("settings", "response", "answer"),
    [
        (RunningSumReward(), r"\boxed{007}", "7"),
        (RunningSumReward(), r"\boxed{7x}", "7x"),
        (RunningSumReward(), "7", None),
        (MathReward(), r"\boxed{1,000.0}", "1000"),
        (MathReward(), r"\boxed{\frac{1}{2} }", r"\frac{1}{2}"),
        (MathReward(), r"\boxed{\$5.}", "5"),
        (ReasoningGymReward(), "<answer> 4 </answer>", "4"),
        (ReasoningGymReward(), " plain ", "plain"),
        (CustomReward(function="sppo_ray.rewards.last_number:reward"), "so 3, no 7.0", "7"),
        # no answer() beside it
        (CustomReward(function="tests.unit.rewards.verifier_functions:by_command"), r"\boxed{ 1 }", "1"),
    ],
)
def test_a_verifier_tells_the_answer_that_it_reads(
    settings: object, response: str, answer: str | None
) -> None:
    assert build_verifier(settings).answer(response) == answer
