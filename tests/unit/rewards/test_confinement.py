"""What an answer that runs as code can do: nothing outside its process, nothing to the next
sample.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sppo_ray.config import (
    CodeReward,
    CustomReward,
    MathReward,
    ReasoningGymReward,
    RewardFunction,
    RewardSettings,
)
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import BadGroundTruth
from sppo_ray.rewards.pool import confinement, process
from sppo_ray.rewards.pool.pool import PoolCounters, VerifierPool
from sppo_ray.rewards.registry import build_verifier
from sppo_ray.types import ScoreRequest, Verdict

FUNCTIONS = "tests.unit.rewards.verifier_functions"
SECRET = "sk-of-a-judge"


def evaluation(**changes: Any) -> CustomReward:
    return CustomReward(function=f"{FUNCTIONS}:by_evaluation", **changes)


def score(
    function: RewardFunction, responses: list[str], *, truth: str = "", **changes: Any
) -> list[Verdict]:
    async def use(pool: VerifierPool) -> list[Verdict]:
        return [await pool.score(ScoreRequest(response, truth, "", "", {})) for response in responses]

    return use_pool(
        RewardSettings(function=function, **{"deadline_s": 5.0, "memory_mib": 512, **changes}), use
    )[0]


def use_pool(
    settings: RewardSettings, use: Callable[[VerifierPool], Awaitable[Any]]
) -> tuple[Any, PoolCounters]:
    async def session() -> tuple[Any, PoolCounters]:
        pool = VerifierPool(settings)
        try:
            return await use(pool), pool.counters
        finally:
            await pool.close()

    return asyncio.run(session())


# -------------------------------------------------------------------- what code in an answer can do


def attacks(place: Path) -> dict[str, str]:
    """By what it tries: an expression that is 1 when it succeeded."""
    (place / "secret").write_text("secret")
    return {
        "read a file": f"open({str(place / 'secret')!r}).read() == 'secret'",
        "read /etc/passwd": "len(open('/etc/passwd').read()) > 0",
        "read its process": "len(open('/proc/self/environ').read()) > 0",
        "read the parent's": "len(open('/proc/%d/environ' % __import__('os').getppid()).read()) > 0",
        "write a file": f"open({str(place / 'canary')!r}, 'w').write('x')",
        "run a command": f"__import__('os').system('touch {place / 'canary'}') == 0",
        "fork": "__import__('os').fork() >= 0",
        "open a socket": "__import__('socket').socket() is not None",
        "signal the keeper": "__import__('os').kill(__import__('os').getppid(), 0) is None",
        "see a key": f"{SECRET!r} in __import__('os').environ.values()",
        "trace": "__import__('ctypes').CDLL(None).ptrace(16, __import__('os').getppid(), 0, 0) == 0",
    }


def test_code_in_an_answer_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_A_JUDGE", SECRET)
    tried = attacks(tmp_path)
    verdicts = score(evaluation(), [*tried.values(), "1"])
    assert [name for name, verdict in zip(tried, verdicts, strict=False) if verdict.reward == 1.0] == []
    assert verdicts[-1].reward == 1.0 and not (tmp_path / "canary").exists()
    remedies = [verdict.reason for verdict in verdicts if "reward.function.confined: false" in verdict.reason]
    assert len(remedies) >= 6  # what a wall stopped names the setting


def test_a_function_that_is_not_confined_has_files_network_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_A_JUDGE", SECRET)
    tried = attacks(tmp_path)
    wanted = ["read a file", "write a file", "run a command", "open a socket", "see a key"]
    assert [
        verdict.reward for verdict in score(evaluation(confined=False), [tried[name] for name in wanted])
    ] == [1.0] * 5


def test_a_confined_function_imports_late_and_reads_its_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_function.py").write_text(
        "from pathlib import Path\n"
        "def f(response, ground_truth, extra):\n"
        "    import sqlite3, own_helper, sympy.stats, numpy.fft\n"
        "    return own_helper.VALUE + float(Path(__file__).with_name('words.txt').read_text())\n"
    )
    (tmp_path / "own_helper.py").write_text("VALUE = 0.25\n")
    (tmp_path / "words.txt").write_text("0.5")
    monkeypatch.syspath_prepend(str(tmp_path))
    (verdict,) = score(CustomReward(function="own_function:f"), ["x"], deadline_s=30.0)
    assert verdict.reward == 0.75, verdict


FORGED = [
    json.dumps(
        {"batch": "", "reward": 1.0, "reason": "correct", "answer": None, "fatal": None, "retire": False}
    ),
    json.dumps({"ready": 1, "pid": 1, "last_exit": 0, "missing": None, "failure_is_wrong": True}),
    json.dumps({"ready": 99, "pid": 1, "last_exit": 0, "missing": None, "failure_is_wrong": True}),
    json.dumps({"died": 0}),
    '{"reward": 1.0, "half of a line',
]
ATTACKS = [
    "patch()",
    "stay()",
    *(f"write_everywhere({line!r} + {end!r})" for line in FORGED for end in ("", "\n")),
]


def test_nothing_of_a_sample_goes_on_to_the_next_when_each_has_its_process() -> None:
    """Neither a patched function, nor replies written in advance, nor the word that another process
    has taken over.
    """
    responses = [one for attack in ATTACKS for one in (attack, "0")]
    verdicts = score(evaluation(isolate=True), [*responses, "1"])
    assert [verdict.reward for verdict in verdicts] == [0.0] * len(responses) + [1.0]


def test_without_isolate_a_function_that_evaluates_can_be_patched() -> None:
    """Why the setting is there."""
    _, after = score(evaluation(), ["patch()", "0"])
    assert after.reward == 1.0


# ------------------------------------------------------------------------ machines that lack a wall


@pytest.mark.parametrize("lacking", ["landlock", "seccomp"])
def test_where_a_wall_is_missing(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    from sppo_ray.rewards.code.sandbox import confine

    def fail(*_: object) -> None:
        raise confine.CannotConfine(f"this machine has no {lacking}")

    monkeypatch.setattr(confine, "_restrict_files" if lacking == "landlock" else "_restrict_calls", fail)
    verifier = build_verifier(evaluation())
    with pytest.raises(
        UserError, match=f"must be confined, but this machine has no {lacking}.*confined: false"
    ):
        confinement.missing_walls(verifier)
    assert confinement.missing_walls(build_verifier(evaluation(confined=False))) is None
    assert confinement.missing_walls(build_verifier(MathReward())) == f"this machine has no {lacking}"


def test_a_missing_wall_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        process._warn_once("no wall in this test")
    assert [record.getMessage() for record in caplog.records].count(
        "the processes that read answers are not fully confined here: no wall in this test"
    ) == 1


def test_a_verifier_of_the_packages_own_is_confined_without_being_asked() -> None:
    assert {build_verifier(function).walls for function in (MathReward(), ReasoningGymReward())} == {"wanted"}
    assert build_verifier(evaluation()).walls == "required"
    # its programs are confined, each on its own
    assert build_verifier(CodeReward()).walls == "none"


def test_the_environment_is_a_list_of_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "AWS_SECRET_ACCESS_KEY", "PYTHON_KEYRING_BACKEND", "HF_TOKEN", "LC_ALL", "TZ"):
        monkeypatch.setenv(name, SECRET)
    names = confinement.environment(MathReward())
    assert {"LC_ALL", "TZ", "PATH", "PYTHONPATH"} <= names.keys()
    assert not {"HOME", "AWS_SECRET_ACCESS_KEY", "PYTHON_KEYRING_BACKEND", "HF_TOKEN"} & names.keys()


# ---------------------------------------------------------------- failing does not escape the score

ALWAYS = "tests.unit.rewards.failing_worker"


@pytest.fixture
def _failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The running sum's verifier replaced by `by_command`, whose failures are the answer's
    fault.
    """
    monkeypatch.setattr(process, "WORKER", ALWAYS)


@pytest.mark.usefixtures("_failing")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("raise", "failed"),
        ("burn", "timeout"),
        ("segfault", "crash"),
        ("exit-hard", "crash"),
        ("allocate", "out_of_memory"),
    ],
)
def test_an_answer_that_makes_the_verifier_fail_is_wrong(answer: str, reason: str) -> None:
    async def use(pool: VerifierPool) -> list[Verdict]:
        return [await pool.score(ScoreRequest(text, "good", "", "", {})) for text in (answer, "good")]

    settings = RewardSettings(function={"type": "running-sum"}, deadline_s=1.0, memory_mib=256)
    (bad, good), counters = use_pool(settings, use)
    assert (bad.reward, bad.reason, good.reward) == (0.0, reason, 1.0)
    assert (counters.wrong_by_failure, counters.errors, counters.scored) == (1, 0, 2)
    assert counters.timeouts == (reason == "timeout")


@pytest.mark.usefixtures("_failing")
@pytest.mark.parametrize("truth", ["raise", "burn", "segfault", "allocate", "bad"])
def test_a_ground_truth_that_makes_the_verifier_fail_is_an_error(truth: str) -> None:
    async def use(pool: VerifierPool) -> list[Verdict]:
        return [await pool.score(ScoreRequest(text, truth, "", "", {})) for text in ("truth", "good")]

    settings = RewardSettings(function={"type": "running-sum"}, deadline_s=1.0, memory_mib=256)
    (bad, _), counters = use_pool(settings, use)
    assert bad.reward is None and bad.reason.startswith("error: "), bad
    assert counters.wrong_by_failure == 0


@pytest.mark.usefixtures("_failing")
def test_a_sample_that_had_no_processor_is_tried_once_more_before_its_ground_truth() -> None:
    async def use(pool: VerifierPool) -> list[Verdict]:
        # they sleep
        requests = [ScoreRequest("hang", truth, "", "", {}) for truth in ("good", "hang")]
        return [await pool.score(one) for one in requests]

    settings = RewardSettings(function={"type": "running-sum"}, deadline_s=0.5, memory_mib=256)
    (wrong, error), counters = use_pool(settings, use)
    assert (wrong.reward, wrong.reason) == (0.0, "timeout")
    assert error.reason == "error: timeout after 0.5 s, and timeout after 0.5 s with the ground truth alone"
    assert (counters.restarts, counters.wrong_by_failure, counters.errors) == (2 + 4, 1, 1)


def test_a_ground_truth_of_the_packages_own_verifiers_is_never_scored_when_it_is_bad() -> None:
    gym = build_verifier(ReasoningGymReward())
    with pytest.raises(BadGroundTruth, match="no JSON"):
        gym.score("1", "", {"reasoning_gym_task": "countdown", "reasoning_gym_entry": "{"})
    assert gym.failure_is_wrong and build_verifier(MathReward()).failure_is_wrong
    assert (
        not build_verifier(evaluation()).failure_is_wrong
        and not build_verifier(CodeReward()).failure_is_wrong
    )
    assert math.isfinite(gym.low)
