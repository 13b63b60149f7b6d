"""The composition root: from a config to a running trainer, and back to nothing. The only module that imports `actors`.

    data and models --> connect to Ray --> does it fit? --> placement group --> actors --> Trainer.run --> export --> nothing

What differs between a laptop and a cluster is decided here, from `config.device` and the live Ray resources.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_ray.config import ModelSettings, RunConfig
from sppo_ray.config_loading import dump_config
from sppo_ray.errors import UserError
from sppo_ray.resources import Bundle, Resources, bundles_of, require_feasible, resolve_device, serving_bundles_of
from sppo_ray.trainer.checkpoint import TrainerState, differing_settings, find_checkpoint, resumable_settings
from sppo_ray.trainer.evaluator import Evaluator
from sppo_ray.trainer.fleet import RolloutFleet
from sppo_ray.trainer.loop import Trainer, Workers
from sppo_ray.trainer.pipeline import SamplePipeline
from sppo_ray.trainer.progress import make_progress
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.rundir import RunDir, Summary
from sppo_ray.trainer.weight_sync import ProbeTolerance
from sppo_ray.types import Prompt, SamplingSettings

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup
    from transformers import PreTrainedTokenizerBase

    from sppo_ray.data.prompts import PromptStream

RAY_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
EXIT_FINISHED, EXIT_TERMINATED = 0, 143


@contextlib.contextmanager
def ray_session(config: RunConfig) -> Iterator[list[Resources]]:
    """Join the configured cluster, or start a local one that ends with the block. Yields each node's logical resources."""
    for key, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    address = config.cluster.address or os.environ.get("RAY_ADDRESS")  # the latter is set for a Ray job's entrypoint
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "sppo-ray"}
    if address:
        options["address"] = address
    else:
        options |= {"address": "local", "num_cpus": config.cluster.local_cpus or os.cpu_count(), "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
        raise UserError(
            f"cannot reach {where}: {error}. Is its head running, and is RAY_AUTH_MODE the same here and there?"
        ) from None
    try:
        live = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield [Resources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in live]
    finally:
        ray.shutdown()


async def place(config: RunConfig, bundles: Sequence[Bundle] | None = None) -> PlacementGroup:
    """Reserve a bundle for each actor (`bundles`: None = all of the run's).

    Raises UserError when the cluster is busy for longer than ready_timeout_s.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    bundles = bundles_of(config) if bundles is None else bundles
    group = placement_group([bundle.as_ray() for bundle in bundles], strategy="PACK")
    try:
        await asyncio.wait_for(_awaited(group.ready()), config.cluster.ready_timeout_s)
    except TimeoutError:
        free = ray.available_resources()
        remove_placement_group(group)
        raise UserError(
            f"waited {config.cluster.ready_timeout_s:.0f} s for {sum(b.cpus for b in bundles):g} CPUs and "
            f"{sum(b.gpus for b in bundles):g} GPUs, free are "
            f"{free.get('CPU', 0):g} and {free.get('GPU', 0):g}: another job holds the rest; stop it, add nodes, or "
            "raise cluster.ready_timeout_s"
        ) from None
    return group


async def _awaited(reference: Any) -> Any:
    return await reference


class Spawner:
    """Makes actors in their bundles."""

    def __init__(self, config: RunConfig, group: PlacementGroup, device: str, bundles: Sequence[Bundle] | None = None) -> None:
        self._config = config
        self._device = device
        self._group = group
        bundles = bundles_of(config) if bundles is None else bundles
        self._index = {bundle.role: (index, bundle) for index, bundle in enumerate(bundles)}

    def actor(self, actor_class: Any, role: str, *arguments: Any, env: dict[str, str], **keywords: Any) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        index, bundle = self._index[role]
        options = {
            "num_cpus": bundle.cpus,
            "num_gpus": bundle.gpus,
            "max_restarts": 0,  # healing is ours: a restarted actor must be synced before it serves
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index),
            "runtime_env": {"env_vars": env},
        }
        return actor_class.options(**options).remote(*arguments, **keywords)

    def rank_env(self, cpus: float) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": str(max(1, int(cpus))),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin at a barrier take the core from the engine beside them
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    async def rollout_worker(self, name: str, *, model_path: Path, stop_token_ids: tuple[int, ...]) -> Any:
        from actors.group import RayRolloutWorker, answer
        from actors.rollout import RolloutActor, rollout_env

        settings = self._config.rollout
        handle = self.actor(
            RolloutActor,
            name,
            name,
            settings,
            env=rollout_env(settings, self._device),
            model_path=str(model_path),
            max_model_len=self._config.data.max_prompt_tokens + settings.max_response_tokens,
            stop_token_ids=stop_token_ids,
            seed=self._config.seed,
            device=self._device,
        )
        await answer(name, "start-up", handle.ready.remote(), settings.start_timeout_s)
        return RayRolloutWorker(name, handle, pull_timeout_s=self._config.weight_sync.timeout_s)

    async def learner(self, *, model_path: Path, total_updates: int) -> Any:
        from actors.group import LearnerGroup
        from actors.learner import LearnerActor

        config = self._config
        ranks = self._ranks(
            "learner",
            LearnerActor,
            config.learner,
            model_path=str(model_path),
            algorithm=config.algorithm,
            temperature=config.rollout.temperature,
            max_response_tokens=config.rollout.max_response_tokens,
            total_updates=total_updates,
            seed=config.seed,
            sync_dtype=config.rollout.dtype,
        )
        await ranks.setup(config.cluster.ready_timeout_s)
        return LearnerGroup(ranks, tokenizer_path=str(model_path))

    async def critic(self, *, model_path: Path, total_updates: int) -> Any:
        """The prompt critic or the token critic, as the algorithm asks; None when it has none."""
        from actors.critic import CriticActor, TokenCriticActor
        from actors.group import CriticGroup

        config = self._config
        if not config.has_critic:
            return None
        common = {"model_path": str(model_path), "total_updates": total_updates, "seed": config.seed}
        if config.spec.critic == "token":
            ranks = self._ranks("critic", TokenCriticActor, config.critic, critic_loss=config.algorithm.critic_loss, **common)
        else:
            ranks = self._ranks("critic", CriticActor, config.critic, **common)
        await ranks.setup(config.cluster.ready_timeout_s)
        critic_loss = "bce" if config.critic_needs_probabilities else "mse"
        return CriticGroup(ranks, tokenizer_path=str(model_path), critic_loss=critic_loss)

    async def reference(self, *, model_path: Path) -> Any:
        """The frozen starting policy, a copy for each learner rank; None without a KL penalty."""
        from actors.group import ReferenceGroup
        from actors.reference import ReferenceActor

        config = self._config
        if not config.has_reference:
            return None
        handles = [
            self.actor(
                ReferenceActor,
                f"reference-{rank}",
                rank,
                config.reference,
                env=self.rank_env(config.reference.cpus_per_rank),
                model_path=str(model_path),
                temperature=config.rollout.temperature,
                attention=config.learner.attention,
            )
            for rank in range(config.learner.ranks)
        ]
        group = ReferenceGroup(handles, timeout_s=config.learner.timeout_s)
        await group.ready(config.cluster.ready_timeout_s)
        return group

    def scorer(self) -> Any:
        from actors.group import RayScorer
        from actors.reward import RewardActor

        handle = self.actor(RewardActor, "reward", "reward", self._config.reward, env={"OMP_NUM_THREADS": "1"})
        return RayScorer(handle, deadline_s=self._config.reward.deadline_s)

    def _ranks(self, role: str, actor_class: Any, settings: ModelSettings, **keywords: Any) -> Any:
        from actors.group import Ranks

        handles = [
            self.actor(
                actor_class,
                f"{role}-{rank}",
                rank,
                settings.ranks,
                settings,
                env=self.rank_env(settings.cpus_per_rank),
                **keywords,
            )
            for rank in range(settings.ranks)
        ]
        return Ranks(role, handles, timeout_s=settings.timeout_s)


# ------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True, slots=True)
class Materials:
    """What a run is made of before any actor exists: checkpoints, tokenizer, prompts."""

    policy_path: Path
    critic_path: Path
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptStream
    held_out: Mapping[str, Sequence[Prompt]]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return stop_token_ids_of(self.policy_path, self.tokenizer)


def stop_token_ids_of(policy_path: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends a response: the checkpoint's own eos tokens. Raises UserError when it names none."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(policy_path).eos_token_id
    except OSError:  # the checkpoint ships no generation_config.json
        ids = None
    ids = ids if ids is not None else tokenizer.eos_token_id
    if ids is None:
        raise UserError(f"{policy_path}: neither generation_config.json nor the tokenizer names an eos token: set eos_token_id")
    return tuple(ids) if isinstance(ids, (list, tuple)) else (ids,)


def gather_materials(config: RunConfig, report: Any) -> Materials:
    """Find or make the models, read the data. Every error of the data shows here, before a cluster is touched."""
    from transformers import AutoTokenizer

    from sppo_ray.data.prompts import PromptEncoder, PromptStream, load_held_out
    from sppo_ray.data.sources import open_sources
    from sppo_ray.models.bundled import resolve_model
    from sppo_ray.models.exported_critic import check_value_head, critic_directory
    from sppo_ray.trainer.calibration_card import check_warm_start

    policy_path = resolve_model(config.learner.model, report)
    critic_path = resolve_model(str(critic_directory(config.critic.model)), report) if config.has_critic else policy_path
    tokenizer, critic_tokenizer = AutoTokenizer.from_pretrained(policy_path), AutoTokenizer.from_pretrained(critic_path)
    if config.spec.critic == "token" and critic_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"critic.model {config.critic.model}: the token-level critic of {config.algorithm.type} reads the policy's response "
            f"tokens, and its vocabulary is another than that of learner.model {config.learner.model}: use a critic of the same "
            "family"
        )
    if config.has_critic:
        check_value_head(critic_path, required=False)
        check_warm_start(critic_path, config.data, critic_tokenizer.chat_template)
    encoder = PromptEncoder(tokenizer, critic_tokenizer, config.data)
    held_out = load_held_out(config.data, encoder, config.eval.prompts)
    # Kept apart from ALL held-out prompts, so that eval.prompts may change between a run and its resumption.
    prompts = PromptStream(open_sources(config.data.train), encoder, config.data, config.seed)
    return Materials(policy_path, critic_path, tokenizer, prompts, held_out)


def train(config: RunConfig, run_path: Path, *, resume: bool = False) -> int:
    """Run (or continue) a training run in `run_path` and return the exit code: 0 finished or interrupted, 143 terminated.

    Raises UserError for what the user can mend and WorkerFailure when a worker is lost for good; both leave the run
    directory resumable.
    """
    run_dir = RunDir.create(run_path.resolve(), resume=resume)
    recorder = None
    try:
        skipped: list[str] = []
        start = _starting_point(config, run_dir, skipped.append)
        progress = make_progress(config.logging.progress, config.name)
        recorder = Recorder(run_dir, config, progress)
        recorder.phase("preparing")
        run_dir.write_config(dump_config(config))
        run_dir.write_environment()
        for text in skipped:
            recorder.event("checkpoint-skipped", text, show=True)
        materials = gather_materials(config, recorder.message)
        with ray_session(config) as nodes:
            require_feasible(config, nodes)
            return asyncio.run(_train(config, run_dir, recorder, materials, start, resolve_device(config, nodes)))
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            if recorder is not None:
                recorder.event("failed", f"{type(error).__name__}: {error}")
                recorder.phase("failed", last_error=f"{type(error).__name__}: {error}")
        raise
    finally:
        with contextlib.suppress(OSError):
            if recorder is not None:
                recorder.close()
        run_dir.close()


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
    async with _spawned(config, materials, recorder, device) as workers:
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
        with _signals(trainer) as received:
            state = await trainer.run()
            recorder.phase("finishing", state)
            memory = await _peak_memory(workers)  # before the export, which needs more than training does
            if config.checkpoint.export and not trainer.stopped_early:
                await workers.learner.export(run_dir.export / "policy")
                if workers.critic is not None:
                    await workers.critic.export(run_dir.export / "critic")
    _conclude(config, run_dir, recorder, state, memory, stopped=trainer.stopped_early)
    return EXIT_TERMINATED if signal.SIGTERM in received else EXIT_FINISHED


@contextlib.asynccontextmanager
async def _spawned(config: RunConfig, materials: Materials, recorder: Recorder, device: str) -> AsyncIterator[Workers]:
    """All actors, up and connected; every one of them is gone when the block ends, however it ends."""
    from ray.util.placement_group import remove_placement_group

    group = await place(config)
    spawner = Spawner(config, group, device)
    stop_ids = materials.stop_token_ids
    updates = config.data.minibatches_per_step

    async def spawn(name: str) -> Any:
        return await spawner.rollout_worker(name, model_path=materials.policy_path, stop_token_ids=stop_ids)

    fleet = RolloutFleet(
        spawn,
        settings=config.rollout,
        tolerance=ProbeTolerance.for_dtype(config.rollout.dtype, config.weight_sync.max_probe_difference)
        if config.weight_sync.verify
        else None,
        on_event=lambda kind, message: recorder.event(kind, message, show=True),
    )
    try:
        scorer = spawner.scorer()
        policy_updates = updates * max(1, config.loop.steps - config.critic_warmup_steps)
        _, _, learner, critic, reference = await asyncio.gather(
            fleet.start(),
            scorer.ready(config.cluster.ready_timeout_s),
            spawner.learner(model_path=materials.policy_path, total_updates=policy_updates),
            spawner.critic(model_path=materials.critic_path, total_updates=updates * config.loop.steps),
            spawner.reference(model_path=materials.policy_path),
        )
        decode = _decoder(materials.tokenizer)
        sampling = SamplingSettings(config.rollout.temperature, config.rollout.max_response_tokens, stop_ids)
        eval_temperature = config.rollout.temperature if config.eval.temperature is None else config.eval.temperature
        pipeline = SamplePipeline(
            fleet=fleet,
            critic=critic if config.spec.critic == "prompt" else None,
            scorer=scorer,
            decode=decode,
            sampling=sampling,
            order=config.loop.minibatch_order,
            seed=config.seed,
            reward_range=config.reward.range,
            greedy_baseline=config.spec.greedy_baseline,
        )
        evaluator = Evaluator(
            materials.held_out,
            fleet=fleet,
            critic=critic,
            scorer=scorer,
            decode=decode,
            sampling=SamplingSettings(eval_temperature, config.rollout.max_response_tokens, stop_ids),
            samples_per_prompt=config.eval.samples_per_prompt,
            seed=config.seed,
        )
        try:
            yield Workers(fleet, learner, critic, reference, pipeline, evaluator)
        finally:
            await pipeline.close()
            optional = [worker.close() for worker in (critic, reference) if worker is not None]
            await asyncio.gather(fleet.close(), learner.close(), scorer.close(), *optional)
    finally:
        await fleet.close()
        remove_placement_group(group)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Any:
    def decode(token_ids: Sequence[int]) -> str:
        return tokenizer.decode(list(token_ids), skip_special_tokens=True)

    return decode


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


async def _peak_memory(workers: Workers) -> dict[str, int]:
    """Peak bytes by worker; one that does not answer at the end of a run is left out rather than failing it."""
    asked = [w.memory() for w in (workers.fleet, workers.learner, workers.critic, workers.reference) if w is not None]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return {name: size for answer in answers if isinstance(answer, Mapping) for name, size in answer.items()}


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
    recorder.phase("stopped" if stopped else "finished", state)
    learning_curve(run_dir.path)
    reliability_of_run(run_dir.path)
    if config.checkpoint.export and not stopped and config.spec.critic == "prompt":
        versions = {"policy_version": state.policy_version, "critic_version": state.critic_version}
        write_card_of_run(run_dir.path, config, step=state.step, **versions)
    recorder.message(curve_text(run_dir.path))
    recorder.message(f"{'stopped' if stopped else 'finished'} after step {state.step}; everything is in {run_dir.path}")


# ------------------------------------------------------------------------------------- a policy that does not learn


@contextlib.asynccontextmanager
async def serving(
    config: RunConfig, policy_path: Path, *, device: str, stop_token_ids: tuple[int, ...], on_event: Callable[[str, str], None]
) -> AsyncIterator[tuple[RolloutFleet, Any]]:
    """(fleet, scorer): engines that serve the checkpoint as it is, and the verifier; gone when the block ends."""
    from ray.util.placement_group import remove_placement_group

    bundles = serving_bundles_of(config)
    group = await place(config, bundles)
    spawner = Spawner(config, group, device, bundles)

    async def spawn(name: str) -> Any:
        return await spawner.rollout_worker(name, model_path=policy_path, stop_token_ids=stop_token_ids)

    fleet = RolloutFleet(spawn, settings=config.rollout, tolerance=None, on_event=on_event, fixed_weights=True)
    scorer = spawner.scorer()
    try:
        await asyncio.gather(fleet.start(), scorer.ready(config.cluster.ready_timeout_s))
        yield fleet, scorer
    finally:
        await asyncio.gather(fleet.close(), scorer.close())
        remove_placement_group(group)
