"""Seconds of one weight sync of a 135M model, learner to engine, digest and probe included.

    python -m benchmarks.weight_sync [--rounds 3] [--steps 12]

Each run is `sppo-ray train` with a random model of SmolLM2-135M's shape and a few tokens a step, on
two cores: learner, engine and their weight sync are the real ones. A figure is the median of
`sync/seconds` over a run's steps, without the first ones; dtypes take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.report import print_table, write_result
from benchmarks.versus_trl import WARM_UP, train

SHAPE = {  # of SmolLM2-135M: 134.5M parameters
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
TARGETS_S = {"bfloat16": 0.2, "float32": 0.35}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help=f"of a run, the first {WARM_UP} not counted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model)
        rounds = [
            {dtype: measure(model, dtype, options.steps) for dtype in TARGETS_S}
            for _ in range(options.rounds)
        ]
    rows = [
        {
            "dtype": dtype,
            "mebibytes": rounds[0][dtype]["mebibytes"],
            "seconds_median": statistics.median(one[dtype]["seconds"] for one in rounds),
            "seconds_least": min(one[dtype]["seconds"] for one in rounds),
            "seconds_most": max(one[dtype]["seconds"] for one in rounds),
        }
        for dtype in TARGETS_S
    ]
    targets = [
        {
            "what": f"weight sync of a 135M model, {row['dtype']}, two cores, seconds",
            "target": f"<= {TARGETS_S[str(row['dtype'])]}",
            "figure": row["seconds_median"],
            "met": float(row["seconds_median"]) <= TARGETS_S[str(row["dtype"])],
        }
        for row in rows
    ]
    print_table(rows)
    print(write_result("weight_sync", rows, targets))


def make_model(directory: Path) -> None:
    """A random checkpoint of SHAPE with the quickstart's tokenizer, whose ids are below its
    vocabulary.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sppo_ray.models.bundled import resolve_model
    from sppo_ray.models.tokenizers import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(resolve_model("builtin:running-sum"))
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**SHAPE, **special)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def measure(model: Path, dtype: str, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = {
            "learner.model": model,
            "learner.cpus_per_rank": 1,
            "rollout.dtype": dtype,
            "rollout.max_response_tokens": 4,
            "data.prompts_per_step": 4,
            "data.minibatch_size": 4,
            "eval.every": 0,
            "eval.at_start": "false",
            "checkpoint.every": 0,
            "guardrails.action": "off",  # random weights learn nothing
            "loop.steps": steps,
        }
        train("quickstart", run, settings, 2)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    synced = [row for row in rows if "sync/seconds" in row][WARM_UP:]
    return {
        "seconds": round(statistics.median(row["sync/seconds"] for row in synced), 3),
        "mebibytes": round(synced[-1]["sync/mebibytes"], 1),
    }


if __name__ == "__main__":
    main()
