"""Guardrails: no alarm on metrics of good runs, early alarms on injected faults, helpful messages.

`guardrail_figures.jsonl` holds the metrics of four good runs and a failed one (172 steps, four
digits). benchmarks/guardrails.py replays all recorded runs.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.guardrails import FAULTS, PROMISED_STEPS, Recorded, delay, with_spread
from sppo_ray.config import GuardrailSettings
from sppo_ray.rundir.metrics import is_training_step
from sppo_ray.rundir.status import Alert
from sppo_ray.trainer.detectors import DETECTORS, KNOWN_AFTER
from sppo_ray.trainer.guardrails import Guardrails, finite_or_nan

FIGURES = Path(__file__).parent / "guardrail_figures.jsonl"
# A calm step of a quickstart, by the names that the detectors read.
CALM = {
    "reward/mean": 0.6, "reward/std": 0.49, "reward/watched": 0.6, "reward/errors": 0, "samples/count": 256,
    "response/truncation_rate": 0.01,
    "value/mean": 0.58, "value/std": 0.2, "advantage/mean": 0.02,
    "policy/entropy": 0.02, "policy/clip_fraction_low": 0.001,
    "policy/clip_fraction_high": 0.001, "policy/ratio_mean": 1.0, "policy/approx_kl_k3": 1e-4,
    "policy/loss": 0.01,
    "policy/grad_norm": 0.1, "policy/skipped": 0.0, "critic/loss": 0.5, "critic/grad_norm": 0.6,
    "critic/skipped": 0.0,
    "mismatch/logprob_difference_mean": 2e-8, "policy/effective_sample_size": 0.999,
}  # fmt: skip


@cache
def real_runs(health: str = "good") -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for line in FIGURES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = row.pop("run")
        if "policy/approx_kl_k3" in row:
            # Recorded before this metric existed: to second order 1 / (1 + Var r), Var r = 2 k3.
            row["policy/effective_sample_size"] = 1.0 / (1.0 + 2.0 * row["policy/approx_kl_k3"])
        if row.pop("health") == health:
            runs[name].append(row)
    return runs


def watch(
    rows: list[dict[str, float]], *, synchronous: bool = True, **limits: object
) -> tuple[Guardrails, list[Alert]]:
    rails = Guardrails(GuardrailSettings(**limits), synchronous=synchronous)  # type: ignore[arg-type]
    return rails, [alarm for step, row in enumerate(rows, start=1) for alarm in rails.check(step, row)]


# ---------------------------------------------------------------------------------------- good runs


def test_good_runs_raise_nothing_that_would_hold_them() -> None:
    raised = {
        (name, alarm.detector, alarm.action) for name, rows in real_runs().items() for alarm in watch(rows)[1]
    }
    # The critic of that run never distinguished prompts (value/std 1e-5 around the mean reward).
    # The alarm is correct and only warns.
    assert raised == {("smollm2-arithmetic, sppo", "critic_blind", "warn")}


@pytest.mark.parametrize(
    "figures",
    [
        {"policy/clip_fraction_low": 0.0, "policy/clip_fraction_high": 0.0},
        # everything is solved
        {"reward/mean": 1.0, "reward/std": 0.0, "value/mean": 1.0, "value/std": 0.0},
        # nothing is, yet
        {"reward/mean": 0.0, "reward/std": 0.0, "value/mean": 0.0, "value/std": 0.0},
        {"response/truncation_rate": 0.6},  # a base model that does not end: high, but no surge
        {"policy/clip_fraction_low": 0.3},  # clipping whole sequences
        {"mismatch/logprob_difference_mean": 0.03},  # bfloat16
    ],
)
def test_a_metric_that_is_constant_from_the_start_raises_no_alarm(figures: dict[str, float]) -> None:
    alarms = watch([CALM | figures] * 60)[1]
    assert [alarm.detector for alarm in alarms] == ["equal_rewards"] * (figures.get("reward/std") == 0.0)


def test_nothing_to_learn_is_told_after_ten_steps_in_a_row() -> None:
    nothing = CALM | {"reward/mean": 0.0, "reward/std": 0.0}
    rows = [nothing] * 9 + [CALM] + [nothing | {"response/truncation_rate": 1.0}] * 12
    [alarm] = [alarm for alarm in watch(rows)[1] if alarm.detector == "equal_rewards"]
    assert (alarm.detector, alarm.step, alarm.since, alarm.action) == ("equal_rewards", 20, 11, "warn")
    assert "all rewards of a step are 0 and every response was cut off (10 in 10 steps)" in alarm.message
    assert watch([nothing] * 30, equal_rewards=40)[1] == []


def test_a_fresh_critic_is_no_collapse() -> None:
    # A zero head says 0.5 (0 by squared error) of every prompt; spread comes within the first
    # steps.
    for start in (0.5, 0.0):
        rows = [
            CALM | {"value/mean": start, "value/std": spread} for spread in (0.0, 0.0013, 0.013, 0.058)
        ] + [CALM] * 30
        assert watch(rows)[1] == []


def test_a_new_critic_on_hopeless_prompts_is_told() -> None:
    # register-machine, whose base solves .13: the mean advantages of the first seven steps
    means = (-0.37, -0.33, -0.25, -0.12, -0.07, -0.03, 0.01)
    [alarm] = watch([CALM | {"advantage/mean": mean} for mean in means])[1]
    assert (alarm.detector, alarm.step, alarm.action) == ("negative_advantages", 3, "warn")
    assert "advantage/mean is -0.25, since step 1" in alarm.message
    assert "algorithm.center=negative" in alarm.message


def test_entropy_may_fall_while_the_reward_rises() -> None:
    # From a solve rate of 0.05 and 1.5 nats to 0.75 and 0.1 nats, a fifteenth: learning. At the old
    # reward: a collapse.
    before, after = (
        CALM | {"policy/entropy": 1.5, "reward/mean": 0.05},
        CALM | {"policy/entropy": 0.1, "reward/mean": 0.75},
    )
    assert watch([before] * 20 + [after] * 20)[1] == []
    worse = after | {"reward/mean": 0.05}
    assert [alarm.detector for alarm in watch([before] * 20 + [worse] * 20)[1]] == ["entropy_collapse"]
    # Below a hundredth, no reward excuses it.
    sure = after | {"policy/entropy": 0.01}
    assert [alarm.detector for alarm in watch([before] * 20 + [sure] * 20)[1]] == ["entropy_collapse"]


def test_staleness_that_begins_is_no_mismatch_in_an_overlapped_run() -> None:
    rows = [CALM] * 10 + [CALM | {"mismatch/logprob_difference_mean": 0.004}] * 10
    assert watch(rows, synchronous=False)[1] == []
    assert [alarm.detector for alarm in watch(rows)[1]] == ["mismatch"]


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("name", DETECTORS)
def test_a_fault_in_a_real_run_is_seen_within_20_steps(name: str) -> None:
    delays = {}
    for run, rows in real_runs().items():
        at = len(rows) - PROMISED_STEPS
        judged = [row for row in rows[at:] if all(figure in row for figure in DETECTORS[name].watches)]
        if (
            at >= KNOWN_AFTER
            and len(judged) == PROMISED_STEPS
            and all(row.get("reward/std", 1) >= 0.1 for row in judged)
        ):
            delays[run] = delay(Recorded(run, True, rows), name, at)
    # its critic is blind from the start
    already = {"smollm2-arithmetic, sppo"} if name in ("critic_blind", "value_collapse") else set()
    # no run of then had a watched part, or recorded the mean advantage
    assert len(delays) >= 2 or name in ("over_optimisation", "negative_advantages")
    assert {
        run: late
        for run, late in delays.items()
        if run not in already and not (late and late <= PROMISED_STEPS)
    } == {}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_fault_raises_its_own_alarm_once(name: str) -> None:
    rows = [CALM] * 20 + [FAULTS[name](CALM, age) for age in range(40)]
    _, alarms = watch(rows)
    assert [alarm.detector for alarm in alarms].count(name) == 1
    alarm = next(alarm for alarm in alarms if alarm.detector == name)
    assert alarm.action == ("warn" if DETECTORS[name].only_warns else "pause")
    assert 21 <= alarm.since <= alarm.step <= 40
    for part in (f"since step {alarm.since}", "It usually means", "What to do:", f"guardrails.{name}"):
        assert part in alarm.message


def test_a_critic_that_saturates_from_the_first_step_on() -> None:
    # 8 steps to know what is usual, and 3 odd ones: 11.
    _, alarms = watch([CALM | {"value/mean": 1.0, "value/std": 1e-7}] * 20)
    assert [(alarm.detector, alarm.step, alarm.since) for alarm in alarms] == [
        ("value_collapse", 11, 9),
        ("critic_blind", 20, 1),
    ]
    assert "the values of all prompts are 1 (value/std 1e-07) at a mean reward of 0.60" in alarms[0].message


def test_a_real_critic_that_died() -> None:
    # critic.optimizer.lr 1 instead of 1e-3: values without spread from the start, 1.0 in steps 2 to
    # 5 and 8, 0.01 in 9, 1.0 in 11, then thrown from 1.0 to 0.25 at a mean reward of 0.66. Usual is
    # known after 8 steps; odd are 9, 11 and 12.
    _, alarms = watch(real_runs("sick")["quickstart, critic.optimizer.lr 1"])
    assert [(alarm.detector, alarm.step, alarm.since) for alarm in alarms] == [("value_collapse", 12, 9)]
    assert (
        "the values of all prompts are 0.254 (value/std 0.0021) at a mean reward of 0.66, since step 9"
        in alarms[0].message
    )


def test_a_slow_critic_is_no_dead_one() -> None:
    # It creeps from 0.5 towards a mean reward of 0.05, by 0.01 a step, the same for all prompts.
    fixed = CALM | {"value/std": 1e-3, "reward/mean": 0.05, "reward/std": 0.22}
    assert "value_collapse" not in {
        a.detector for a in watch([fixed | {"value/mean": 0.5 - k / 100} for k in range(40)])[1]
    }


def test_equal_values_of_a_policy_that_solves_all_prompts_alike_are_right() -> None:
    # A quickstart of 32 samples a step: the values' spread fell from 0.1 to 0.0014 in ten steps,
    # at values of 0.85 and mean rewards of 0.78 to 0.97.
    end = [CALM | {"value/mean": 0.85, "value/std": 0.0015, "reward/std": 0.35, "reward/mean": mean}
           for mean in (0.97, 0.88, 0.78, 0.81, 0.9, 0.97)]  # fmt: skip
    assert watch([CALM] * 20 + end * 3)[1] == []
    far = [row | {"value/mean": 0.5} for row in end]
    assert [alarm.detector for alarm in watch([CALM] * 20 + far * 3)[1]] == ["value_collapse"]


def test_skipped_updates_are_counted_over_20_steps() -> None:
    def skip(*steps: int) -> list[tuple[int, int]]:
        rows = [
            CALM | ({"policy/skipped": 1.0, "policy/loss": math.inf} if step in steps else {})
            for step in range(1, 61)
        ]
        return [(alarm.step, alarm.since) for alarm in watch(rows)[1]]

    assert skip(5, 30, 55) == []  # one in 20 steps is bad luck
    assert skip(5, 10, 24) == [(24, 5)]  # the third of steps 5 ... 24
    assert skip(5, 10, 25) == []  # 21 steps apart
    two = [CALM] * 3 + [CALM | {"critic/skipped": 3.0, "critic/loss": math.nan}]
    (alarm,) = watch(two)[1]
    assert (
        alarm.step == 4
        and "critic/loss not finite, 3 updates of the step skipped (3 in 1 steps)" in alarm.message
    )


def test_a_figure_that_is_not_finite_counts_without_a_skip() -> None:
    assert [alarm.step for alarm in watch([CALM | {"critic/loss": math.nan}] * 3)[1]] == [3]


def test_reward_errors_that_come_and_go() -> None:
    # 8 % errors every second step: the third of them is the fifth step of six.
    rows = [CALM] + [CALM | {"reward/errors": 22 * (step % 2)} for step in range(1, 10)]
    (alarm,) = watch(rows)[1]
    # 22 / (22 + 256) = 7.9 %
    assert (alarm.detector, alarm.step, alarm.since) == ("reward_error_rate", 6, 2)
    assert "22 of 278 responses could not be scored" in alarm.message


# ----------------------------------------------------------------------------- what becomes of them


def test_an_alarm_stays_until_its_window_is_calm_and_can_come_back() -> None:
    bad = CALM | {"policy/approx_kl_k3": 0.3}
    rails, alarms = watch([CALM] * 10 + [bad] * 3 + [CALM] * 5)
    assert [alarm.step for alarm in alarms] == [13] and [alarm.detector for alarm in rails.alarms] == ["kl"]
    assert rails.metrics() == {"guardrail/alarms": 1, "guardrail/kl": 1.0}
    assert rails.check(19, CALM) == () and rails.alarms == () and rails.metrics() == {"guardrail/alarms": 0}
    assert [rails.check(step, bad) != () for step in (20, 21, 22)] == [False, False, True]


def test_a_fault_does_not_become_usual_by_lasting() -> None:
    rails, _ = watch([CALM] * 20 + [CALM | {"response/truncation_rate": 0.9}] * 200)
    assert [alarm.detector for alarm in rails.alarms] == ["truncation_rise"]


def test_an_interrupted_run_remembers() -> None:
    bad = CALM | {"response/truncation_rate": 0.9}
    lines = [
        json.dumps({"step": step, "seconds/step": 1.0, **(bad if step > 10 else CALM)})
        for step in range(1, 14)
    ]
    rows = [json.loads(line) for line in lines]
    rails = Guardrails(GuardrailSettings(), synchronous=True)
    rails.remember([*rows[:12], {"step": 12, "eval/accuracy": 0.5}])
    assert [alarm.detector for alarm in rails.check(13, rows[12])] == ["truncation_rise"]
    again = Guardrails(GuardrailSettings(), synchronous=True)
    again.remember(rows)  # it was raised before: not raised again
    assert again.check(14, bad) == () and [alarm.step for alarm in again.alarms] == [13]


def test_null_in_metrics_jsonl_is_what_was_not_finite() -> None:
    row = {"step": 3, "seconds/step": 1.0, "policy/loss": None, "nonfinite": ["policy/loss"]}
    assert (
        is_training_step(row)
        and math.isnan(finite_or_nan(row)["policy/loss"])
        and "nonfinite" not in finite_or_nan(row)
    )


@pytest.mark.parametrize("name", DETECTORS)
def test_each_detector_can_be_turned_off(name: str) -> None:
    rows = [CALM] * 20 + [FAULTS[name](CALM, age) for age in range(40)]
    assert name not in [alarm.detector for alarm in watch(rows, **{name: None})[1]]
    assert watch(rows, action="off")[1] == []


def test_the_limits_are_those_of_the_settings() -> None:
    assert set(DETECTORS) == set(GuardrailSettings.model_fields) - {"action", "max_pause_s"}
    rows = [CALM | {"policy/approx_kl_k3": 0.3}] * 10
    assert [alarm.action for alarm in watch(rows, action="stop")[1]] == ["stop"]
    assert watch(rows, kl=0.4)[1] == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(sorted(CALM)), st.floats(width=32), max_size=4), max_size=20))
def test_any_metrics_can_be_checked(changes: list[dict[str, float]]) -> None:
    rails, alarms = watch([CALM | change for change in changes])
    assert set(rails.alarms) <= set(alarms) and len({alarm.step for alarm in alarms}) <= len(changes)


def test_the_spread_of_values_of_an_older_run(tmp_path: Path) -> None:
    # values .2 and .8 with rewards 0 and 1: brier .04, means .5, std(R) .5, correlation 1:
    # .04 = s^2 - 2 * .5 s + .25 has the solutions .3 and .7; .3 is right, and the smaller.
    row = {
        "step": 1,
        "value/mean": 0.5,
        "reward/mean": 0.5,
        "value/brier": 0.04,
        "reward/std": 0.5,
        "value/pearson": 1.0,
    }
    assert with_spread(tmp_path, row)["value/std"] == pytest.approx(0.3)
    assert "value/std" not in with_spread(tmp_path, {"step": 1, "reward/mean": 0.5})
