"""The learning curve: the numbers in it, on paper and in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sppo_ray.display.plots import curve_text, held_out_name, learning_curve, print_curve, smooth
from sppo_ray.errors import UserError
from sppo_ray.rundir.metrics import MetricsWriter, read_metrics


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Twenty steps of 6 s; accuracy .40, .60, .80 at steps 0, 10, 20; the reward rises from .25 to
    .75.
    """
    directory = tmp_path / "quickstart-seed1"
    with MetricsWriter(directory) as writer:
        for step in range(21):
            row = {"seconds/total": 6.0 * step}
            if step % 10 == 0:
                accuracy = 0.4 + 0.02 * step
                row |= {
                    "eval/accuracy": accuracy,
                    "eval/accuracy_low": accuracy - 0.05,
                    "eval/accuracy_high": accuracy + 0.05,
                }
            if step:
                row |= {
                    "reward/mean": 0.25 + 0.5 * (step - 1) / 19,
                    "response/length_mean": 40.0,
                    "value/log_loss": 0.5,
                    "value/log_loss_constant": 0.6,
                    "seconds/step": 6.0,
                    "seconds/generate-wait": 4.0,
                    "seconds/update": 2.0,
                }
            writer.write(step, row)
    return directory


def test_the_picture_is_a_png_of_a_readable_size(run_dir: Path):
    path = learning_curve(run_dir)
    data = path.read_bytes()
    assert path == run_dir / "curve.png"
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")  # IHDR
    assert (width, height) == (1650, 1110)  # 11 x 7.4 inches at 150 dots
    assert [entry.name for entry in run_dir.iterdir() if entry.suffix == ".tmp"] == []


@pytest.mark.filterwarnings("error")
def test_a_run_without_evaluations_or_with_one_step_can_be_drawn(tmp_path: Path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"reward/mean": 0.5, "value/log_loss": float("nan")})
    assert learning_curve(tmp_path).stat().st_size > 10_000
    assert "no evaluation: set data.held_out" in curve_text(tmp_path)


def test_the_terminal_version_has_a_line_an_evaluation(run_dir: Path):
    head, *evaluations, reward = curve_text(run_dir).splitlines()
    assert [line.split()[:5] for line in evaluations] == [
        ["0", "0s", "0.40", "[0.35,", "0.45]"],
        ["10", "1m00s", "0.60", "[0.55,", "0.65]"],
        ["20", "2m00s", "0.80", "[0.75,", "0.85]"],
    ]
    assert [line.count("█") for line in evaluations] == [16, 24, 32]  # of 40 for 1.0
    assert head.index("0---") == evaluations[0].index("█")
    assert reward.startswith("training reward 0.25 ▃") and reward.endswith("▇ 0.75")


def test_an_accuracy_with_partial_rewards_is_called_mean_reward(run_dir: Path, tmp_path: Path):
    with MetricsWriter(tmp_path) as writer:
        for step, solved in ((0, 0.4), (10, 0.2)):
            figures = {"eval/accuracy": 0.4, "eval/accuracy_low": 0.3, "eval/accuracy_high": 0.5}
            writer.write(step, figures | {"eval/pass@1": solved, "reward/mean": 0.4})
    head, first, *_ = curve_text(tmp_path).splitlines()
    assert "held-out mean reward" in head and head.index("0---") == first.index("█")
    assert held_out_name(read_metrics(tmp_path)) == "mean reward"
    assert held_out_name(read_metrics(tmp_path)[:1]) == held_out_name(read_metrics(run_dir)) == "accuracy"


def test_a_terminal_without_block_characters_gets_the_figures(run_dir: Path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_curve(run_dir, stream)
    assert b"0.80 [0.75, 0.85]  ????" in stream.buffer.getvalue()


def test_no_metrics_is_a_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match="is this a run directory"):
        learning_curve(tmp_path)


def test_smoothing_starts_at_the_first_value():
    # weights 1/2 and 1 over their sum: (0.5 x 0 + 1 x 3) / 1.5 = 2
    assert smooth([0.0, 3.0], weight=0.5) == [0.0, 2.0]
    assert smooth([7.0] * 5, weight=0.9) == pytest.approx([7.0] * 5)
