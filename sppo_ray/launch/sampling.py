"""Sample a checkpoint: n responses for each prompt, each scored by the verifier.

    checkpoint --> engines + verifier --batch by batch--> graded responses --> no process is left

`sppo-ray eval` and `sppo-ray calibrate` use it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.data.encoder import longest
from sppo_ray.evaluation.sampler import Batch, GradedTrajectory, Sampler
from sppo_ray.launch.cluster import cluster_with_room
from sppo_ray.launch.run_inputs import (
    check_reward_models,
    decoder,
    episodes_of,
    observation_encoder,
    stop_token_ids_of,
)
from sppo_ray.launch.shutdown import EndSignals, in_main_thread
from sppo_ray.launch.workers import serving
from sppo_ray.planning.resources import serving_bundles_of
from sppo_ray.types import SamplingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Sampled = list[list[GradedTrajectory]]  # a list for each batch


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A policy that can be served."""

    path: Path
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's tokenizer and eos tokens. Raises UserError when it names no eos token."""
    from sppo_ray.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(path)
    return Checkpoint(path, tokenizer, stop_token_ids_of(path, tokenizer))


def sample(
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    config: EvaluationConfig,
    *,
    report: Callable[[str], None],
    on_start: Callable[[], None] = lambda: None,
    signals: EndSignals | None = None,
) -> Sampled | None:
    """Return the graded responses of each batch, in the order of prompts and samples; None after
    SIGTERM. No process outlives the call. `report` receives a line for each event; `on_start()` is
    called when engines and verifier run. `signals.interrupt` cancels it in another thread than the
    main one, where no signal arrives. Raises UserError when the cluster is too small, WorkerFailure
    when no worker is left, and what a batch's `follow` raises.
    """
    check_reward_models(config.reward, report, config.environment)
    context = max(longest(prompt) for batch in batches for prompt in batch.prompts)
    data = config.data.model_copy(update={"max_prompt_tokens": context})
    fitted = config.model_copy(update={"data": data})
    with cluster_with_room(fitted, serving_bundles_of(fitted), report=report) as device:
        report(f"starting {config.rollout.workers} engine(s) on {device}")
        sampling = _sample(checkpoint, batches, fitted, device=device, report=report, on_start=on_start)
        return asyncio.run(_unless_terminated(sampling, signals))


async def _sample(
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    config: EvaluationConfig,
    *,
    device: str,
    report: Callable[[str], None],
    on_start: Callable[[], None],
) -> Sampled:
    stop_ids = checkpoint.stop_token_ids
    async with serving(
        config,
        checkpoint.path,
        device=device,
        stop_token_ids=stop_ids,
        on_event=lambda kind, text: report(f"{kind}: {text}"),
    ) as (fleet, reward_client, environment):
        decode = decoder(checkpoint.tokenizer)
        episodes = None
        if environment is not None:
            observations = observation_encoder(config.environment, checkpoint.tokenizer, stop_ids)
            episodes = episodes_of(config, fleet, environment, observations, decode)
        sampler = Sampler(
            fleet=fleet,
            reward_client=reward_client,
            decode=decode,
            sampling=SamplingSettings(config.temperature, config.rollout.max_response_tokens, stop_ids),
            seed=config.seed,
            reward_range=config.reward_range,
            episodes=episodes,
        )
        on_start()
        return [await sampler.sample(batch) for batch in batches]


async def _unless_terminated(work: Awaitable[Sampled], signals: EndSignals | None) -> Sampled | None:
    """Return the result of `work`; None when SIGTERM cancelled it. Its `finally` blocks run, as on
    Ctrl-C.
    """
    loop, task, received = asyncio.get_running_loop(), asyncio.current_task(), []
    if not in_main_thread():
        with (signals or EndSignals()).stopping(task.cancel):
            return await work
    loop.add_signal_handler(signal.SIGTERM, lambda: (received.append(signal.SIGTERM), task.cancel()))
    try:
        return await work
    except asyncio.CancelledError:
        if not received:
            raise
        return None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
