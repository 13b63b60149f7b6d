"""How often each check of a weight sync finds an engine that is one step behind, in bfloat16.

    python -m benchmarks.stale_step [--steps 20]

A real engine and a real policy of the quickstart, both in bfloat16 on one CPU. In each step AdamW
makes one update of float32 master weights at the given learning rate. `stale` compares the engine
with version v - 1 against the learner with version v; `noise` compares both at version v. A check
trips when its default limit is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.rollout import RolloutWorker, rollout_env
from benchmarks.report import print_table, write_result
from sppo_ray.config import RolloutSettings
from sppo_ray.config.loading import load_config
from sppo_ray.launch.run_inputs import gather_inputs
from sppo_ray.models.packed import sequence_inputs
from sppo_ray.models.policy import PolicyModel, load_policy
from sppo_ray.protocols import WeightManifest, WeightReceipt
from sppo_ray.rollout.weight_digest import flat_digest
from sppo_ray.rollout.weight_sync import ProbeTolerance
from sppo_ray.trainer.logprob_check import CHECKED_SAMPLES, first_batch_limit
from sppo_ray.types import RequestId, RolloutRequest, SamplingSettings, TrajectoryBlock

LEARNING_RATES = (1e-6, 1e-4)
PROBE = tuple(int(token) for token in np.random.default_rng(0).integers(0, 12, size=16))
MAX_TOKENS = 64


@dataclass(frozen=True)
class Seen:
    """What an engine shows of one version."""

    receipt: WeightReceipt
    samples: list[tuple[np.ndarray, np.ndarray]]  # prompt and response tokens, the engine's log-probs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    rows = asyncio.run(measure(options.steps))
    print_table(rows)
    one_step = rows[0]
    target = {
        "what": "stale steps at lr 1e-6 that the digest finds, share",
        "target": "= 1",
        "figure": one_step["digest_stale"],
        "met": one_step["digest_stale"] == 1.0,
    }
    print(write_result("stale_step", rows, [target]))


async def measure(steps: int) -> list[dict[str, Any]]:
    config = load_config("quickstart", [])
    inputs = gather_inputs(config, print)
    settings = RolloutSettings(dtype="bfloat16", max_sequences=32, kv_cache_gib=0.25)
    engine = RolloutWorker(
        "rollout-0",
        settings,
        model_path=str(inputs.policy_path),
        max_model_len=config.data.max_prompt_tokens + MAX_TOKENS,
        stop_token_ids=tuple(inputs.stop_token_ids),
        seed=0,
        device="cpu",
    )
    await engine.ready()
    rows = []
    for lr in LEARNING_RATES:
        master = load_policy(inputs.policy_path, dtype="float32")
        policy = load_policy(inputs.policy_path, dtype="bfloat16")
        rows.append(await Trial(engine, master, policy, lr).run(inputs.prompts, steps))
    await engine.close()
    return rows


class Trial:
    def __init__(self, engine: RolloutWorker, master: PolicyModel, policy: PolicyModel, lr: float) -> None:
        self.engine, self.master, self.policy, self.lr = engine, master, policy, lr
        self.optimizer = torch.optim.AdamW(master.parameters(), lr=lr, weight_decay=0.0)
        self.signs = np.random.default_rng(1)

    async def run(self, prompts: Any, steps: int) -> dict[str, Any]:
        tolerance = ProbeTolerance.for_dtype("bfloat16")
        limit = first_batch_limit("bfloat16", 1.0, None)
        found: dict[str, list[float]] = {}

        def note(**figures: float) -> None:
            for name, figure in figures.items():
                found.setdefault(name, []).append(float(figure))

        seen = await self.pull(0, prompts.cohort(0))
        for step in range(1, steps + 1):
            before, old = self.flat(), seen
            self.update(old.samples)
            now = self.flat()
            seen = await self.pull(step, prompts.cohort(step))
            probe = self.logprobs(np.array(PROBE), len(PROBE) - 1)
            note(changed=(before.view(np.uint16) != now.view(np.uint16)).mean())
            for name, one in (("stale", old), ("noise", seen)):
                gap = np.abs(np.array(one.receipt.probe_logprobs) - probe)
                batch = self.first_batch(one)
                note(**{
                    f"digest_{name}": one.receipt.digest != flat_digest(now),
                    f"ledger_{name}": one.receipt.num_loaded != len(list(self.policy.model.parameters())),
                    f"probe_{name}": gap.max() > tolerance.largest or gap.mean() > tolerance.mean,
                    f"first_batch_{name}": batch > limit,
                    f"probe_mean_{name}": gap.mean(),
                    f"first_batch_mean_{name}": batch,
                })
        return {"lr": self.lr, "steps": steps} | {name: float(np.mean(one)) for name, one in found.items()}

    def flat(self) -> np.ndarray:
        """The policy's weights, [num_bytes] uint8."""
        parts = [parameter.detach().reshape(-1) for parameter in self.policy.model.parameters()]
        return torch.cat(parts).view(torch.uint8).numpy()

    async def pull(self, version: int, cohort: Sequence[Any]) -> Seen:
        names, shapes, offsets, end = [], [], [], 0
        for name, parameter in self.policy.model.named_parameters():
            names.append(name)
            shapes.append(tuple(parameter.shape))
            offsets.append(end)
            end += 2 * parameter.numel()
        flat = self.flat()
        layout = tuple(names), tuple(shapes), tuple(offsets)
        manifest = WeightManifest(version, *layout, "bfloat16", end, flat_digest(flat))
        receipt = await self.engine.pull_weights(manifest, flat, PROBE)
        requests = [
            RolloutRequest(RequestId("stale", version, index), prompt.id, prompt.token_ids, seed=index)
            for index, prompt in enumerate(cohort[:CHECKED_SAMPLES])
        ]
        sampling = SamplingSettings(1.0, MAX_TOKENS, ())
        samples = []
        async for block in self.engine.generate(requests, sampling):
            samples += _samples(block, requests)
        return Seen(receipt, samples)

    def update(self, samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """One policy-gradient step with random advantages of -1 and 1."""
        loss = torch.zeros(())
        for tokens, logprobs in samples:
            own, _ = self.master(sequence_inputs(tokens), 1.0)
            loss = loss - float(self.signs.choice((-1, 1))) * own[-len(logprobs) :].mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.policy.parameters(), self.master.parameters(), strict=True)
            for parameter, master in pairs:
                parameter.copy_(master)

    @torch.no_grad()
    def logprobs(self, tokens: np.ndarray, count: int) -> np.ndarray:
        own, _ = self.policy(sequence_inputs(tokens), 1.0)
        return own[-count:].float().numpy()

    def first_batch(self, seen: Seen) -> float:
        """Mean |engine - learner| over the sampled tokens."""
        gaps = [np.abs(self.logprobs(tokens, len(engine)) - engine) for tokens, engine in seen.samples]
        return float(np.concatenate(gaps).mean())


def _samples(
    block: TrajectoryBlock, requests: Sequence[RolloutRequest]
) -> list[tuple[np.ndarray, np.ndarray]]:
    prompts = {str(request.request_id): request.token_ids for request in requests}
    ids = {str(request.request_id): request.prompt_id for request in requests}
    return [
        (
            np.concatenate([prompts[str(one.request_id)], one.response_ids]).astype(np.int64),
            np.asarray(one.response_logprobs, np.float64),
        )
        for one in block.trajectories(ids)
    ]


if __name__ == "__main__":
    import os

    os.environ.update(rollout_env(RolloutSettings(), "cpu"))
    # vLLM's bfloat16 attention uses AMX, for which a process has to ask the kernel
    main()
