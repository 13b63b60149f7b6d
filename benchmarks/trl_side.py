"""TRL's side of a benchmark, in a process of its own: GRPO on the quickstart's prompts and reward.

    python -m benchmarks.trl_side '{"steps": 16, ...}'      (the fields of `Task`, as JSON)

The last line of its output is JSON: the times at which the steps ended, without the seconds of
evaluations, and the held-out accuracies by step.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One run of TRL's GRPOTrainer with Transformers generation."""

    steps: int
    threads: int
    model: str = "builtin:running-sum"
    prompts: int = 32
    samples: int = 8
    updates: int = 1  # optimizer steps a step
    response_tokens: int = 80
    learning_rate: float = 5e-4
    seed: int = 1
    evaluate_every: int = 0  # steps; 0 = never
    stop_at: float = 1.0  # held-out accuracy that ends the run

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.trl_side", json.dumps(asdict(self))]


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    print(json.dumps(run(task)))


def run(task: Task) -> dict[str, Any]:
    """{"ends": seconds of training at each step's end, "accuracies": {step: held out}}."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from sppo_ray.config.loading import load_config
    from sppo_ray.launch.run_inputs import gather_inputs
    from sppo_ray.rewards.registry import build_verifier

    torch.set_num_threads(task.threads)
    sizes = [f"data.prompts_per_step={task.prompts}", f"data.minibatch_size={task.prompts}"]
    limits = [f"rollout.max_response_tokens={task.response_tokens}", f"seed={task.seed}"]
    config = load_config("quickstart", [*sizes, *limits, f"learner.model={task.model}"])
    inputs = gather_inputs(config, lambda line: None)
    verifier = build_verifier(config.reward.function)
    prompts = [prompt for step in range(task.steps) for prompt in inputs.prompts.cohort(step)]
    data = Dataset.from_list([{"prompt": one.text, "truth": one.ground_truth} for one in prompts])
    held_out = [prompt for part in inputs.held_out.values() for prompt in part]

    def reward(completions: Sequence[str], truth: Sequence[str], **_: Any) -> list[float]:
        pairs = zip(completions, truth, strict=True)
        return [verifier.score(text, wanted, {})[0] for text, wanted in pairs]

    ends: list[float] = []
    accuracies: dict[int, float] = {}
    paused = 0.0

    @torch.no_grad()
    def accuracy(model: Any) -> float:
        """Of one sample a held-out prompt, as in our evaluations."""
        tokenizer = inputs.tokenizer
        batch = tokenizer(
            [one.text for one in held_out], return_tensors="pt", padding=True, padding_side="left"
        )
        model.eval()
        found = model.generate(
            **batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=task.response_tokens
        )
        model.train()
        texts = tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        rewards = reward(texts, [one.ground_truth for one in held_out])
        return sum(rewards) / len(rewards)

    class Clock(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, control: Any, model: Any, **__: Any) -> None:
            nonlocal paused
            if state.global_step % task.updates:
                return
            ends.append(time.perf_counter() - paused)
            if task.evaluate_every and len(ends) % task.evaluate_every == 0:
                began = time.perf_counter()
                accuracies[len(ends)] = accuracy(model)
                paused += time.perf_counter() - began
                control.should_training_stop = accuracies[len(ends)] >= task.stop_at

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=task.prompts * task.samples // task.updates,
            steps_per_generation=task.updates,
            num_generations=task.samples,
            max_completion_length=task.response_tokens,
            learning_rate=task.learning_rate,
            max_steps=task.steps * task.updates,
            seed=task.seed,
            beta=0.0,
            loss_type="dapo",
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        model = AutoModelForCausalLM.from_pretrained(
            inputs.policy_path, dtype=torch.float32, trust_remote_code=False
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=settings,
            train_dataset=data,
            processing_class=inputs.tokenizer,
            callbacks=[Clock()],
        )
        began = time.perf_counter()
        trainer.train()
    return {"ends": [end - began for end in ends], "accuracies": accuracies}


if __name__ == "__main__":
    main()
