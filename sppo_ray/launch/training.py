"""A training run from its config to its summary; the exit codes of `sppo-ray train`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.config_loading import dump_config
from sppo_ray.errors import UserError
from sppo_ray.launch.cluster import ray_session
from sppo_ray.launch.job import write_job
from sppo_ray.launch.materials import Materials, gather_materials
from sppo_ray.launch.workers import peak_memory, training_workers
from sppo_ray.resources import bundles_of, require_feasible, resolve_device
from sppo_ray.trainer.checkpoint import TrainerState, differing_settings, find_checkpoint, resumable_settings
from sppo_ray.trainer.control import Inbox
from sppo_ray.trainer.controller import Controller
from sppo_ray.trainer.heartbeat import heartbeat
from sppo_ray.trainer.interfaces import WorkerFailure
from sppo_ray.trainer.loop import Trainer, Workers
from sppo_ray.trainer.progress import make_progress
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.rundir import RunDir, Summary

EXIT_FINISHED, EXIT_TERMINATED = 0, 143
STACK_CHARACTERS = 20_000


def train(config: RunConfig, run_path: Path, *, resume: bool = False) -> int:
    """Run (or continue) a training run in `run_path` and return the exit code: 0 finished, interrupted or stopped by a command,
    143 terminated.

    Raises UserError for what the user can mend and WorkerFailure when a worker is lost for good; both leave the run
    directory resumable.
    """
    run_dir = RunDir.create(run_path.resolve(), resume=resume)
    recorder = None
    try:
        write_job(run_dir, config)
        Inbox(run_dir.path).refuse_all("the run was not running when this was asked of it")
        skipped: list[str] = []
        start = _starting_point(config, run_dir, skipped.append)
        progress = make_progress(config.logging.progress, config.name)
        recorder = Recorder(run_dir, config, progress)
        recorder.phase("preparing", last_error=None)
        run_dir.write_config(dump_config(config))
        run_dir.write_environment()
        for text in skipped:
            recorder.event("checkpoint-skipped", text, show=True)
        with heartbeat(recorder.beat):
            materials = gather_materials(config, recorder.message)
            with ray_session(config) as nodes:
                require_feasible(config, nodes)
                return asyncio.run(_train(config, run_dir, recorder, materials, start, resolve_device(config, nodes)))
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            if recorder is not None:
                recorder.event("failed", f"{type(error).__name__}: {error}")
                recorder.end("failed", last_error=_described(error))
        raise
    finally:
        with contextlib.suppress(OSError):
            if recorder is not None:
                recorder.close()
        run_dir.close()


def _described(error: BaseException) -> dict[str, Any]:
    """What status.json says of the error that ended the run."""
    stack = "".join(traceback.format_exception(error))
    return {
        "actor": error.worker if isinstance(error, WorkerFailure) else None,
        "message": f"{type(error).__name__}: {error}",
        "stack": stack[-STACK_CHARACTERS:],  # its end says most
    }


StartingPoint = tuple[Path, TrainerState] | None  # a checkpoint to go on from, or None for a new run


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


async def _train(
    config: RunConfig, run_dir: RunDir, recorder: Recorder, materials: Materials, start: StartingPoint, device: str
) -> int:
    recorder.phase("starting actors")
    recorder.message(
        f"starting {len(bundles_of(config))} actors on {device}: {', '.join(bundle.role for bundle in bundles_of(config))}"
    )
    started = time.perf_counter()
    async with training_workers(config, materials, recorder, device) as workers:
        recorder.event("started", f"all actors up after {time.perf_counter() - started:.1f} s", show=True)
        state = await _restore(start, workers, recorder)
        trainer = Trainer(
            config,
            workers,
            materials.prompts,
            recorder,
            state=state,
            checkpoints=run_dir.checkpoints,
            settings=resumable_settings(config),
        )
        recorder.begin(state)
        controller = Controller(Inbox(run_dir.path), gate=trainer.gate, fleet=workers.fleet, recorder=recorder)
        with _signals(trainer) as received:
            async with controller.running():
                state = await trainer.run()
            recorder.phase("finishing", state)
            memory = await peak_memory(workers)  # before the export, which needs more than training does
            if config.checkpoint.export and not trainer.stopped_early:
                await workers.learner.export(run_dir.export / "policy")
                if workers.critic is not None:
                    await workers.critic.export(run_dir.export / "critic")
    _conclude(config, run_dir, recorder, state, memory, stopped=trainer.stopped_early)
    return EXIT_TERMINATED if signal.SIGTERM in received else EXIT_FINISHED


async def _restore(start: StartingPoint, workers: Workers, recorder: Recorder) -> TrainerState:
    """Load the checkpoint into learner and critic, and return the state to go on from."""
    if start is None:
        return TrainerState.initial()
    path, state = start
    await workers.learner.load(path / "learner")
    if workers.critic is not None:
        await workers.critic.load(path / "critic")
        workers.critic.restore_version(state.critic_version)
    recorder.event("restored", f"from {path.name}", show=True)
    return state.restarted()


@contextlib.contextmanager
def _signals(trainer: Trainer) -> Iterator[list[signal.Signals]]:
    """SIGINT and SIGTERM end the run after the step under way, with a checkpoint; a second one ends it at once."""
    received: list[signal.Signals] = []
    loop = asyncio.get_running_loop()

    def handle(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        trainer.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle, number)
    try:
        yield received
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _conclude(
    config: RunConfig, run_dir: RunDir, recorder: Recorder, state: TrainerState, memory: Mapping[str, int], *, stopped: bool
) -> None:
    """summary.json, the learning curve as PNG and in the terminal, the reliability plot, the exported critic's card."""
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
            peak_memory=memory,
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
