"""Evaluation scores against hand-computed numbers."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.evaluation.calibration import calibration
from sppo_ray.evaluation.scores import EvalReport, GradedResponse, evaluate, majority_reward, pass_at_k
from sppo_ray.intervals import bootstrap_interval
from sppo_ray.rewards.extract import final_answer


def graded(
    prompt: str, index: int, reward: float | None, answer: str | None = "1", **changes: object
) -> GradedResponse:
    fields = {"source": "sum", "num_tokens": 10, "truncated": False} | changes
    return GradedResponse(
        prompt_id=prompt, sample_index=index, reward=reward, response_text="", answer=answer, **fields
    )


def report(responses: list[GradedResponse], k: int, **options: object) -> EvalReport:
    return evaluate(responses, k=k, step=3, policy_version=12, **options)


# ------------------------------------------------------------------------------------------- pass@k


def test_correct_is_what_has_the_best_reward_of_the_declared_range() -> None:
    # A reward in [0, 10]: only 10 of 1, 1, 10, 5 is correct, so pass@1 = 1 / 4; by a bound of 1 all
    # four would be.
    responses = [graded("a", index, reward) for index, reward in enumerate([1.0, 1.0, 10.0, 5.0])]
    assert report(responses, 4, best_reward=10.0).overall.pass_at[1] == 0.25
    half = [graded("a", index, reward) for index, reward in enumerate([0.5, 0.0])]
    assert report(half, 2, best_reward=0.5).overall.pass_at[1] == 0.5


def test_pass_at_k_is_one_minus_the_share_of_subsets_without_a_correct_response():
    # n = 4, c = 1, k = 2: C(3, 2) / C(4, 2) = 3 / 6 subsets hold no correct one
    assert pass_at_k(4, 1, 2) == 0.5
    # n = 10, c = 3, k = 5: C(7, 5) / C(10, 5) = 21 / 252
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(4, 2, 1) == 0.5  # pass@1 is the accuracy
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 3, 2) == 1.0  # only one wrong response: no pair without a correct one


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_equals_counting_all_subsets(n: int, data: st.DataObject):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be_estimated(n: int, c: int, k: int):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


# -------------------------------------------------------------------------------------------- maj@k


def test_the_majority_counts_with_its_reward():
    answers = [("7", 0.0), ("8", 1.0), ("8", 1.0), ("9", 0.0)]
    assert majority_reward([graded("p", i, r, a) for i, (a, r) in enumerate(answers)]) == 1.0
    answers = [("7", 0.0), ("7", 0.0), ("7", 0.0), ("8", 1.0)]
    assert majority_reward([graded("p", i, r, a) for i, (a, r) in enumerate(answers)]) == 0.0


def test_a_tie_goes_to_the_answer_given_first_whatever_the_order_of_arrival():
    responses = [
        graded("p", 0, 0.0, "7"),
        graded("p", 1, 1.0, "8"),
        graded("p", 2, 1.0, "8"),
        graded("p", 3, 0.0, "7"),
    ]
    for order in itertools.permutations(responses):
        assert majority_reward(order) == 0.0


def test_responses_without_an_answer_and_errors_abstain():
    # three without an answer and two that could not be graded do not outvote the one that answered
    silent = [graded("p", i, 0.0, None) for i in range(3)]
    errors = [graded("p", i, None, "7") for i in (3, 4)]
    assert majority_reward([*silent, *errors, graded("p", 5, 1.0, "8")]) == 1.0
    assert majority_reward(silent) == 0.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{3}, no: \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}} indeed", r"\frac{1}{2}"),
        (r"\boxed{ 1 000 }", "1000"),  # white space makes no other answer
        (r"\boxed{\{1, 2\}}", r"\{1,2\}"),  # escaped braces do not nest
        (r"\boxed{3} and then \boxed{ {4}", None),  # cut off inside the box that decides
        ("<answer>3 </answer> no: <answer> 4</answer>", "4"),
        (r"<answer>3</answer> \boxed{4}", "4"),
        (r"\boxed{}", None),
        ("the answer is 5", None),
    ],
)
def test_final_answer(text: str, answer: str | None):
    assert final_answer(text) == answer


# ------------------------------------------------------------------------------------------ reports

# Three prompts, two responses each:
# a: 1, 1 -> avg 1, pass@2 1      b: 1, 0 -> avg 1/2, pass@2 1      c: 0, error -> avg 0 of one, no
# pass@2
RESPONSES = [
    graded("a", 0, 1.0, "5", num_tokens=10),
    graded("a", 1, 1.0, "5", num_tokens=20),
    graded("b", 0, 0.0, "3", num_tokens=30),
    graded("b", 1, 1.0, "4", num_tokens=40),
    graded("c", 0, 0.0, "9", num_tokens=50, truncated=True, source="product"),
    graded("c", 1, None, "8", num_tokens=90, source="product"),
]


def test_the_overall_figures():
    scores = report(RESPONSES, 2).overall
    assert scores.accuracy == pytest.approx((1 + 0.5 + 0) / 3)
    # pass@1 is the accuracy of the prompts; pass@2 leaves out c, which has one graded response
    assert scores.pass_at == {1: pytest.approx(0.5), 2: 1.0}
    # a: 5 is right; b: tie, the first (3) is wrong; c: 9 is wrong
    assert scores.majority == pytest.approx(1 / 3)
    assert (scores.response_length_mean, scores.response_length_max) == (40.0, 90)  # 240 / 6
    assert scores.truncation_rate == pytest.approx(1 / 6)
    assert (scores.reward_errors, scores.reward_error_rate) == (1, pytest.approx(1 / 6))
    assert (scores.num_prompts, scores.num_responses) == (3, 6)


def test_the_figures_of_each_source():
    product, total = report(RESPONSES, 2).by_source
    assert (product.source, product.accuracy, product.num_prompts, product.reward_errors) == (
        "product",
        0.0,
        1,
        1,
    )
    assert (total.source, total.accuracy, total.num_prompts, total.reward_errors) == ("sum", 0.75, 2, 0)


def test_an_error_is_neither_wrong_nor_right():
    certain = [graded("a", 0, 1.0), graded("b", 0, 0.0)]
    with_error = [*certain, graded("c", 0, None)]
    assert report(with_error, 1).accuracy == report(certain, 1).accuracy == 0.5
    assert report(with_error, 1).overall.reward_errors == 1


def test_nothing_but_errors_is_unknown_and_not_zero():
    failed = report([graded("a", 0, None)], 1)
    assert (
        math.isnan(failed.accuracy)
        and math.isnan(failed.overall.majority)
        and math.isnan(failed.overall.accuracy_low)
    )
    assert failed.overall.reward_error_rate == 1.0
    assert json.loads(json.dumps(failed.to_dict(), allow_nan=False))["overall"]["accuracy"] is None


def test_partial_credit_counts_in_the_average_but_is_no_pass():
    scores = report([graded("a", 0, 0.5), graded("a", 1, 0.9)], 2).overall
    assert scores.accuracy == pytest.approx(0.7)
    assert scores.pass_at[2] == 0.0


@pytest.mark.parametrize("seed", range(10))
def test_no_figure_depends_on_who_finished_first(seed: int):
    shuffled = random.Random(seed).sample(RESPONSES, len(RESPONSES))
    assert report(shuffled, 2).to_dict() == report(RESPONSES, 2).to_dict()


def test_pass_is_reported_at_powers_of_two_and_at_k():
    scores = report([graded("a", i, float(i == 0)) for i in range(6)], 6).overall
    # one of six is correct: a subset of j holds it with chance j / 6
    assert scores.pass_at == {
        1: pytest.approx(1 / 6),
        2: pytest.approx(2 / 6),
        4: pytest.approx(4 / 6),
        6: 1.0,
    }


def test_the_critic_is_compared_with_shaped_rewards():
    # Shaping subtracts .01 per token: shaped rewards are .9 and .8 (a), 0 and .6 (b), 0 (c).
    figures = report(
        RESPONSES, 2, values={"a": 0.85, "b": 0.3, "c": 0.0}, shaped=lambda r, n: max(r - n / 100, 0.0)
    )
    assert figures.critic["brier"] == pytest.approx(0.0, abs=1e-12)
    assert figures.overall.accuracy == pytest.approx(0.5)  # what the verifier said


def test_metrics_have_flat_names():
    metrics = report(RESPONSES, 2, values={"a": 0.9, "b": 0.5, "c": 0.1}, seconds=1.5).metrics()
    assert metrics["eval/accuracy"] == pytest.approx(0.5)
    assert metrics["eval/pass@2"] == 1.0
    assert metrics["eval/sum/accuracy"] == 0.75
    assert metrics["eval/reward_errors"] == 1
    # (0.1^2 + 0 + 0.1^2) / 3 against 1, 1/2, 0
    assert metrics["eval/value/brier"] == pytest.approx(0.02 / 3)
    # deviations .4, 0, -.4 and .5, 0, -.5
    assert metrics["eval/value/pearson"] == pytest.approx(0.4 / math.sqrt(0.32 * 0.5))
    assert metrics["eval/seconds"] == 1.5


def test_to_dict_is_plain_json():
    tree = json.loads(json.dumps(report(RESPONSES, 2).to_dict(), allow_nan=False))
    assert (tree["step"], tree["policy_version"], tree["k"]) == (3, 12, 2)
    assert tree["overall"]["pass_at"] == {"1": 0.5, "2": 1.0}
    assert [scores["source"] for scores in tree["by_source"]] == ["product", "sum"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="without responses"):
        report([], 1)
    with pytest.raises(ValueError, match="prompt a: sample 0 was graded twice"):
        report([graded("a", 0, 1.0), graded("a", 0, 0.0)], 2)


# ---------------------------------------------------------------------------------------- intervals


def test_the_interval_contains_the_mean_and_has_the_width_of_theory():
    scores = [1.0] * 70 + [0.0] * 30
    low, high = bootstrap_interval(scores, seed=0)
    assert low < 0.7 < high
    # the normal interval: 1.96 x sqrt(0.7 x 0.3 / 100) = 0.0898 to either side
    assert (high - low) / 2 == pytest.approx(0.0898, abs=0.01)
    assert bootstrap_interval(scores, seed=0) == (low, high)


def test_prompts_and_not_responses_are_resampled():
    # 4 prompts, each all right or all wrong: 100 responses a prompt add no certainty
    responses = [graded(f"p{p}", i, float(p % 2)) for p in range(4) for i in range(100)]
    scores = report(responses, 100).overall
    # 0 of 4 and 4 of 4 each have chance 1/16 > 2.5 %
    assert (scores.accuracy_low, scores.accuracy_high) == (0.0, 1.0)


def test_pass_and_majority_have_intervals_of_their_own():
    # a: 2 of 2 right -> pass@2 1, maj 1; b: 1 of 2 -> pass@2 1, and the first answer, a wrong one,
    # wins the tie -> maj 0
    responses = [graded("a", 0, 1.0), graded("a", 1, 1.0), graded("b", 0, 0.0, "3"), graded("b", 1, 1.0, "4")]
    scores = report(responses, 2).overall
    # two draws of two prompts: both the same with chance 1/4 each
    assert (scores.accuracy_low, scores.accuracy_high) == (0.5, 1.0)
    assert scores.pass_intervals == {1: (0.5, 1.0), 2: (1.0, 1.0)}
    assert (scores.majority, scores.majority_interval) == (0.5, (0.0, 1.0))


def test_sources_with_unlike_numbers_of_samples_keep_their_own_k():
    responses = [graded("a", i, float(i == 0), source="often") for i in range(4)] + [
        graded("b", 0, 1.0, source="once")
    ]
    whole = evaluate(responses, k=1, step=0, policy_version=0, pass_sizes=(1, 4))
    often, once = sorted(whole.by_source, key=lambda scores: -scores.k)
    assert (often.k, often.pass_at) == (4, {1: 0.25, 4: 1.0})
    assert (once.k, once.pass_at) == (1, {1: 1.0})  # no pass@4 of one sample
    assert (whole.overall.k, whole.overall.pass_at) == (1, {1: (0.25 + 1.0) / 2})
    # prompts weigh the same, however often they were sampled
    assert whole.accuracy == (0.25 + 1.0) / 2


def test_an_interval_of_equal_scores_is_a_point():
    assert bootstrap_interval([0.25] * 8, seed=1) == (0.25, 0.25)
    assert all(math.isnan(bound) for bound in bootstrap_interval([], seed=1))


# -------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand():
    figures = calibration([0.8, 0.6, 0.3, 0.1], [1.0, 0.0, 1.0, 0.0])
    assert figures["brier"] == pytest.approx((0.04 + 0.36 + 0.49 + 0.01) / 4)
    assert figures["brier_constant"] == pytest.approx(0.25)  # the variance of two ones in four
    assert figures["log_loss"] == pytest.approx(
        -(math.log(0.8) + math.log(0.4) + math.log(0.3) + math.log(0.9)) / 4
    )
    assert figures["log_loss_constant"] == pytest.approx(math.log(2))
    # deviations of the values .35 .15 -.15 -.35 against .5 -.5 .5 -.5: covariance .20, variances
    # .29 and 1
    assert figures["pearson"] == pytest.approx(0.2 / math.sqrt(0.29))
    # four bins of one sample each: gaps .2 .6 .7 .1
    assert figures["ece"] == pytest.approx(1.6 / 4)
    # ranks 4 3 2 1 against 3.5 1.5 3.5 1.5: covariance 1.5 - .5 - .5 + 1.5 = 2, variances 5 and 4
    assert figures["spearman"] == pytest.approx(2 / math.sqrt(20))


def test_a_constant_critic_equals_the_best_constant_and_has_no_correlation():
    figures = calibration([0.75] * 4, [1.0, 1.0, 1.0, 0.0])
    assert figures["brier"] == figures["brier_constant"] == pytest.approx(0.1875)
    assert figures["log_loss"] == pytest.approx(figures["log_loss_constant"])
    assert figures["ece"] == pytest.approx(0.0)
    assert math.isnan(figures["pearson"]) and math.isnan(figures["spearman"])


def test_a_saturated_value_does_not_make_the_loss_infinite():
    assert calibration([1.0, 0.0], [0.0, 1.0])["log_loss"] == pytest.approx(-math.log(1e-7))


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=30))
def test_no_constant_beats_the_best_constant(pairs: list[tuple[float, float]]):
    values, rewards = [value for value, _ in pairs], [reward for _, reward in pairs]
    constant = [values[0]] * len(pairs)
    figures = calibration(constant, rewards)
    assert figures["brier"] >= figures["brier_constant"] - 1e-12
    assert figures["log_loss"] >= figures["log_loss_constant"] - 1e-6


def test_calibration_refuses_empty_and_unequal_input():
    with pytest.raises(ValueError, match="got 0 and 0"):
        calibration([], [])
    with pytest.raises(ValueError, match="got 2 and 1"):
        calibration([0.5, 0.5], [1.0])
