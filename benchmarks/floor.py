"""A quickstart step against its stages alone: engine, learner and critic without Ray.

    python -m benchmarks.floor [--rounds 5] [--steps 20]

All runs take turns. A round is a synchronous training run on one core, one with `max_staleness: 1`
on two cores, and then on the samples of the first run's last steps, on one core: the bare engine
(vLLM, the same requests), a bare learner (Transformers, padded micro-batches, AdamW), a bare
critic, and math verdicts by one process of the pool and by the bare verifier. The synchronous floor
is the sum of the stages. The overlapped floor is the slowest of them: on two cores, learner and
critic share one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, write_result
from benchmarks.versus_trl import WARM_UP, pinned, train

LAST_STEPS = 6
MINIBATCH = 64
MICRO_BATCH_TOKENS = 4096
IN_FLIGHT = (64, 256)
TARGETS = {
    "step_to_floor": ("synchronous sppo step / the sum of its stages alone, one core", "<=", 1.15),
    "overlapped_to_floor": ("overlapped step, two cores / its slowest stage alone", "<=", 1.15),
    "learner_ratio": ("learner inside a step / the bare loop, tokens/s", ">=", 0.9),
    "rollout_64_ratio": ("rollout actor inside a step / raw vLLM, tokens/s, 64 in flight", ">=", 0.9),
    "rollout_256_ratio": ("rollout actor inside a step / raw vLLM, tokens/s, 256 in flight", ">=", 0.9),
    "pool_ratio": ("math verdicts/s a core, pool / bare verifier", ">=", 0.9),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--child", choices=sorted(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("seconds a step:", STAGES[options.child](options.run))
        return
    rows = [measure_round(options.steps) for _ in range(options.rounds)]
    targets = []
    for name, (what, sign, bound) in TARGETS.items():
        figure = statistics.median(row[name] for row in rows)
        met = figure <= bound if sign == "<=" else figure >= bound
        targets.append({"what": what, "target": f"{sign} {bound}", "figure": round(figure, 3), "met": met})
    print_table(rows)
    print_table(targets)
    print(write_result("floor", rows, targets))


def measure_round(steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        synchronous, overlapped, few = (Path(folder) / name for name in ("sync", "overlapped", "few"))
        step = run(synchronous, steps, 1)
        beside = run(overlapped, steps, 2, **{"loop.max_staleness": 1})
        fewer = run(few, steps, 2, **{"data.prompts_per_step": 64})
        alone = {stage: measure_stage(stage, synchronous) for stage in STAGES}
        engine_64 = measure_stage("engine", few)
    floor = alone["engine"] + alone["learner"] + alone["critic"]
    slowest = max(alone["engine"], alone["learner"] + alone["critic"])
    return {name: round(value, 3) for name, value in step.items()} | {
        "overlapped_step": round(beside["step"], 3),
        **{f"{stage}_alone": round(seconds, 4) for stage, seconds in alone.items()},
        "step_to_floor": round(step["step"] / floor, 3),
        "overlapped_to_floor": round(beside["step"] / slowest, 3),
        "learner_ratio": round(alone["learner"] / step["update"], 3),
        "rollout_64_ratio": round(engine_64 / fewer["generating"], 3),
        "rollout_256_ratio": round(alone["engine"] / beside["generating"], 3),
        "pool_ratio": round(alone["verifier"] / alone["pool"], 3),
    }


def run(path: Path, steps: int, cores: int, **settings: Any) -> dict[str, float]:
    """Medians over the steps of a training run, without the first ones, in seconds; `generating`:
    the engine had a request.
    """
    quietly = {"loop.steps": steps, "eval.every": 0, "eval.at_start": "false", "checkpoint.every": 0}
    train("quickstart", path, quietly | settings, cores)
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    counted = [row for row in lines if "seconds/step" in row][WARM_UP:]
    names = ("step", "generate-wait", "update", "first-batch", "sync")
    figures = {name: [row[f"seconds/{name}"] for row in counted] for name in names}
    figures["generating"] = [row["busy/rollout-0"] * row["seconds/step"] for row in counted]
    return {name.replace("-", "_"): statistics.median(values) for name, values in figures.items()}


def measure_stage(stage: str, run: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.floor", "--child", stage, "--run", str(run)]
    return float(pinned(command, 1).rpartition("seconds a step:")[2])


def last_tables(run: Path) -> list[Any]:
    from sppo_ray.rundir.trajectories import read_step, steps

    return [read_step(run, step) for step in steps(run)[-LAST_STEPS:]]


def median_seconds(work: Callable[[Any], None], tables: Sequence[Any]) -> float:
    """Of `work` on each table; the first one warms up."""
    seconds = []
    for table in tables:
        began = time.perf_counter()
        work(table)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def descend(model: Any, optimizer: Any) -> None:
    """One optimizer step on the gradient that is there."""
    import torch

    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def engine_alone(run: Path) -> float:
    from actors.rollout import rollout_env
    from sppo_ray.config.loading import load_config

    config = load_config(str(run / "config.yaml"))
    os.environ.update(rollout_env(config.rollout, "cpu"))
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.vllm_engine import engine_args, sampling_params
    from sppo_ray.launch.run_inputs import stop_token_ids_of
    from sppo_ray.models.tokenizers import load_tokenizer

    model = run / "export" / "policy"
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    engine = LLMEngine.from_engine_args(
        engine_args(config.rollout, model_path=str(model), max_model_len=longest, seed=1, device="cpu")
    )
    stop, asked = stop_token_ids_of(model, load_tokenizer(model)), 0

    def serve(table: Any) -> None:
        nonlocal asked
        engine.reset_prefix_cache()
        for prompt in table["prompt_ids"].to_pylist():
            asked += 1
            params = sampling_params(
                temperature=config.rollout.temperature,
                max_tokens=config.rollout.max_response_tokens,
                stop_token_ids=stop,
                seed=asked,
            )
            engine.add_request(str(asked), {"prompt_token_ids": prompt}, params, arrival_time=float(asked))
        while engine.has_unfinished_requests():
            engine.step()

    return median_seconds(serve, last_tables(run))


def learner_alone(run: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        run / "export" / "policy", dtype=torch.float32, trust_remote_code=False
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def loss_of(rows: Sequence[tuple[list[int], list[int], list[float], float]]) -> torch.Tensor:
        """The clipped loss of padded rows (prompt, response, log-probs, advantage), summed."""
        width = max(len(prompt) + len(response) for prompt, response, _, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for index, (prompt, response, _, _) in enumerate(rows):
            ids[index, : len(prompt) + len(response)] = torch.tensor(prompt + response)
            mask[index, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[mask]).float().log_softmax(-1)
        logprobs = logits.gather(1, ids[:, 1:][mask[:, :-1]][:, None]).squeeze(1)
        old = torch.tensor([value for _, _, logprobs, _ in rows for value in logprobs])
        advantages = torch.tensor([adv for _, response, _, adv in rows for _ in response])
        ratio = (logprobs - old).exp()
        return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()

    def learn(table: Any) -> None:
        names = ("prompt_ids", "response_ids", "response_logprobs", "advantage")
        rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
        for start in range(0, len(rows), MINIBATCH):
            batch = sorted(rows[start : start + MINIBATCH], key=lambda row: -len(row[0]) - len(row[1]))
            tokens = sum(len(row[1]) for row in batch)
            size = max(1, MICRO_BATCH_TOKENS // (len(batch[0][0]) + len(batch[0][1])))
            for first in range(0, len(batch), size):
                (loss_of(batch[first : first + size]) / tokens).backward()
            descend(model, optimizer)

    return median_seconds(learn, last_tables(run))


def critic_alone(run: Path) -> float:
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        run / "export" / "critic", dtype=torch.float32, trust_remote_code=False
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def values(prompts: Sequence[list[int]]) -> torch.Tensor:
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for index, prompt in enumerate(prompts):
            ids[index, : len(prompt)] = torch.tensor(prompt)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        return model.score(hidden[torch.arange(len(prompts)), last]).squeeze(1)

    def learn(table: Any) -> None:
        prompts, rewards = table["critic_prompt_ids"].to_pylist(), table["reward"].to_pylist()
        with torch.no_grad():
            values(prompts)
        for start in range(0, len(prompts), MINIBATCH):
            wanted = torch.tensor(rewards[start : start + MINIBATCH])
            loss = binary_cross_entropy_with_logits(values(prompts[start : start + MINIBATCH]), wanted)
            loss.backward()
            descend(model, optimizer)

    return median_seconds(learn, last_tables(run))


def verifier_alone(run: Path) -> float:
    from sppo_ray.config import MathReward
    from sppo_ray.rewards.registry import build_verifier

    verifier, answers = build_verifier(MathReward()), math_answers()

    def score(_: None) -> None:
        for response, truth in answers:
            verifier.score(response, truth, {})
            verifier.answer(response)

    return median_seconds(score, [None] * 6)


def pool_alone(run: Path) -> float:
    """One process of the pool, which shares the core with the driver."""
    from sppo_ray.config import MathReward, RewardSettings
    from sppo_ray.protocols import ScoreRequest
    from sppo_ray.rewards.pool.pool import VerifierPool

    requests = [ScoreRequest(text, truth, "", "", {}) for text, truth in math_answers()]

    async def score_bursts() -> float:
        pool = VerifierPool(RewardSettings(function=MathReward(), processes=1))
        seconds = []
        try:
            for _ in range(6):
                began = time.perf_counter()
                await pool.score_all(requests)
                seconds.append(time.perf_counter() - began)
        finally:
            await pool.close()
        return statistics.median(seconds[1:])

    return asyncio.run(score_bursts())


def math_answers() -> list[tuple[str, str]]:
    """512 (response, truth): numbers, fractions, roots and pairs, half of them wrong."""
    kinds = (r"{}", r"\frac{{{}}}{{7}}", r"{}\sqrt{{2}}", r"({}, 3)")
    truths = [kinds[index % len(kinds)].format(index) for index in range(512)]
    wrong = [kinds[index % len(kinds)].format(index + index // 4 % 2) for index in range(512)]
    return [(rf"so it is \boxed{{{text}}}", truth) for text, truth in zip(wrong, truths, strict=True)]


STAGES = {
    "engine": engine_alone,
    "learner": learner_alone,
    "critic": critic_alone,
    "verifier": verifier_alone,
    "pool": pool_alone,
}

if __name__ == "__main__":
    main()
