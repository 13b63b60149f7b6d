"""Run a training from its config to its summary; defines the exit codes of `sppo-ray train`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from sppo_ray.config import RunConfig
from sppo_ray.config.loading import dump_config
from sppo_ray.data.encoder import ToolList
from sppo_ray.display.choice import make_progress
from sppo_ray.errors import UserError
from sppo_ray.launch.callbacks import Callbacks
from sppo_ray.launch.cluster import cluster_with_room, starts_cluster
from sppo_ray.launch.job import job_start, write_job
from sppo_ray.launch.recovery import Ended, RecoveryLoop, StartingPoint
from sppo_ray.launch.run_inputs import (
    RunInputs,
    check_reward_models,
    commits_of,
    gather_inputs,
    model_paths,
    pin_models,
    pin_reward_models,
    reads_files,
    try_rewards_at_once,
)
from sppo_ray.launch.shutdown import EndSignals, Forced
from sppo_ray.launch.worker_manager import run_workers
from sppo_ray.models.finite import require_finite_files
from sppo_ray.planning.advice import advice_of
from sppo_ray.planning.changes import require_memory
from sppo_ray.planning.models import models_of
from sppo_ray.planning.plan import live_cluster
from sppo_ray.planning.preflight import check_files, check_policy
from sppo_ray.planning.resources import Resources, bundles_of, require_local_cpus
from sppo_ray.planning.shapes import read_shape
from sppo_ray.protocols import WorkerFailure
from sppo_ray.redaction import redact
from sppo_ray.rundir.commands import Inbox
from sppo_ray.rundir.heartbeat import heartbeat
from sppo_ray.rundir.job import ContinuedRun, read_job, remember_models
from sppo_ray.rundir.layout import RunDir
from sppo_ray.rundir.metrics import read_metrics
from sppo_ray.rundir.summary import Summary
from sppo_ray.trainer.checkpoint import TrainerState, differing_settings, find_checkpoint, resumable_settings
from sppo_ray.trainer.controller import Controller
from sppo_ray.trainer.loop import is_over
from sppo_ray.trainer.pause import PauseGate
from sppo_ray.trainer.recorder import Recorder

EXIT_FINISHED, EXIT_TERMINATED = 0, 143
T = TypeVar("T")
STOPPING = "stopping after this step, with a checkpoint; a second Ctrl-C ends the run at once, without one"
ADVISED_STEPS = 5
"""A shorter run says little about what bounds a step."""
STACK_CHARACTERS = 20_000
CHECKED_BYTES = 1 << 30  # of a checkpoint that is read whole before Ray starts, about a second


def train(
    config: RunConfig,
    run_path: Path,
    *,
    resume: bool = False,
    continues: ContinuedRun | None = None,
    callbacks: Callbacks | None = None,
    signals: EndSignals | None = None,
) -> int:
    """Run (or continue) a training run in `run_path` and return the exit code: 0 finished,
    interrupted or stopped by a command, 143 terminated. `continues` is the run whose export the
    config's models are.

    Raises UserError for an error that the user can fix, WorkerFailure when the restarts are used
    up, and Forced on a second signal; all leave the run directory resumable.

    Args:
        callbacks: called after each step; None = none.
        signals: interrupts a run in another thread than the main one; None = only real signals do.
    """
    with (signals or EndSignals()).taken() as taken:
        run_dir = RunDir.create(run_path.resolve(), resume=resume)
        try:
            return _in_run_dir(config, run_dir, taken, continues, callbacks or Callbacks(()))
        except SystemExit as ended:
            if isinstance(ended, Forced):
                raise
            # Ray replaces the handler while it is initialised
            raise Forced(signal.SIGTERM) from ended
        finally:
            run_dir.close()


def _in_run_dir(
    config: RunConfig,
    run_dir: RunDir,
    signals: EndSignals,
    continues: ContinuedRun | None,
    callbacks: Callbacks,
) -> int:
    recorder = None
    try:
        is_stopped = _is_stopped(run_dir)  # must run before job.json names this start
        write_job(run_dir, config, continues)
        skipped: list[str] = []
        start = _starting_point(config, run_dir, skipped.append)
        progress = make_progress(config.logging.progress, config.name)
        if start is not None and _is_finished(config, run_dir, start[1]):
            progress.message(
                f"{run_dir.path} finished after step {start[1].step}: there is nothing left to do; raise "
                "--loop.steps to train on"
            )
            return EXIT_FINISHED
        recorder = Recorder(run_dir, config, progress)
        recorder.phase("preparing", last_error=None)
        run_dir.write_config(dump_config(config))
        run_dir.write_environment()
        for text in skipped:
            recorder.event("checkpoint-skipped", text, show=True)
        if is_stopped:
            recorder.event(
                "control", "stop: requested before this job was restarted; the run ends", show=True
            )
            state = TrainerState.initial() if start is None else start[1].restarted()
            _conclude(config, run_dir, recorder, Ended(state, {}, stopped=True))
            return EXIT_FINISHED
        with heartbeat(recorder.beat, recorder.stage_changed):
            # what can be told in milliseconds is told before Ray starts
            check_files(config)
            try_rewards_at_once(config)
            known = read_job(run_dir.path).models
            paths = model_paths(pin_models(config, known), recorder.message)
            check_policy(config, paths[0])
            found = check_reward_models(config.reward, recorder.message, config.environment, known)
            found[config.learner.model] = paths[0]
            if config.has_critic:
                found[config.critic.model] = paths[1]
            commits = commits_of(found)
            remember_models(run_dir, commits)
            for path in dict.fromkeys(paths):
                require_finite_files(path, CHECKED_BYTES)
            is_local = starts_cluster(config)  # as long as Ray has not started
            is_checked = is_local and config.logical_gpus() == 0
            if is_local:
                cpus = config.cluster.local_cpus or os.cpu_count() or 1
                require_local_cpus(config, cpus)
            if is_checked:
                _check_memory(config, paths, recorder, "cpu", [Resources(cpus, 0.0)], is_local=True)
            recorder.message("reading models and prompts" + (", starting Ray" if is_local else ""))
            # Inputs and Ray take seconds each, mostly on different cores. Mistakes in files are
            # told before Ray starts.
            loading = in_daemon_thread(lambda: gather_inputs(pin_models(config, commits), recorder.message))
            if reads_files(config.data):
                loading.result()

            def check(device: str, nodes: Sequence[Resources]) -> None:
                if not is_checked:
                    _check_memory(config, paths, recorder, device, nodes, is_local=is_local)

            with cluster_with_room(config, bundles_of(config), check, report=recorder.message) as device:
                inputs = loading.result()
                signals.take()
                config = config.model_copy(update={"reward": pin_reward_models(config.reward, commits)})
                hooks = {"device": device, "signals": signals, "callbacks": callbacks}
                return asyncio.run(_train(config, run_dir, recorder, inputs, start, **hooks))
    except BaseException as error:
        if recorder is not None:
            _record_failure(recorder, error)
        raise
    finally:
        with contextlib.suppress(OSError):
            if recorder is not None:
                recorder.close()


def in_daemon_thread(work: Callable[[], T]) -> Future[T]:
    """Begin `work` in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # boundary: `result` raises it
            future.set_exception(error)

    threading.Thread(target=run, name="inputs", daemon=True).start()
    return future


def _check_memory(
    config: RunConfig,
    paths: Sequence[Path],
    recorder: Recorder,
    device: str,
    nodes: Sequence[Resources],
    *,
    is_local: bool,
) -> None:
    """Refuse a run whose memory cannot suffice. Where memory or the shape of a model is not known,
    nothing is refused. `paths`: the checkpoints of policy and critic.
    """
    cluster = live_cluster(device, nodes, is_local=is_local)
    if cluster is None:
        return
    try:
        policy, critic = (read_shape(path / "config.json") for path in paths)
    except UserError as unknown:
        recorder.message(f"the run's memory is not checked: {unknown}")
        return
    for text in require_memory(config, cluster, models_of(config, policy, critic)):
        recorder.message(f"memory is tight: {text}")


def _is_stopped(run_dir: RunDir) -> bool:
    """Return whether a stop was requested before this job crashed and restarted. It is still valid.

    Commands to an earlier job of the run are refused, because the run was resumed since.
    """
    inbox, began = Inbox(run_dir.path), job_start(run_dir)
    is_stopped = began is not None and inbox.stop_since(began)
    for command in inbox.receive():
        obeyed = is_stopped and command.kind == "stop"
        why = "the run ends here" if obeyed else "the run was not running when the command arrived"
        inbox.answer(command, "done" if obeyed else "refused", why)
    return is_stopped


def _record_failure(recorder: Recorder, error: BaseException) -> None:
    """Record the error if the disk allows; a full disk must not hide the original error."""
    was_asked = isinstance(error, SystemExit)
    with contextlib.suppress(OSError):
        recorder.event(
            "forced" if was_asked else "failed",
            str(error) if was_asked else _message_of(error),
        )
    with contextlib.suppress(OSError):
        if was_asked:
            recorder.end("stopped")
        else:
            recorder.end("failed", last_error=_described(error))


def _described(error: BaseException) -> dict[str, Any]:
    """Return the row of status.json for the error that ended the run."""
    stack = "".join(traceback.format_exception(error))
    return {
        "actor": error.worker if isinstance(error, WorkerFailure) else None,
        "message": redact(_message_of(error)),
        "stack": redact(stack[-STACK_CHARACTERS:]),  # the end is the most informative part
    }


def _message_of(error: BaseException) -> str:
    """Return the error's text; only an unforeseen error needs the name of its class."""
    foreseen = isinstance(error, (UserError, WorkerFailure))
    return str(error) if foreseen else f"{type(error).__name__}: {error}"


def _starting_point(config: RunConfig, run_dir: RunDir, on_skip: Callable[[str], None]) -> StartingPoint:
    """Find the newest whole checkpoint. Refuses settings that would change the result, before
    anything is written.
    """
    found = find_checkpoint(run_dir.checkpoints, on_skip)
    if found is not None:
        different = differing_settings(found[0], resumable_settings(config))
        if different:
            raise UserError(
                f"{found[0]} was written with other settings ({'; '.join(different)}): resume with the run's "
                "own "
                f"settings ({run_dir.config}), or start a new run"
            )
    return found


def _is_finished(config: RunConfig, run_dir: RunDir, state: TrainerState) -> bool:
    """Whether the run is complete: it ended after `state`, export and summary are written, and the
    settings ask for no more steps.
    """
    return is_over(config.loop, state) and run_dir.finished_after == state.step


async def _train(
    config: RunConfig,
    run_dir: RunDir,
    recorder: Recorder,
    inputs: RunInputs,
    start: StartingPoint,
    *,
    device: str,
    signals: EndSignals,
    callbacks: Callbacks,
) -> int:
    gate = PauseGate()
    recorder.after_step = callbacks.of_run(recorder, stop=gate.stop)
    roles = [actor.role for bundle in bundles_of(config) for actor in bundle.actors]
    recorder.message(f"starting {len(roles)} actors on {device}: {', '.join(roles)}")

    def stop() -> None:
        recorder.event("control", STOPPING, show=True)
        gate.stop()

    with signals.stopping(stop):
        async with run_workers(config, inputs, recorder, device) as manager:
            inbox = Inbox(run_dir.path)
            controller = Controller(
                inbox, gate=gate, fleet=manager.fleet, recorder=recorder, pending=manager.pending
            )
            recovery = RecoveryLoop(
                config,
                run_dir,
                recorder,
                inputs.prompts,
                manager=manager,
                gate=gate,
                find=lambda on_skip: _starting_point(config, run_dir, on_skip),
            )
            async with controller.running():
                ended = await recovery.run(start)
        _conclude(config, run_dir, recorder, ended, inputs.tools)
    return EXIT_TERMINATED if signals.terminated else EXIT_FINISHED


def _conclude(
    config: RunConfig, run_dir: RunDir, recorder: Recorder, ended: Ended, tools: ToolList | None = None
) -> None:
    """Write summary.json, the learning curve (PNG and terminal), the reliability plot and the
    exported critic's card. `tools`: what the prompts say of an environment's tools.
    """
    state, stopped = ended.state, ended.stopped
    if stopped and not run_dir.has_results:  # no step was done, so there is nothing to summarise
        recorder.end("stopped", state)
        recorder.message("stopped before the first step")
        return
    from sppo_ray.display.plots import curve_text, learning_curve
    from sppo_ray.display.reliability_plot import reliability_of_run
    from sppo_ray.evaluation.critic_card import write_card_of_run

    advice = None
    # in other layouts no role can get a worker by itself
    if config.cluster.layout == "separate" and state.step >= ADVISED_STEPS:
        advice = advice_of(
            read_metrics(run_dir.path),
            learner_ranks=config.learner.ranks,
            critic_ranks=config.critic.ranks,
            is_overlapped=config.loop.max_staleness > 0,
        )
    run_dir.write_summary(
        Summary(
            name=config.name,
            status="stopped" if stopped else "finished",
            algorithm=config.algorithm.type,
            seed=config.seed,
            steps=state.step,
            seconds=round(state.seconds, 3),
            samples=state.samples,
            response_tokens=state.response_tokens,
            initial_accuracy=state.initial_accuracy,
            final_accuracy=state.final_accuracy,
            best_accuracy=state.best_accuracy,
            policy_version=state.policy_version,
            critic_version=state.critic_version,
            reward_errors=state.reward_errors,
            restarts=state.restarts,
            peak_memory=ended.memory,
            advice=None if advice is None else advice.text,
        )
    )
    learning_curve(run_dir.path)
    reliability_of_run(run_dir.path)
    if config.checkpoint.export and not stopped and config.spec.critic == "prompt":
        versions = {"policy_version": state.policy_version, "critic_version": state.critic_version}
        write_card_of_run(run_dir.path, config, step=state.step, **versions, tools=tools)
    # last, so that everything exists when the run counts as finished
    recorder.end("stopped" if stopped else "finished", state)
    recorder.message(curve_text(run_dir.path))
    if advice is not None:
        recorder.message(advice.text)
    if stopped:
        recorder.message(
            f"stopped after step {state.step}, with a checkpoint and without an export; to continue, add "
            f"--resume --run-dir {run_dir.path}"
        )
    else:
        recorder.message(f"finished after step {state.step}; everything is in {run_dir.path}")
