"""What a person sees: the plain line to the character, the live panel's numbers, the arithmetic of
the ETA.
"""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from sppo_ray.display.choice import make_progress
from sppo_ray.display.progress import (
    PlainProgress,
    SilentProgress,
    StepTimer,
    StepView,
    evaluation_text,
    ordered_stages,
)
from sppo_ray.display.progress_live import LiveProgress
from sppo_ray.evaluation.scores import EvalReport, GradedResponse, evaluate
from sppo_ray.formatting import format_seconds, sparkline

STAGES = {"generate-wait": 1.2, "update": 0.9, "sync": 0.03}


class HandClock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def view(step: int, **changes: object) -> StepView:
    fields = {
        "reward": 0.61,
        "response_length": 41.3,
        "tokens_per_second": 812.4,
        "stages": STAGES,
        "policy_version": 4 * step,
    }
    return StepView(step=step, **(fields | changes))


def held_out(step: int, solved: int, *, prompts: int = 20, k: int = 1, sources: int = 1) -> EvalReport:
    responses = [
        GradedResponse(
            f"p{p}", f"source-{p % sources}", i, float(p < solved), rf"\boxed{{{p}}}", 41, False, str(p)
        )
        for p in range(prompts)
        for i in range(k)
    ]
    return evaluate(responses, k=k, step=step, policy_version=4 * step, seconds=3.2)


# -------------------------------------------------------------------------------------------- plain


def test_the_plain_line():
    clock, stream = HandClock(), io.StringIO()
    progress = PlainProgress("quickstart", stream, now=clock)
    progress.start(130, 11)
    progress.evaluation(held_out(10, 14))
    clock.seconds += 2.0
    progress.step(view(12))
    start, evaluation, step = stream.getvalue().splitlines()
    assert start == "quickstart: 130 steps, 11 done already"
    assert evaluation.startswith("held-out at step 10: accuracy 0.70 [")
    # 118 steps are left at 2 s each: 236 s
    figures = "reward 0.61  held-out 0.70  len 41  812 tok/s  gen 1.2s upd 0.9s sync 0.03s"
    assert step == f"step  12/130  {figures}  ETA 3m56s"


def test_plain_lines_stay_aligned_ascii_and_flushed():
    clock, stream = HandClock(), io.StringIO()
    progress = PlainProgress("quickstart", stream, now=clock)
    progress.start(130, 0)
    for step, stages in enumerate([STAGES, STAGES | {"evaluate": 3.0}, STAGES], start=1):
        clock.seconds += 1.0
        progress.step(view(step, stages=stages, tokens_per_second=900.0 if step == 1 else 12_000.0))
    first, second, third = stream.getvalue().splitlines()[1:]
    assert second.index("ETA") == third.index("ETA")
    assert second.index("gen") == third.index("gen")
    assert "held-out -" in first  # never evaluated
    assert stream.getvalue().isascii()


def test_the_evaluation_line_names_each_source_and_the_errors():
    text = evaluation_text(held_out(20, 10, k=4, sources=2))
    head, *sources = text.splitlines()
    assert head.startswith("held-out at step 20: accuracy 0.50 [")
    assert head.endswith("pass@4 0.50  maj@4 0.50  len 41  truncated 0.0%  n 20  (3.2s)")
    assert [line.split()[0] for line in sources] == ["source-0", "source-1"]
    partial = [GradedResponse(f"p{n}", "s", 0, 0.2, "", 1, False, None) for n in range(2)]
    text = evaluation_text(evaluate(partial, k=1, step=0, policy_version=0))
    assert "mean reward 0.20 [0.20, 0.20]  solved 0.00  len 1" in text
    failed = evaluate([GradedResponse("p", "s", 0, None, "", 1, True, None)], k=1, step=0, policy_version=0)
    assert "accuracy - [-, -]  len 1  truncated 100.0%  reward errors 1  n 1" in evaluation_text(failed)


def test_the_view_of_a_step_comes_from_its_metrics():
    metrics = {
        "reward/mean": 0.5,
        "reward/seconds_mean": 0.01,
        "response/length_mean": 40.0,
        "response/tokens": 10_240,
        "seconds/step": 2.0,
        "seconds/other": 0.1,
        "seconds/total": 14.0,
        "seconds/update": 0.9,
        "seconds/generate-wait": 1.0,
    }
    seen = StepView.of(7, metrics, policy_version=28, fleet="rollout 2/2 healthy")
    assert seen == StepView(
        7, 0.5, 40.0, 5120.0, {"update": 0.9, "generate-wait": 1.0}, 28, "rollout 2/2 healthy"
    )
    assert list(ordered_stages(seen.stages | {"zeta": 1.0, "alpha": 2.0})) == ["gen", "upd", "alpha", "zeta"]


# ---------------------------------------------------------------------------------------------- ETA


def test_eta_is_the_smoothed_step_time_times_the_steps_left():
    clock = HandClock()
    timer = StepTimer(alpha=0.5, now=clock)
    timer.start(10, 4)
    assert timer.step_seconds != timer.step_seconds  # NaN: nothing is known yet
    clock.seconds += 2.0
    timer.tick(5)
    assert (timer.step_seconds, timer.seconds_left) == (2.0, 10.0)  # the first step alone, times 5
    clock.seconds += 5.0
    timer.tick(6)
    # weights 1/4 and 1/2 of the two steps, over their sum: (0.25 x 2 + 0.5 x 5) / 0.75 = 4
    assert timer.step_seconds == pytest.approx(4.0)
    assert timer.seconds_left == pytest.approx(16.0)
    clock.seconds += 8.0
    timer.tick(10)
    assert timer.seconds_left == 0.0
    assert timer.elapsed == 15.0


def test_the_evaluation_before_the_first_step_is_no_step_time():
    clock, stream = HandClock(), io.StringIO()
    progress = PlainProgress("run", stream, now=clock)
    progress.start(11, 0)
    clock.seconds += 60.0
    progress.evaluation(held_out(0, 5))
    clock.seconds += 3.0
    progress.step(view(1))
    assert stream.getvalue().splitlines()[-1].endswith("ETA 30s")


def test_a_pause_is_no_step_time():
    clock, stream = HandClock(), io.StringIO()
    progress = PlainProgress("run", stream, now=clock)
    progress.start(11, 0)
    clock.seconds += 3.0
    progress.step(view(1))
    clock.seconds += 3600.0
    progress.rested()
    clock.seconds += 3.0
    progress.step(view(2))
    assert stream.getvalue().splitlines()[-1].endswith("ETA 27s")  # 9 steps of 3 s


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"), (0.034, "0.03s"), (0.0996, "0.1s"), (1.24, "1.2s"), (9.94, "9.9s"), (9.96, "10s"), (59.4,
        "59s"),
        (59.6, "1m00s"), (200.0, "3m20s"), (3599.7, "1h00m"), (7500.0, "2h05m"), (97_200.0, "1d03h"),
        (float("nan"), "-"),
    ],
)  # fmt: skip
def test_format_seconds(seconds: float, text: str):
    assert format_seconds(seconds) == text


def test_sparkline():
    assert sparkline([0.0, 0.5, 1.0], width=8) == "▁▅█"
    assert sparkline([0.0, 0.0, 1.0, 1.0], width=2) == "▁█"  # pairs are averaged
    assert sparkline([0.5, float("nan")], width=8, low=0.0, high=1.0) == "▅ "
    assert sparkline([3.0, 3.0], width=8) == "▅▅"
    assert sparkline([], width=8) == ""


# --------------------------------------------------------------------------------------------- live


def panel(progress: LiveProgress, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(progress.render())
    return console.export_text()


def test_the_live_panel_shows_the_numbers():
    clock, stream = HandClock(), io.StringIO()
    progress = LiveProgress("sppo-ray  quickstart  seed 1", stream, now=clock)
    assert "ETA -" in panel(progress)  # before anything has happened
    progress.start(130, 10)
    progress.evaluation(held_out(0, 9))
    progress.evaluation(held_out(10, 14))
    for step, reward in ((11, 0.2), (12, 0.61)):
        clock.seconds += 2.0
        progress.step(view(step, reward=reward, fleet="rollout 2/2 healthy | restarts 0"))
    text = panel(progress)
    progress.close()
    for seen in (
        "sppo-ray  quickstart  seed "
        "1", "step 12/130", "2.0s/step", "elapsed 4s", "ETA 3m56s", "▁█", "812  tokens/s",
        "48  version", "41  tokens a response", "gen   1.2s", "upd   0.9s", "sync 0.03s",
        "rollout 2/2 healthy | restarts 0",
    ):  # fmt: skip
        assert seen in text, f"{seen!r} is not in\n{text}"
    assert "reward       0.61" in text
    assert "accuracy     0.70  held-out 0." in text and ", first 0.45" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_longest_stage_has_the_longest_bar():
    progress = LiveProgress("run", io.StringIO(), now=HandClock())
    progress.step(view(1, stages={"generate-wait": 4.0, "update": 2.0, "sync": 0.0}))
    bars = {
        line.split()[-3 if "█" in line else 0]: line.count("█")
        for line in panel(progress).splitlines()
        if "█" in line
    }
    full, half = (count for count in bars.values())
    assert half == pytest.approx(full / 2, abs=1)


def test_messages_are_printed_as_they_are():
    stream = io.StringIO()
    progress = LiveProgress("run", stream)
    progress.message("sources [reasoning-gym] 12")  # no markup, no highlighting
    assert stream.getvalue() == "sources [reasoning-gym] 12\n"


INTERRUPTED = """
import sys, time
from sppo_ray.display.choice import make_progress
progress = make_progress("auto", "run", sys.stdout)
try:
    progress.start(100, 0)
    progress.message("ready")
    for _ in range(600):  # one long sleep may miss a signal that comes just before it
        time.sleep(0.1)
finally:
    if sys.argv[1] == "closes":
        progress.close()
"""


@pytest.mark.parametrize("loop", ["closes", "forgets"])
def test_ctrl_c_gives_the_terminal_back(loop: str):
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, loop],
        stdout=terminal,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(terminal)
    output = b""
    deadline = time.monotonic() + 60
    while b"ready" not in output and time.monotonic() < deadline:
        output += os.read(main, 65536)
    process.send_signal(signal.SIGINT)
    while chunk := _read(main):
        output += chunk
    assert process.wait(timeout=30) != 0
    hide, show = b"\x1b[?25l", b"\x1b[?25h"
    assert hide in output, "auto on a terminal is the live display"
    assert output.rindex(show) > output.rindex(hide)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux: the other end of a pseudo-terminal is closed
        return b""


# ----------------------------------------------------------------------------------------- choosing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class AsciiTerminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_the_display_follows_the_setting_and_the_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_progress("auto", "run", Terminal()), LiveProgress)
    assert isinstance(make_progress("auto", "run", io.StringIO()), PlainProgress)
    assert isinstance(make_progress("plain", "run", Terminal()), PlainProgress)
    assert isinstance(make_progress("live", "run", io.StringIO()), LiveProgress)
    assert isinstance(
        make_progress("auto", "run", AsciiTerminal(io.BytesIO(), encoding="ascii")), PlainProgress
    )
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress("auto", "run", Terminal()), PlainProgress)
    silent = Terminal()
    progress = make_progress("off", "run", silent)
    assert isinstance(progress, SilentProgress)
    progress.start(3, 0)
    progress.message("hello")
    progress.step(view(1))
    progress.evaluation(held_out(0, 1))
    progress.close()
    assert silent.getvalue() == ""
