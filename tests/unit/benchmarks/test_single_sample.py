"""The studies of methods with one response a prompt: their arms, the order and keeping of runs, the
figures of a page by hand. No run is made.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from benchmarks import report as result_files
from benchmarks.paper import kept_runs, single_sample, single_sample_report
from benchmarks.paper.kept_runs import Kept, Run, Study, fingerprint, kept_path, plan_of, read_kept
from benchmarks.paper.single_sample import RATES, STUDIES, SWEEP_SEED
from benchmarks.paper.single_sample_overview import draw, relative_cost, rows_by_axis
from benchmarks.paper.single_sample_report import rows_of, verdicts
from sppo_ray.compare.curves import Point
from sppo_ray.compare.plan import Job
from sppo_ray.compare.runner import Runner, run_path

TINY = Study(
    "a test", "quickstart", {"sppo": "sppo", "sppo-tracker": "sppo,algorithm.tracker.rho=0.875"},
    60, ("seconds", "tokens", "prompts"), (0.5,),
)  # fmt: skip


def kept(arm: str, *points: tuple[float, float, float], seed: int = 1, rate: float = 5e-4) -> Kept:
    """A run with evaluations at (seconds, tokens, accuracy); ten tokens a sample."""
    curve = tuple(Point(seconds, tokens / 10, tokens, accuracy) for seconds, tokens, accuracy in points)
    return Kept(
        Run(arm, rate, seed), "abc", 100.0, None, curve, 1, {"policy/masked_fraction": 0.25}, {}, {}
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The studies' results go to a folder of the test."""
    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    for module in (kept_runs, single_sample_report):
        monkeypatch.setattr(module, "REPORTS", tmp_path / "paper")
    monkeypatch.setattr(single_sample, "STUDIES", {"tiny": TINY})
    return tmp_path


def keep(one: Kept, study: Study = TINY, name: str = "single-sample/tiny") -> Path:
    path = kept_path(name, one.run)
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {"fingerprint": fingerprint(study, one.run), "settings": [], "machine": {}}
    path.write_text(json.dumps(asdict(one) | more))
    return path


def next_run(name: str, *, retry: bool = False, tried: set[Run] | None = None) -> Run | None:
    return next(single_sample.missing_runs(name, retry=retry, tried=tried or set()), None)


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_has_settings_and_differs_from_the_others(name: str) -> None:
    study = STUDIES[name]
    plans = [plan_of(study, Run(arm, 1e-3, 1)) for arm in study.arms]
    configs = [plan.config(plan.arms[0]) for plan in plans]
    assert len({config.model_dump_json() for config in configs}) == len(study.arms)
    assert all(config.learner.optimizer.lr == 1e-3 for config in configs)
    assert study.baseline in study.arms and single_sample.like(next(iter(study.arms))) in single_sample.ARMS


def test_a_study_by_steps_has_no_time_limit() -> None:
    plan = plan_of(STUDIES["staleness"], Run("sppo-dis-stale8", 5e-4, 1))
    loop = plan.config(plan.arms[0]).loop
    assert (loop.budget_s, loop.steps, loop.max_staleness) == (None, 48, 8)


def test_the_sweep_comes_first_and_chooses_the_rates(results: Path) -> None:
    sweep = [Run(arm, rate, SWEEP_SEED) for rate in RATES for arm in TINY.arms]
    for number, run in enumerate(sweep):
        assert next_run("tiny") == run
        # sppo is best with the last rate, the tracker with the first
        is_best = (run.arm, run.rate) in {("sppo", RATES[-1]), ("sppo-tracker", RATES[0])}
        one = kept(run.arm, (0, 0, 0.4), (60, 600, 0.9 if is_best else 0.5), seed=SWEEP_SEED, rate=run.rate)
        keep(one)
        assert single_sample.missing("tiny") == 6 + 10 - number - 1  # 5 seeds of each
    assert next_run("tiny") == Run("sppo", RATES[-1], 1)
    assert single_sample.sweep("tiny")["sppo"][RATES[-1]] == pytest.approx(0.65)  # over all tokens
    keep(kept("sppo", (0, 0, 0.4), (60, 600, 0.9), rate=RATES[-1]))
    assert next_run("tiny") == Run("sppo-tracker", RATES[0], 1)


def test_a_run_is_kept_until_its_settings_change(results: Path) -> None:
    one = kept("sppo", (0, 0, 0.4), (60, 600, 0.9))
    keep(one)
    assert read_kept("single-sample/tiny", TINY, one.run) == one
    assert read_kept("single-sample/tiny", TINY, replace(one.run, seed=2)) is None
    changed = replace(TINY, overrides=("data.minibatch_size=32",))
    assert read_kept("single-sample/tiny", changed, one.run) is None


# A process that leaves what a training run leaves, and the cores that it was given.
TRAIN = """
import json, os, pathlib, sys
run = pathlib.Path(sys.argv[1]); (run / "evaluations").mkdir(parents=True)
for step, (seconds, tokens, accuracy) in enumerate([(0, 0, 0.4), (60, 800, 0.8)]):
    overall = {"accuracy": accuracy, "accuracy_low": accuracy, "accuracy_high": accuracy}
    row = {"train_seconds": seconds, "train_samples": tokens // 10, "train_tokens": tokens}
    row |= {"overall": overall}
    (run / "evaluations" / f"step-{step:06d}.json").write_text(json.dumps(row))
row = {"step": 1, "policy/masked_fraction": 0.25, "policy/effective_sample_size": 0.9, "reward/mean": 0.5}
(run / "metrics.jsonl").write_text(json.dumps(row | {"seconds/sync": len(os.sched_getaffinity(0))}) + "\\n")
summary = {"status": "finished", "seed": int(sys.argv[2]), "steps": 1, "seconds": 60.0, "samples": 80}
(run / "summary.json").write_text(json.dumps(summary | {"response_tokens": 800, "initial_accuracy": 0.4}))
"""


def test_a_run_is_made_on_its_cores_and_kept(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real runner, with a process in the place of the training."""

    def runner(plan: object, out: Path, say: object) -> Runner:
        def command(job: Job) -> list[str]:
            assert (out / "arms" / f"{job.arm}.yaml").is_file()
            return [sys.executable, "-c", TRAIN, str(run_path(out, job)), str(job.seed)]

        return Runner(plan, out, say, command)  # type: ignore[arg-type]

    monkeypatch.setattr(kept_runs, "Runner", runner)
    monkeypatch.setattr(kept_runs, "RUNS", results / "runs")
    run, cores = Run("sppo-tracker", 5e-4, 2), os.sched_getaffinity(0)
    made = kept_runs.make("single-sample/tiny", TINY, run, lambda line: None)
    assert made.failed is None and made.curve == (Point(0, 0, 0, 0.4), Point(60, 80, 800, 0.8))
    assert made.figures == {
        "policy/masked_fraction": 0.25, "least effective_sample_size": 0.9, "training reward at the end": 0.5
    }  # fmt: skip
    assert made.stages["sync"] == 1  # core
    assert os.sched_getaffinity(0) == cores
    assert read_kept("single-sample/tiny", TINY, run) == made
    # left-overs of other settings are not taken for this run
    again = kept_runs.make("single-sample/tiny", TINY, run, lambda line: None)
    assert again.wall_s > 0 and again.curve == made.curve


def make_run(code: str, results: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Make a run by the real runner, with a process of this code in the place of the training."""

    def runner(plan: object, out: Path, say: object) -> Runner:
        return Runner(plan, out, say, lambda job: [sys.executable, "-c", code])  # type: ignore[arg-type]

    monkeypatch.setattr(kept_runs, "Runner", runner)
    monkeypatch.setattr(kept_runs, "RUNS", results / "runs")
    return kept_runs.make("single-sample/tiny", TINY, Run("sppo", 5e-4, 1), lambda line: None)


def test_a_run_that_fails_is_kept_as_failed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = "import sys; print('error: no such model'); sys.exit(2)"
    made = make_run(fails, results, monkeypatch)
    assert made.failed == "exit 2: no such model" and not made.curve


def test_a_run_that_someone_stops_is_not_kept(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_run("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", results, monkeypatch)
    assert read_kept("single-sample/tiny", TINY, Run("sppo", 5e-4, 1)) is None


def test_a_failed_run_is_made_again_only_when_asked_for(results: Path) -> None:
    first = Run("sppo", RATES[0], SWEEP_SEED)
    keep(replace(kept("sppo"), run=first, failed="exit 1", curve=()))
    assert next_run("tiny") != first
    assert next_run("tiny", retry=True) == first
    assert next_run("tiny", retry=True, tried={first}) != first
    assert single_sample.sweep("tiny")["sppo"] == {RATES[0]: 0.0}


def test_a_rate_is_judged_by_tokens_not_by_seconds(results: Path) -> None:
    """The second run is slow, because the machine is busy, and ends with half the tokens."""
    points = (0, 0, 0.4), (30, 600, 0.8), (60, 1200, 0.8)
    busy = (0, 0, 0.4), (60, 600, 0.8)
    keep(kept("sppo", *points, seed=SWEEP_SEED, rate=RATES[0]))
    keep(kept("sppo", *busy, seed=SWEEP_SEED, rate=RATES[1]))
    assert single_sample.sweep("tiny")["sppo"] == pytest.approx({RATES[0]: 0.6, RATES[1]: 0.6})


def test_two_processes_do_not_make_the_same_run(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_runs, "RUNS", results / "runs")
    run = Run("sppo", 5e-4, 1)
    other = (
        "import sys, pathlib\n"
        "from benchmarks.paper import kept_runs\n"
        "from benchmarks.paper.kept_runs import Run, claimed\n"
        "kept_runs.RUNS = pathlib.Path(sys.argv[1])\n"
        "with claimed('tiny', Run('sppo', 5e-4, 1)) as is_mine: print(is_mine, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", other, str(results / "runs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        with kept_runs.claimed("tiny", run) as is_mine:
            assert not is_mine
        with kept_runs.claimed("tiny", replace(run, seed=2)) as is_mine:
            assert is_mine
        process.kill()  # a claim ends with its process
    with kept_runs.claimed("tiny", run) as is_mine:
        assert is_mine


def test_seconds_are_the_tokens_at_the_measured_cost_by_hand(results: Path) -> None:
    """The median of three rounds: 0.02 s a token for sppo, 0.05 s for the tracker."""
    for rate in RATES:
        for arm in TINY.arms:
            keep(kept(arm, (0, 0, 0.4), (99, 800, 0.6), seed=SWEEP_SEED, rate=rate))
    for arm in TINY.arms:
        keep(kept(arm, (0, 0, 0.4), (99, 400, 0.6), (999, 800, 0.6), rate=RATES[0]))
    assert "Not measured yet" in Path(single_sample.report("tiny")).read_text()
    for arm, costs in {"sppo": (0.02, 0.01, 0.9), "sppo-tracker": (0.05, 0.05, 0.05)}.items():
        for number, cost in enumerate(costs, start=1):
            one = kept(arm, (0, 0, 0.4), (30, 400, 0.6), seed=number, rate=single_sample.TIMED_RATE)
            figures = {kept_runs.SECONDS_PER_TOKEN: cost}
            one = replace(one, figures=figures, stages={"sync": 1.0, "update": 3.0})
            keep(one, single_sample.timing(TINY), "single-sample/tiny/times")
    page = Path(single_sample.report("tiny")).read_text()
    assert "| **sppo** | 20.000 [10.000, 900.000] | 1.00 | 0.25 | 0.75 |" in page
    # .5 is met halfway to 400 tokens, and all are cut at what sppo's 800 tokens take, 16 s
    assert "accuracy after 16.0 seconds" in page
    rows = json.loads((results / "paper/single-sample/tiny/report.json").read_text())["rows"]
    ways = {row["arm"]: row["ways"][0]["cost"]["mean"] for row in rows if row["axis"] == "seconds"}
    assert ways == pytest.approx({"sppo": 4.0, "sppo-tracker": 10.0})


def test_the_seconds_of_a_token_by_hand() -> None:
    """Without the first step, and with nothing for a step that generated no tokens yet."""
    totals = [(5.0, 0), (9.0, 100), (11.0, 200), (14.0, 350)]
    rows = [{"seconds/total": seconds, "tokens/total": tokens} for seconds, tokens in totals]
    assert kept_runs._slope(rows) == pytest.approx((14.0 - 9.0) / 250)
    assert kept_runs._slope(rows[:2]) is None


def test_a_study_of_one_rate_has_no_sweep(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = replace(TINY, rate=5e-4, most_seeds=1)
    monkeypatch.setattr(single_sample, "STUDIES", {"tiny": study})
    assert next_run("tiny") == Run("sppo", 5e-4, 1) and single_sample.missing("tiny") == 2
    keep(kept("sppo", (0, 0, 0.4), (30, 400, 0.6), (60, 800, 0.8), rate=1e-3), study)  # of earlier settings
    assert next_run("tiny") == Run("sppo", 5e-4, 1) and single_sample.missing("tiny") == 2
    keep(kept("sppo", (0, 0, 0.4), (30, 400, 0.6), (60, 800, 0.8)), study)
    assert next_run("tiny") == Run("sppo-tracker", 5e-4, 1) and single_sample.missing("tiny") == 1
    assert "| **sppo** | 1 | 0.0005 |" in Path(single_sample.report("tiny")).read_text()


def test_the_arms_at_equal_cost_by_hand() -> None:
    # sppo meets .5 halfway between 0 and 600 tokens, then at 700 of 1,000; the tracker at 200
    runs = {
        "sppo": [
            kept("sppo", (0, 0, 0.4), (30, 600, 0.6), (60, 1200, 0.6)),
            kept("sppo", (0, 0, 0.3), (30, 700, 0.5), (60, 1000, 0.7), seed=2),
        ],
        "sppo-tracker": [
            kept("sppo-tracker", (0, 0, 0.4), (30, 400, 0.6), (60, 800, 0.8)),
            kept("sppo-tracker", (0, 0, 0.4), (30, 400, 0.6), (60, 900, 0.8), seed=2),
        ],
    }
    sppo, tracker = rows_of(TINY, runs, "tokens")
    (one_seed,) = rows_of(TINY, runs | {"sppo-tracker": runs["sppo-tracker"][:1]}, "tokens")[1:]
    assert one_seed.ways[0].saving.ratio == pytest.approx(300 / one_seed.ways[0].cost.mean)
    # all are cut at 800 tokens, what the shortest run generated
    assert sppo.accuracy.mean == pytest.approx((0.6 + 0.5 + 0.2 * 100 / 300) / 2)
    assert tracker.accuracy.mean == pytest.approx((0.8 + 0.6 + 0.2 * 400 / 500) / 2)
    assert (sppo.ways[0].reached, sppo.ways[0].cost.mean) == (2, pytest.approx((300 + 700) / 2))
    assert tracker.ways[0].cost.mean == pytest.approx(200)
    assert tracker.ways[0].saving.ratio == pytest.approx(2.5)
    # 1 - 200/500; the resamples of (300, 700) lie between 300 and 700: 1 - 200/300, 1 - 200/700
    assert verdicts([sppo, tracker]) == [
        "sppo-tracker: 60 % [33, 71] fewer tokens to 0.5 than sppo; met (at least 10 %, interval above 0)."
    ]
    by_prompts = rows_of(TINY, runs, "prompts")  # a prompt a sample, ten tokens each
    assert by_prompts[1].ways[0].cost.mean == pytest.approx(20)


def test_an_idea_that_saves_nothing_is_missed() -> None:
    slow = [kept("sppo-tracker", (0, 0, 0.4), (30, 600, 0.6), (60, 1200, 0.6), seed=s) for s in (1, 2)]
    fast = [kept("sppo", (0, 0, 0.4), (30, 600, 0.6), (60, 1200, 0.6), seed=s) for s in (1, 2)]
    (told,) = verdicts(rows_of(TINY, {"sppo": fast, "sppo-tracker": slow}, "tokens"))
    assert told.startswith("sppo-tracker: 0 % [0, 0] fewer tokens") and "missed" in told


def test_the_page_has_every_axis(results: Path) -> None:
    for rate in RATES:
        for arm in TINY.arms:
            keep(kept(arm, (0, 0, 0.4), (30, 400, 0.6), (60, 800, 0.8), seed=SWEEP_SEED, rate=rate))
    keep(kept("sppo", (0, 0, 0.4), (30, 400, 0.6), (60, 800, 0.8), rate=RATES[0]))
    page = Path(single_sample.report("tiny")).read_text()
    for part in ("## At equal tokens", "## At equal prompts", "## Seconds of a token", "## Learning rates"):
        assert part in page
    assert "| **sppo** | 1 | 0.00025 | 0.800 | 0.600 | 1 of 1 |" in page
    assert (results / "paper" / "single-sample" / "tiny" / "accuracy-tokens.png").stat().st_size > 10_000
    rows = json.loads((results / "paper/single-sample/tiny/report.json").read_text())["rows"]
    assert [row["axis"] for row in rows] == ["tokens", "prompts"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores")
def test_a_role_is_kept_on_its_core(tmp_path: Path) -> None:
    """Real processes: the critic on the second core, with its threads, and the engine on the
    first.
    """
    first, second = sorted(os.sched_getaffinity(0))[:2]
    threads = "from threading import Thread; import time; Thread(target=time.sleep, args=(30,)).start()"
    processes = [subprocess.Popen([sys.executable, "-c", threads]) for _ in range(2)]
    names = ("critic-0", "rollout-0")
    actors = [{"name": name, "pid": one.pid} for name, one in zip(names, processes, strict=True)]
    (tmp_path / "status.json").write_text(json.dumps({"phase": "training", "actors": actors}))
    try:
        with kept_runs.pinned(tmp_path, {"critic": 1, "": 0}):
            deadline = time.monotonic() + 20
            while [_cores(one.pid) for one in processes] != [{second}, {first}]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        for one in processes:
            one.kill()
            one.wait()


def _cores(pid: int) -> set[int]:
    """The cores that the threads of a process may use."""
    threads = psutil.Process(pid).threads()
    cores = [os.sched_getaffinity(thread.id) for thread in threads]
    return set().union(*cores) if len(cores) > 1 else set()


def test_the_overview_inverts_the_savings_of_a_report() -> None:
    way = {"target": 0.5, "reached": 2, "cost": {"mean": 50.0, "low": 40.0, "high": 75.0, "censored": 0}}
    saving = {"ratio": 2.0, "low": 1.25, "high": None, "bound": "at least"}
    arm = {"arm": "ppo", "ways": [way | {"saving": saving}]}
    cost, low, high, bound = relative_cost(arm, 0.5) or pytest.fail("no cost")
    assert (cost, high, bound) == (0.5, 0.8, "at most") and math.isnan(low)
    baseline = {"arm": "sppo", "ways": [way | {"saving": saving | {"ratio": None}}]}
    assert relative_cost(baseline, 0.5) == (1.0, 0.8, 1.5, "exact")
    assert relative_cost(baseline | {"arm": "spo"}, 0.5) is None


def test_the_overview_has_the_committed_studies() -> None:
    assert rows_by_axis("quickstart").keys() >= {"tokens"} and rows_by_axis("no-such-study") == {}
    assert draw(["quickstart"]).startswith(b"\x89PNG")
