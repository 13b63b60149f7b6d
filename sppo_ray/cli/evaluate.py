"""`sppo-ray eval`: evaluate a checkpoint; writes a table, a JSON report and the responses.

    settings --> model, data --> does it fit? --> engines on the checkpoint's own weights --> graded
        --> report --> OUT

OUT is written at the end, atomically. Errors that a user can fix are raised before an engine
starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sppo_ray.config import RewardSettings, UserReward
from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.config.loading import dump_config
from sppo_ray.data.encoder import PromptEncoder, longest
from sppo_ray.data.evaluation_sets import EvaluationSet, load_evaluation_sets
from sppo_ray.display.evaluation_progress import EvaluationProgress, make_evaluation_progress
from sppo_ray.display.evaluation_table import evaluation_table
from sppo_ray.errors import UserError
from sppo_ray.evaluation.sampler import Batch, GradedTrajectory, bootstrap_seed
from sppo_ray.evaluation.scores import EvalReport, evaluate
from sppo_ray.formatting import format_seconds
from sppo_ray.launch.run_inputs import try_environment
from sppo_ray.launch.sampling import Checkpoint, open_checkpoint, sample
from sppo_ray.launch.shutdown import EndSignals
from sppo_ray.models.bundled import resolve_model
from sppo_ray.rewards.pool.pool import VerifierPool
from sppo_ray.rundir.environment import environment
from sppo_ray.rundir.jsonlines import finite_json
from sppo_ray.rundir.responses import response_row, write_responses

DEFAULT_RESPONSE_TOKENS = 2048
# responses; when the verifier could score none of them, it does not fit the data
UNDECIDED_LIMIT = 32
REPORT, RESPONSES, SETTINGS = "report.json", "responses.parquet", "settings.yaml"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is known before a cluster starts."""

    config: EvaluationConfig  # with max_response_tokens and max_prompt_tokens filled in
    checkpoint: Checkpoint
    sets: tuple[EvaluationSet, ...]

    @property
    def num_responses(self) -> int:
        return sum(len(one.prompts) * one.samples_per_prompt for one in self.sets)


def run_evaluation(config: EvaluationConfig, out: Path, signals: EndSignals | None = None) -> int:
    """Evaluate, print the table, and write `out`. Returns the exit code: 0, or 143 when terminated.

    `signals` interrupts an evaluation in another thread than the main one. Raises UserError for
    errors that the user can fix, if possible before an engine starts, and WorkerFailure when no
    worker is left; nothing is written then.
    """
    _require_new(out)
    for _, leaf in config.reward.leaves:
        if isinstance(leaf, UserReward):
            asyncio.run(_require_verifier(config.reward.model_copy(update={"function": leaf})))
    progress = make_evaluation_progress(sys.stderr)
    try:
        plan = make_plan(config, progress.message)
        _announce(plan, progress)
        started = time.perf_counter()
        graded = _sample(plan, progress, signals)
    finally:
        progress.close()
    if graded is None:
        print("terminated: nothing was written", file=sys.stderr)
        return 128 + signal.SIGTERM
    report = make_report(plan, graded, time.perf_counter() - started)
    write_output(out, plan, graded, report)
    print(evaluation_table(report))
    print(
        f"\n95 % intervals by bootstrap over prompts; {format_seconds(report.seconds)}; report and responses "
        f"in {out}"
    )
    return 0


def make_plan(config: EvaluationConfig, message: Any) -> Plan:
    """Find or make the model, read the data, and check that prompts and responses fit the context.
    Raises UserError.
    """
    checkpoint = open_checkpoint(resolve_model(config.model, message))
    context = _context_of(checkpoint.path)
    given = (
        config.rollout.max_response_tokens
        if "max_response_tokens" in config.rollout.model_fields_set
        else None
    )
    room = None if context is None else context - (given or 1)
    if room is not None and room < 1:
        raise UserError(
            f"--max-response-tokens {given} leaves no room for a prompt in the model's context of {context} "
            "tokens: lower it"
        )
    limit = min(bound for bound in (config.data.max_prompt_tokens, room, sys.maxsize) if bound is not None)
    begun = try_environment(config.environment)
    encoder = PromptEncoder(
        checkpoint.tokenizer, checkpoint.tokenizer, config.data, tools=begun.tools, reset=begun.reset
    )
    sets = load_evaluation_sets(config, encoder, limit)
    prompt_tokens = max(longest(prompt) for one in sets for prompt in one.prompts)
    response_tokens = given or min(DEFAULT_RESPONSE_TOKENS, (context or sys.maxsize) - prompt_tokens)
    fitted = config.model_copy(
        update={
            "data": config.data.model_copy(update={"max_prompt_tokens": prompt_tokens}),
            "rollout": config.rollout.model_copy(update={"max_response_tokens": response_tokens}),
        }
    )
    return Plan(fitted, checkpoint, tuple(sets))


def make_report(plan: Plan, graded: Sequence[GradedTrajectory], seconds: float) -> EvalReport:
    """Compute the report. A checkpoint has no step or version: both are 0."""
    return evaluate(
        [one.response() for one in graded],
        k=min(one.samples_per_prompt for one in plan.sets),
        step=0,
        policy_version=0,
        pass_sizes=plan.config.eval.pass_k,
        best_reward=plan.config.reward_range[1],
        seconds=seconds,
        seed=bootstrap_seed(plan.config.seed),
    )


def write_output(out: Path, plan: Plan, graded: Sequence[GradedTrajectory], report: EvalReport) -> None:
    """Write report.json, responses.parquet and settings.yaml into a new directory `out`,
    atomically.
    """
    work = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        write_responses(
            work / RESPONSES,
            (response_row(g.prompt, g.sample, g.trajectory, g.text, g.verdict) for g in graded),
        )
        content = json.dumps(_report_json(plan, report), indent=2, ensure_ascii=False, allow_nan=False)
        (work / REPORT).write_text(content + "\n", encoding="utf-8")
        (work / SETTINGS).write_text(dump_config(plan.config), encoding="utf-8")
        work.chmod(0o755)  # mkdtemp's own mode hides it from other users
        os.replace(work, out)
    except OSError as error:
        print(evaluation_table(report))  # after hours of sampling, keep at least the report
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}): free the disk or choose another --out"
        ) from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


async def _require_verifier(settings: RewardSettings) -> None:
    """Refuse a reward function that does not import, before anything else starts."""
    pool = VerifierPool(settings)
    try:
        await pool.ready()
    finally:
        await pool.close()


def _sample(
    plan: Plan, progress: EvaluationProgress, signals: EndSignals | None
) -> list[GradedTrajectory] | None:
    """Return all responses in the order of prompts and samples; None after SIGTERM."""

    def follow(graded: Sequence[GradedTrajectory]) -> None:
        newest = graded[-1]
        progress.advance(newest.verdict.reward, newest.trajectory.num_actions)
        require_decisions(graded)

    batch = Batch(
        [prompt for one in plan.sets for prompt in one.prompts],
        [one.samples_per_prompt for one in plan.sets for _ in one.prompts],
        follow,
    )
    sampled = sample(
        plan.checkpoint,
        [batch],
        plan.config,
        report=progress.message,
        on_start=lambda: progress.start(plan.num_responses),
        signals=signals,
    )
    return None if sampled is None else sampled[0]


def require_decisions(graded: Sequence[GradedTrajectory]) -> None:
    """Raise UserError when the reward function could score none of the first responses."""
    if len(graded) == UNDECIDED_LIMIT and all(one.verdict.is_error for one in graded):
        one = graded[0]
        raise UserError(
            f"the reward function could judge none of the first {UNDECIDED_LIMIT} responses (prompt "
            f"{one.prompt.id}: "
            f"{one.verdict.reason}): it does not fit this data, choose another with --reward"
        )


def _announce(plan: Plan, progress: EvaluationProgress) -> None:
    config = plan.config
    for one in plan.sets:
        for note in one.notes:
            progress.message(f"note: {note}")
        progress.message(f"{one.name}: {len(one.prompts)} prompts x {one.samples_per_prompt} samples")
    progress.message(
        f"{config.model}: temperature {config.temperature:g}, at most {config.rollout.max_response_tokens} "
        "tokens a response, "
        f"reward {config.reward.function.type}, seed {config.seed}"
    )


def _report_json(plan: Plan, report: EvalReport) -> dict[str, Any]:
    tree = asdict(report)
    for name in ("step", "policy_version", "critic", "critic_bins"):
        tree.pop(name)  # of a training run
    sets = [
        {
            "name": one.name,
            "prompts": len(one.prompts),
            "samples_per_prompt": one.samples_per_prompt,
            "notes": list(one.notes),
        }
        for one in plan.sets
    ]
    sampling = {
        "temperature": plan.config.temperature,
        "max_response_tokens": plan.config.rollout.max_response_tokens,
        "seed": plan.config.seed,
        "reward": plan.config.reward.function.model_dump(mode="json"),
    }
    return finite_json(
        {"model": plan.config.model, **sampling, "sets": sets, **tree, "environment": environment()}
    )


def _context_of(model_path: Path) -> int | None:
    """Return the model's context in tokens; None when the config does not say, or scales positions
    (vLLM knows by how much).
    """
    config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    stretched = rope.get("rope_type", rope.get("type", "default")) != "default"
    return None if stretched else config.get("max_position_embeddings")


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists already and is not overwritten: choose another, or remove it")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out {out}: {parent} cannot be written: choose another")
