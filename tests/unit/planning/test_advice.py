"""The advice at the end of a run, against runs of the real loop with stand-in engines in virtual
time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.stand_ins import Latencies, Rows, Shape, ideal_run, step_seconds
from sppo_ray.planning.advice import Advice, advice_of


def run(engines: int, staleness: int, **latencies: float) -> Rows:
    """256 samples a step with a long tail of lengths; an engine has places for 16 at a time."""
    settings = ("--rollout.max_sequences=16", f"--loop.max_staleness={staleness}")
    return ideal_run(Shape(engines, 256, 6, 40, 80, latencies=Latencies(**latencies), settings=settings))


def advice(rows: Rows, staleness: int) -> Advice:
    found = advice_of(rows, learner_ranks=1, critic_ranks=1, is_overlapped=staleness > 0)
    assert found is not None
    return found


def saved(before: Rows, after: Rows) -> float:
    return 1 - step_seconds(after, 2) / step_seconds(before, 2)


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("engines", [1, 3])
def test_the_saving_of_one_more_engine(engines: int, staleness: int) -> None:
    rows = run(engines, staleness)
    predicted = advice(rows, staleness)
    assert predicted.bottleneck == "generation" and "one more rollout worker" in predicted.text
    assert predicted.saving == pytest.approx(saved(rows, run(engines + 1, staleness)), abs=0.05)


@pytest.mark.parametrize(("engines", "staleness"), [(8, 0), (3, 1)])
def test_the_saving_of_twice_the_learner(engines: int, staleness: int) -> None:
    rows = run(engines, staleness, update_s=1.0)
    predicted = advice(rows, staleness)
    assert predicted.bottleneck == "training"
    assert predicted.saving == pytest.approx(saved(rows, run(engines, staleness, update_s=0.5)), abs=0.05)


def test_every_worker_second_has_a_label() -> None:
    for row in run(2, 1)[1:]:
        for role in ("rollout", "learner", "critic", "reward", "driver"):
            shares = [value for name, value in row.items() if name.startswith(f"time/{role}/")]
            assert sum(shares) == pytest.approx(1.0, abs=0.01)
        busy = [value for name, value in row.items() if name.startswith("busy/")]
        assert row["time/rollout/generate"] == pytest.approx(sum(busy) / 2, abs=0.02)
        assert row["time/learner/train"] * row["seconds/step"] == pytest.approx(0.473, abs=0.02)


STEP = {"seconds/step": 10.0, "sync/workers": 2, "time/driver/wait": 0.9}


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        (
            {"seconds/generate-wait": 9.0, "time/rollout/generate": 0.1, "time/reward/reward": 0.8},
            "the verifier is the bottleneck: twice the reward.processes would save about 40% of the time",
        ),
        (
            {"seconds/other": 9.0},
            "the driver is the bottleneck: a core twice as fast for the driver would save about 45% of "
            "the time",
        ),
        ({"seconds/sync": 0.5}, "balanced: even twice the samples a step would save 2% of the time"),
        # evaluations do not count
        (
            {"seconds/step": 20.0, "seconds/evaluate": 10.0, "seconds/critic-wait": 6.0},
            "the critic is the bottleneck: one more critic rank on hardware of its own would save about "
            "30% of the time",
        ),
    ],
)
def test_texts(figures: Mapping[str, Any], text: str) -> None:
    assert advice([STEP | figures], 0).text == text


def test_rows_without_times_get_no_advice() -> None:
    arguments = {"learner_ranks": 1, "critic_ranks": 1, "is_overlapped": False}
    assert advice_of([], **arguments) is None
    assert advice_of([{"seconds/step": 3.0}], **arguments) is None
