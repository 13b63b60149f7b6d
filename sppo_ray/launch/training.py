"""A training run from its config to its summary; the exit codes of `sppo-ray train`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.config_loading import dump_config
from sppo_ray.errors import UserError
from sppo_ray.launch.cluster import ray_session
from sppo_ray.launch.crew import crew_of
from sppo_ray.launch.incarnations import Ended, Incarnations, StartingPoint
from sppo_ray.launch.job import job_start, write_job
from sppo_ray.launch.materials import Materials, gather_materials
from sppo_ray.launch.signals import EndSignals, Forced
from sppo_ray.redaction import redact
from sppo_ray.resources import bundles_of, require_feasible, resolve_device
from sppo_ray.trainer.checkpoint import TrainerState, differing_settings, find_checkpoint, resumable_settings
from sppo_ray.trainer.control import Inbox
from sppo_ray.trainer.controller import Controller
from sppo_ray.trainer.gate import Gate
from sppo_ray.trainer.heartbeat import heartbeat
from sppo_ray.trainer.interfaces import WorkerFailure
from sppo_ray.trainer.loop import is_over
from sppo_ray.trainer.progress import make_progress
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.rundir import RunDir, Summary

EXIT_FINISHED, EXIT_TERMINATED = 0, 143
STACK_CHARACTERS = 20_000


def train(config: RunConfig, run_path: Path, *, resume: bool = False) -> int:
    """Run (or continue) a training run in `run_path` and return the exit code: 0 finished, interrupted or stopped by a command,
    143 terminated.

    Raises UserError for what the user can mend, WorkerFailure when the restarts after losses of workers are used up, and Forced
    when it was told to end at once; all leave the run directory resumable.
    """
    with EndSignals().taken() as signals:
        run_dir = RunDir.create(run_path.resolve(), resume=resume)
        try:
            return _in_run_dir(config, run_dir, signals)
        except SystemExit as ended:
            if isinstance(ended, Forced):
                raise
            raise Forced(signal.SIGTERM) from ended  # Ray takes the signal for itself while it is initialised
        finally:
            run_dir.close()


def _in_run_dir(config: RunConfig, run_dir: RunDir, signals: EndSignals) -> int:
    recorder = None
    try:
        is_stopped = _is_stopped(run_dir)  # before job.json names this start
        write_job(run_dir, config)
        skipped: list[str] = []
        start = _starting_point(config, run_dir, skipped.append)
        progress = make_progress(config.logging.progress, config.name)
        if start is not None and _is_finished(config, run_dir, start[1]):
            progress.message(
                f"{run_dir.path} finished after step {start[1].step}: there is nothing left to do; raise --loop.steps to train on"
            )
            return EXIT_FINISHED
        recorder = Recorder(run_dir, config, progress)
        recorder.phase("preparing", last_error=None)
        run_dir.write_config(dump_config(config))
        run_dir.write_environment()
        for text in skipped:
            recorder.event("checkpoint-skipped", text, show=True)
        if is_stopped:
            recorder.event("control", "stop: was asked of this job before it was started again, and ends it", show=True)
            state = TrainerState.initial() if start is None else start[1].restarted()
            _conclude(config, run_dir, recorder, Ended(state, {}, stopped=True))
            return EXIT_FINISHED
        with heartbeat(recorder.beat, recorder.news):
            materials = gather_materials(config, recorder.message)
            with ray_session(config) as nodes:
                signals.take()
                require_feasible(config, nodes)
                device = resolve_device(config, nodes)
                return asyncio.run(_train(config, run_dir, recorder, materials, start, device, signals))
    except BaseException as error:
        if recorder is not None:
            _record_failure(recorder, error)
        raise
    finally:
        with contextlib.suppress(OSError):
            if recorder is not None:
                recorder.close()


def _is_stopped(run_dir: RunDir) -> bool:
    """Whether this very job was told to stop before it crashed and was started again: the order still stands.

    What was asked of an earlier job of the run is refused, for it was resumed since.
    """
    inbox, began = Inbox(run_dir.path), job_start(run_dir)
    is_stopped = began is not None and inbox.stop_since(began)
    for command in inbox.receive():
        obeyed = is_stopped and command.kind == "stop"
        why = "the run ends here" if obeyed else "the run was not running when this was asked of it"
        inbox.answer(command, "done" if obeyed else "refused", why)
    return is_stopped


def _record_failure(recorder: Recorder, error: BaseException) -> None:
    """As far as the disk takes it: a full one must not hide what went wrong."""
    was_asked = isinstance(error, SystemExit)
    with contextlib.suppress(OSError):
        recorder.event("forced" if was_asked else "failed", str(error) if was_asked else f"{type(error).__name__}: {error}")
    with contextlib.suppress(OSError):
        if was_asked:
            recorder.end("stopped")
        else:
            recorder.end("failed", last_error=_described(error))


def _described(error: BaseException) -> dict[str, Any]:
    """What status.json says of the error that ended the run."""
    stack = "".join(traceback.format_exception(error))
    return {
        "actor": error.worker if isinstance(error, WorkerFailure) else None,
        "message": redact(f"{type(error).__name__}: {error}"),
        "stack": redact(stack[-STACK_CHARACTERS:]),  # its end says most
    }


def _starting_point(config: RunConfig, run_dir: RunDir, on_skip: Callable[[str], None]) -> StartingPoint:
    """The newest whole checkpoint. Refuses to go on with settings that would make it another run, before anything is touched."""
    found = find_checkpoint(run_dir.checkpoints, on_skip)
    if found is not None:
        different = differing_settings(found[0], resumable_settings(config))
        if different:
            raise UserError(
                f"{found[0]} was written with other settings ({'; '.join(different)}): resume with the run's own "
                f"settings ({run_dir.config}), or start a new run"
            )
    return found


def _is_finished(config: RunConfig, run_dir: RunDir, state: TrainerState) -> bool:
    """Whether the run ended in good order after `state`, its export and summary written, and the settings ask for no more."""
    return is_over(config.loop, state) and run_dir.finished_after == state.step


async def _train(
    config: RunConfig,
    run_dir: RunDir,
    recorder: Recorder,
    materials: Materials,
    start: StartingPoint,
    device: str,
    signals: EndSignals,
) -> int:
    gate = Gate()
    roles = ", ".join(bundle.role for bundle in bundles_of(config))
    recorder.message(f"starting {len(bundles_of(config))} actors on {device}: {roles}")
    with signals.stopping(gate.stop):
        async with crew_of(config, materials, recorder, device) as crew:
            inbox = Inbox(run_dir.path)
            controller = Controller(inbox, gate=gate, fleet=crew.fleet, recorder=recorder, pending=crew.pending)
            incarnations = Incarnations(
                config,
                run_dir,
                recorder,
                materials.prompts,
                crew=crew,
                gate=gate,
                find=lambda on_skip: _starting_point(config, run_dir, on_skip),
            )
            async with controller.running():
                ended = await incarnations.run(start)
        _conclude(config, run_dir, recorder, ended)
    return EXIT_TERMINATED if signals.terminated else EXIT_FINISHED


def _conclude(config: RunConfig, run_dir: RunDir, recorder: Recorder, ended: Ended) -> None:
    """summary.json, the learning curve as PNG and in the terminal, the reliability plot, the exported critic's card."""
    state, stopped = ended.state, ended.stopped
    if stopped and not run_dir.has_results:  # nothing was begun that could be summed up, or lost
        recorder.end("stopped", state)
        recorder.message("stopped before the first step")
        return
    from sppo_ray.trainer.calibration_card import write_card_of_run
    from sppo_ray.trainer.plots import curve_text, learning_curve
    from sppo_ray.trainer.reliability_plot import reliability_of_run

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
        )
    )
    learning_curve(run_dir.path)
    reliability_of_run(run_dir.path)
    if config.checkpoint.export and not stopped and config.spec.critic == "prompt":
        versions = {"policy_version": state.policy_version, "critic_version": state.critic_version}
        write_card_of_run(run_dir.path, config, step=state.step, **versions)
    recorder.end("stopped" if stopped else "finished", state)  # last: who waits for the end finds everything
    recorder.message(curve_text(run_dir.path))
    recorder.message(f"{'stopped' if stopped else 'finished'} after step {state.step}; everything is in {run_dir.path}")
