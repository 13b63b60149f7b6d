"""The report of a comparison from run directories whose numbers a person can check."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sppo_ray.compare import Report, report_from
from sppo_ray.compare.comparison import proceed
from sppo_ray.compare.markdown import to_markdown
from sppo_ray.compare.plan import Job, Plan, make_plan, read_plan, write_plan
from sppo_ray.compare.report import default_targets, make_report
from sppo_ray.compare.reuse import take_over
from sppo_ray.compare.runner import require_same_code, run_path
from sppo_ray.compare.runs import read_run
from sppo_ray.errors import UserError
from sppo_ray.rundir.environment import environment
from tests.unit.compare.fake_runs import write_run

MIB = 2**20
FAST = [(0.0, 0.2), (10.0, 0.6), (20.0, 0.8), (40.0, 0.8)]
SLOW = [(0.0, 0.2), (20.0, 0.4), (30.0, 0.6), (40.0, 0.6)]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return write_plan(
        make_plan("quickstart", ["sppo", "grpo"], [1, 2], 40.0, targets=[0.5, 0.7], baseline="grpo"), tmp_path
    )


@pytest.fixture
def finished(plan: Plan, tmp_path: Path) -> Path:
    """sppo is fast twice; grpo is slow twice and draws twice the tokens a second."""
    for seed in plan.seeds:
        memory = {
            "learner-0": 100 * MIB,
            "critic-0": 50 * MIB,
            "rollout-0": 200 * MIB,
            "rollout-1": 200 * MIB,
        }
        write_run(
            tmp_path,
            Job("sppo", seed),
            FAST,
            peak_memory=memory,
            stages={"update": 4.0, "step": 11.0, "evaluate": 3.0},
        )
        memory = {"learner-0": 100 * MIB, "rollout-0": 300 * MIB}
        stages = {"update": 1.0, "generate-wait": 6.0}
        write_run(tmp_path, Job("grpo", seed), SLOW, tokens_per_second=200, peak_memory=memory, stages=stages)
    return tmp_path


def figures(out: Path, **changes: object) -> Report:
    """The report without its files: drawing takes most of the time."""
    return make_report(replace(read_plan(out), **changes), out)  # type: ignore[arg-type]


def test_accuracies_and_what_was_spent(finished: Path) -> None:
    report = figures(finished)
    sppo, grpo = report.arm("sppo"), report.arm("grpo")
    assert (sppo.accuracy.mean, sppo.accuracy.sd, sppo.best_accuracy.mean) == (0.8, 0.0, 0.8)
    # Trapezoids: 10 s at .4, 10 s at .7, 20 s at .8 = 4 + 7 + 16 = 27 over 40 s.
    assert sppo.area.mean == pytest.approx(27 / 40)
    assert (grpo.accuracy.mean, grpo.tokens.mean, grpo.samples.mean) == (0.6, 8000, 400)
    assert report.base_accuracy == pytest.approx(0.2)
    assert report.accuracy_half_width == pytest.approx(0.05)
    assert report.is_complete and not report.failed


def test_way_to_a_target(finished: Path) -> None:
    report = figures(finished)
    half, high = report.arm("sppo").targets
    # From .2 at 0 s to .6 at 10 s: .5 at 7.5 s, 75 samples, 750 tokens. From .6 to .8 in the next
    # 10 s: .7 at 15 s.
    assert (half.reached, half.runs, half.seconds.mean, half.samples.mean, half.tokens.mean) == (
        2,
        2,
        7.5,
        75.0,
        750.0,
    )
    assert high.seconds.mean == pytest.approx(15.0)
    slow, never = report.arm("grpo").targets
    # From .4 at 20 s to .6 at 30 s: .5 at 25 s, with 200 tokens a second 5,000.
    assert (slow.seconds.mean, slow.tokens.mean) == (pytest.approx(25.0), pytest.approx(5000.0))
    # Never at .7: all that was spent within the budget.
    assert (never.reached, never.seconds.mean, never.seconds.censored, never.tokens.mean) == (
        0,
        40.0,
        2,
        8000.0,
    )


def test_speed_against_the_baseline(finished: Path) -> None:
    half, high = figures(finished).arm("sppo").targets
    assert half.speed.ratio == pytest.approx(25 / 7.5)
    assert half.token_saving.ratio == pytest.approx(5000 / 750)
    assert half.speed.bound == "exact"
    # The baseline never got there: 40 s is the least it needs.
    assert (high.speed.ratio, high.speed.bound) == (pytest.approx(40 / 15), "at least")
    against_sppo = figures(finished, baseline="sppo").arm("grpo").targets[1].speed
    assert (against_sppo.ratio, against_sppo.bound) == (pytest.approx(15 / 40), "at most")


def test_memory_by_role_and_time_by_stage(finished: Path) -> None:
    sppo = figures(finished).arm("sppo")
    assert sppo.peak_memory == {"learner": 100 * MIB, "critic": 50 * MIB, "rollout": 400 * MIB}
    # 3 steps of 4 s; evaluations are not on the clock, and step is no stage
    assert sppo.stages == {"update": 12.0}


def test_targets_by_the_rule() -> None:
    # Half and four fifths of the way from .2 to the best, .8.
    assert default_targets(0.2, [0.6, 0.8]) == (0.5, 0.68)
    assert default_targets(0.2, [0.22, 0.1]) == ()
    assert default_targets(math.nan, [math.nan]) == ()


def test_the_rule_applies_when_no_targets_are_given(finished: Path) -> None:
    report = figures(finished, targets=())
    assert report.targets == (0.5, 0.68) and not report.targets_given


def test_a_step_that_ends_after_the_budget_is_read_off_at_the_budget(plan: Plan, tmp_path: Path) -> None:
    write_run(tmp_path, Job("sppo", 1), [(0.0, 0.2), (30.0, 0.4), (50.0, 0.6)])
    run = figures(tmp_path).arm("sppo").runs[0]
    # Half way between 30 s and 50 s.
    assert (run.accuracy, run.last_accuracy, run.seconds) == (pytest.approx(0.5), 0.6, 50.0)


def test_failed_and_missing_runs_are_reported(plan: Plan, tmp_path: Path) -> None:
    write_run(tmp_path, Job("sppo", 1), FAST)
    write_run(tmp_path, Job("sppo", 2), FAST[:2], status="stopped")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "grpo-seed1.log").write_text("starting\nerror: out of | memory\n")
    rows = [
        {"run": "sppo-seed1", "exit": 0},
        {"run": "sppo-seed2", "exit": 143},
        {"run": "grpo-seed1", "exit": 3},
    ]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = report_from(tmp_path)
    assert [(arm, run.seed, run.reason) for arm, run in report.failed] == [
        ("sppo", 2, "stopped before the budget was spent"),
        ("grpo", 1, "exit 3: out of | memory"),
    ]
    text = (tmp_path / "report.md").read_text()
    assert "- grpo, seed 1: exit 3: out of \\| memory" in text
    assert "**Not run yet:** grpo seed 2." in text
    assert "| **sppo** | 1 of 2 | 0.80 |" in text
    assert "| **grpo** | 0 of 2 | - |" in text
    assert not report.is_complete


def test_a_report_of_nothing(plan: Plan, tmp_path: Path) -> None:
    report_from(tmp_path)
    assert (
        "**Not run yet:** sppo seed 1, sppo seed 2, grpo seed 1, grpo seed 2."
        in (tmp_path / "report.md").read_text()
    )
    assert not list(tmp_path.glob("*.png"))


def test_the_files_of_a_report(finished: Path) -> None:
    report_from(finished)
    plots = {path.name: path.read_bytes() for path in finished.glob("*.png")}
    assert plots.keys() == {"accuracy-time.png", "accuracy-tokens.png", "memory.png", "stages.png"}
    assert all(image.startswith(b"\x89PNG") and len(image) > 10_000 for image in plots.values())
    text = (finished / "report.md").read_text()
    assert (
        "| **sppo** | 2 of 2 | 7.5 [7.5, 7.5] | 750 [750, 750] | 75 [75, 75] | 3.33 [3.33, 3.33] | 6.67 "
        "[6.67, 6.67] |" in text
    )
    assert "| **grpo** | 0 of 2 | > 40 [40, 40] | > 8,000 [8,000, 8,000] | > 400 [400, 400] | 1 | 1 |" in text
    assert "≥ 2.67 [2.67, 2.67]" in text
    assert "| **sppo** | 400 | 100 | 50 | 550 |" in text  # rollout, learner, critic, all
    assert "`data.samples_per_prompt=8`" in text
    assert all(f"]({name})" in text for name in plots)
    content = json.loads((finished / "report.json").read_text())
    assert content["arms"][0]["targets"][0]["speed"]["ratio"] == pytest.approx(25 / 7.5)
    assert content["arms"][1]["targets"][0]["speed"]["ratio"] is None  # the baseline against itself
    assert content["commits"] == ["0123456789ab"]


def test_runs_of_more_than_one_commit_are_said(finished: Path) -> None:
    path = finished / "runs" / "grpo-seed2" / "environment.json"
    path.write_text(path.read_text().replace('"modified": false', '"modified": true'))
    report = figures(finished)
    assert report.commits == ("0123456789ab", "0123456789ab-modified")
    assert "more than one state of the code" in to_markdown(report, [])


def test_more_than_eight_arms_are_drawn(plan: Plan, tmp_path: Path) -> None:
    definitions = [f"arm{number}:sppo,algorithm.clip_low=0.{number}" for number in range(1, 10)]
    many = write_plan(
        make_plan("quickstart", ["sppo", "grpo", *definitions], [1], 40.0, baseline="grpo"), tmp_path
    )
    for arm in many.arms:
        write_run(tmp_path, Job(arm.name, 1), FAST)
    assert len(report_from(tmp_path).arms) == 11
    assert (tmp_path / "accuracy-time.png").exists()


def test_refusals(finished: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match="--baseline ppo: no such arm"):
        report_from(finished, baseline="ppo")
    with pytest.raises(UserError, match="holds no comparison"):
        report_from(tmp_path_factory.mktemp("empty"))
    (finished / "runs" / "sppo-seed1" / "summary.json").write_text("{")
    with pytest.raises(UserError, match="summary.json: not JSON"):
        report_from(finished)


def test_a_finished_run_that_lost_its_evaluations(finished: Path, plan: Plan) -> None:
    for path in (finished / "runs" / "sppo-seed1" / "evaluations").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="the evaluation before training is missing, and every curve"):
        make_report(plan, finished)


@pytest.mark.parametrize("accuracies", [(math.nan, 0.4, 0.6), (math.nan, math.nan, math.nan)])
def test_a_run_whose_first_evaluation_could_not_be_graded(
    finished: Path, plan: Plan, accuracies: tuple[float, ...]
) -> None:
    job = Job("sppo", 1)
    shutil.rmtree(finished / "runs" / job.name)
    write_run(finished, job, list(zip((0.0, 50.0, 100.0), accuracies, strict=True)))
    with pytest.raises(
        UserError, match="sppo-seed1: the evaluation before training has no response that the verifier could"
    ):
        make_report(plan, finished)


def test_a_damaged_plan(finished: Path) -> None:
    (finished / "compare.json").write_text('{"recipe": "quickstart", "arms": []}')
    with pytest.raises(UserError, match=r"compare.json: not a comparison's plan"):
        proceed(finished)


def test_continuing_needs_as_many_cores(finished: Path, plan: Plan) -> None:
    path = finished / "compare.json"
    path.write_text(
        path.read_text().replace(f'"cores_per_run": {plan.cores_per_run}', '"cores_per_run": 999')
    )
    with pytest.raises(UserError, match="with cores_per_run 999"):
        proceed(finished)


def test_a_finished_comparison_is_continued_by_its_report(finished: Path, plan: Plan) -> None:
    said: list[str] = []
    assert proceed(finished, say=said.append).plan == replace(plan)
    assert said == ["4 of 4 runs are finished already"]


def test_same_runs_of_another_comparison_are_taken_over(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out, third = tmp_path_factory.mktemp("second"), tmp_path_factory.mktemp("third")
    # its grpo is another arm of the same name
    arms = ["sppo", "rloo", "grpo:sppo,algorithm.clip_low=0.1"]
    mine = write_plan(make_plan("quickstart", arms, [2, 3], 40.0), out)
    assert take_over(mine, out, finished, mix_commits=True) == ["sppo-seed2"]
    assert read_run(out, Job("sppo", 2), 40.0) == read_run(finished, Job("sppo", 2), 40.0)
    assert take_over(mine, out, finished, mix_commits=True) == []  # what is there stays

    longer = write_plan(make_plan("quickstart", ["sppo"], [1], 50.0), third)
    assert take_over(longer, third, finished, mix_commits=True) == []


def test_finished_runs_of_another_commit_are_only_mixed_when_asked(
    finished: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> None:
    further = replace(plan, seeds=(*plan.seeds, 99))
    with pytest.raises(UserError, match=r"finished runs of another commit \(4 of "):
        require_same_code(further, finished)
    require_same_code(plan, finished)  # nothing is run, and the report names the commits
    out = tmp_path_factory.mktemp("second")
    mine = write_plan(make_plan("quickstart", ["sppo"], [2], 40.0), out)
    assert take_over(mine, out, finished) == []
    for job in plan.jobs:
        (run_path(finished, job) / "environment.json").write_text(json.dumps(environment()))
    require_same_code(further, finished)
    assert take_over(mine, out, finished) == ["sppo-seed2"]
