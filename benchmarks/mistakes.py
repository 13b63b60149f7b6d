"""Mistakes of a user: how many seconds until the message, and what it says.

    python -m benchmarks.mistakes [--only NAME ...] [--show]

Each mistake is a command in a directory of its own. The message has to be one `error:` that names
file, field or worker, and the exit code has to be 2 (or the one given).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import print_table, write_result
from benchmarks.shaped_model import SHAPE

MEDIAN_S, WORST_S, GIVE_UP_S = 3.0, 8.0, 90.0
ROWS = [{"prompt": f"What is {i} + 1?", "ground_truth": str(i + 1)} for i in range(24)]
SMALL = ["--data.prompts_per_step=4", "--data.minibatch_size=4", "--eval.prompts=4", "--loop.steps=1"]


@dataclass(frozen=True)
class Mistake:
    """`command`: arguments of sppo-ray. `says`: a pattern of the message. `prepare(directory)`
    writes the files.
    """

    name: str
    command: Sequence[str]
    says: str
    prepare: Callable[[Path], None] = lambda directory: None
    code: int = 2
    environment: dict[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------- files


def lines(rows: Sequence[Any], name: str = "rows.jsonl") -> Callable[[Path], None]:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    return lambda directory: (directory / name).write_text(text) and None


def parquet(table: pa.Table) -> Callable[[Path], None]:
    return lambda directory: pq.write_table(table, directory / "rows.parquet")


def model(change: Callable[[Path], None] = lambda directory: None, **shape: Any) -> Callable[[Path], None]:
    """A random checkpoint in `model`, with rows to train on."""

    def prepare(directory: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        from sppo_ray.models.bundled import resolve_model
        from sppo_ray.models.tokenizers import load_tokenizer

        tokenizer = load_tokenizer(resolve_model("builtin:running-sum"))
        sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **SHAPE, **shape}
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(directory / "model")
        tokenizer.save_pretrained(directory / "model")
        change(directory / "model")
        lines(ROWS)(directory)

    return prepare


def not_finite(directory: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    name = next(name for name in weights if "up_proj" in name)
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def damaged(directory: Path) -> None:
    file = directory / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def recipe(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "mine.yaml").write_text(text) and None


def python(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "rewards_of_mine.py").write_text(text) and None


def a_run(directory: Path) -> None:
    (directory / "run").mkdir()
    (directory / "run/metrics.jsonl").write_text("{}\n")


def unscorable(directory: Path) -> None:
    lines([{"response": "1", "ground_truth": "1"}])(directory)
    python("def f(response, ground_truth, extra): return 1 / 0\n")(directory)


# -------------------------------------------------------------------------------------- mistakes

TAKEN = socket.create_server(("127.0.0.1", 0))  # a port that another program listens at
TRAIN = ["train", "quickstart", "--run-dir", "run"]
OWN = [
    *TRAIN,
    "--data.held_out=[]",
    "--eval.at_start=false",
    "--reward.function.type=math",
    "--critic.model=builtin:tiny-critic",
    *SMALL,
]


def data(kind: str, path: str, **keys: str) -> list[str]:
    more = "".join(f", {name}: {value}" for name, value in keys.items())
    return [*OWN, f"--data.train=[{{type: {kind}, path: {path}{more}}}]"]


CUSTOM = [*TRAIN, *SMALL, "--reward.function.type=custom"]
OWN_MODEL = [*data("jsonl", "rows.jsonl"), "--learner.model=model", "--critic.model=model"]
HALF = pa.table({"prompt": [row["prompt"] for row in ROWS]})

MISTAKES = [
    Mistake("a recipe that does not exist", ["train", "quikstart"], "did you mean quickstart"),
    Mistake("a recipe file that does not exist", ["train", "mine.yaml"], "mine.yaml: no such recipe file"),
    Mistake("a setting that does not exist", [*TRAIN, "--learner.optimizer.lrr=1"], "did you mean lr"),
    Mistake("a type that does not exist", [*TRAIN, "--algorithm.type=spppo"], "did you mean sppo"),
    Mistake("a text for a number", [*TRAIN, "--rollout.workers=two"], "rollout.workers: .*integer"),
    Mistake("a minibatch that does not divide", [*TRAIN, "--data.minibatch_size=60"], "nearest that do are"),
    Mistake("one sample a prompt for grpo", [*TRAIN, "--algorithm.type=grpo"], "samples_per_prompt"),
    Mistake(
        "a section that stands twice",
        ["train", "mine.yaml"],
        "'loop' stands on line 1 and again on line 3",
        recipe("loop:\n  steps: 3\nloop:\n  steps: 4\n"),
    ),
    Mistake("a recipe that is no YAML", ["train", "mine.yaml"], "not valid YAML", recipe("loop: [1\n")),
    Mistake("a key in the settings", [*TRAIN, "--name=sk-" + "a" * 40], "holds a secret"),
    Mistake("a data file that does not exist", data("jsonl", "no.jsonl"), "no.jsonl: no such file"),
    Mistake("an empty data file", data("jsonl", "rows.jsonl"), "rows.jsonl: is empty", lines([])),
    Mistake("a line that is no JSON", data("jsonl", "rows.jsonl"), "line 25: not JSON", lines([*ROWS, "{"])),
    Mistake(
        "a row without ground truth",
        data("jsonl", "rows.jsonl"),
        "line 25: no ground_truth",
        lines([*ROWS, {"prompt": "?"}]),
    ),
    Mistake("Parquet without ground truths", data("parquet", "rows.parquet"), "no column", parquet(HALF)),
    Mistake(
        "a column that occurs twice",
        data("parquet", "rows.parquet"),
        "the column 'prompt' occurs 2 times",
        parquet(HALF.append_column("prompt", HALF["prompt"])),
    ),
    Mistake(
        "a prompt that is too long",
        [*data("jsonl", "rows.jsonl"), "--data.max_prompt_tokens=3"],
        "max_prompt_tokens",
        lines(ROWS),
    ),
    Mistake("a model that does not exist", [*TRAIN, "--learner.model=model"], "model': no such directory"),
    Mistake("a model without weights", OWN_MODEL, r"no \*.safetensors", model(without_weights)),
    Mistake("a model whose file is cut off", OWN_MODEL, "missing or damaged", model(damaged)),
    Mistake("weights that are not finite", OWN_MODEL, "up_proj.* are not finite", model(not_finite)),
    Mistake(
        "a context beyond the model's",
        [*OWN_MODEL, "--rollout.max_response_tokens=2000"],
        "context",
        model(),
    ),
    Mistake("a head size without a kernel", OWN_MODEL, "head size", model(head_dim=8)),
    Mistake("a tokenizer larger than the embedding", OWN_MODEL, "tokens.*embedding", model(vocab_size=16)),
    Mistake("more workers than CPUs", [*TRAIN, "--rollout.workers=50"], "logical CPUs"),
    Mistake("a GPU for a CPU run", [*TRAIN, "--rollout.gpus_per_worker=1"], "but device is cpu"),
    Mistake(
        "a cluster that is not there",
        TRAIN,
        "no Ray cluster answers at 127.0.0.1:9",
        environment={"RAY_ADDRESS": "127.0.0.1:9"},
    ),
    Mistake(
        "a job server for a cluster",
        TRAIN,
        "is a Ray job server",
        environment={"RAY_ADDRESS": "http://127.0.0.1:8265"},
    ),
    Mistake(
        "a run directory that is taken",
        TRAIN,
        "holds a run already: continue it with --resume",
        a_run,
    ),
    Mistake("a run to resume that is not there", [*TRAIN, "--resume"], "run"),
    Mistake(
        "a reward whose module is missing",
        [*CUSTOM, "--reward.function.function=rewards_of_mine:f"],
        "no module rewards_of_mine",
    ),
    Mistake(
        "a reward function that is missing",
        [*CUSTOM, "--reward.function.function=rewards_of_mine:f"],
        "f does not exist",
        python("def g(response, ground_truth, extra): return 1.0\n"),
    ),
    Mistake(
        "a reward with other parameters",
        [*CUSTOM, "--reward.function.function=rewards_of_mine:f"],
        r"it takes \(answer\)",
        python("def f(answer): return 1.0\n"),
    ),
    Mistake(
        "a reward that raises",
        [*CUSTOM, "--reward.function.function=rewards_of_mine:f"],
        "ZeroDivisionError",
        python("def f(response, ground_truth, extra): return 1 / 0\n"),
    ),
    Mistake(
        "a reward that raises, in a dry run",
        [*CUSTOM, "--reward.function.function=rewards_of_mine:f", "--dry-run"],
        "ZeroDivisionError",
        python("def f(response, ground_truth, extra): return 1 / 0\n"),
    ),
    Mistake(
        "a prompt that is held out, too",
        [*data("jsonl", "rows.jsonl"), "--data.held_out=[{type: jsonl, path: rows.jsonl}]"],
        "data.held_out_overlap",
        lines(ROWS),
    ),
    Mistake("more memory than there is", [*TRAIN, "--rollout.kv_cache_gib=5000"], "does not fit: "),
    Mistake("a tracker that does not exist", [*TRAIN, "--logging.trackers=[wandbb]"], "did you mean wandb"),
    Mistake(
        "a model of the hub, offline",
        [*TRAIN, "--learner.model=org/none"],
        "org/none: .*HF_HUB_OFFLINE is set",
        environment={"HF_HUB_OFFLINE": "1"},
    ),
    Mistake("a run to start from that is not there", ["train", "--from", "none"], "no config.yaml in it"),
    Mistake(
        "a REST server that is not there",
        ["submit", "quickstart", "--url", "http://127.0.0.1:9"],
        "http://127.0.0.1:9",
    ),
    Mistake(
        "a directory for a REST server",
        ["submit", "quickstart", "--working-dir", "."],
        "ray job submit --working-dir .",
    ),
    Mistake(
        "a port that is taken", ["serve", "--port", str(TAKEN.getsockname()[1])], "choose another --port"
    ),
    Mistake("a command that does not exist", ["trian", "quickstart"], "Did you mean 'train'"),
    Mistake("a score of a file that is not there", ["score", "answers.jsonl"], "answers.jsonl"),
    Mistake(
        "answers that cannot be scored",
        [
            *("score", "rows.jsonl", "--reward.function.type=custom"),
            "--reward.function.function=rewards_of_mine:f",
        ],
        "1 of 1 responses could not be scored",
        unscorable,
        code=1,
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mistakes whose name contains one of these")
    parser.add_argument("--show", action="store_true", help="print what is not as expected, whole")
    options = parser.parse_args()
    chosen = [one for one in MISTAKES if not options.only or any(part in one.name for part in options.only)]
    rows = [make(one, show=options.show) for one in chosen]
    print_table(rows)
    seconds = [row["seconds"] for row in rows]
    figures = [
        ("median seconds to the message", MEDIAN_S, statistics.median(seconds)),
        ("seconds of the slowest", WORST_S, max(seconds)),
        ("messages that are not as expected", 0, sum(row["as expected"] != "yes" for row in rows)),
    ]
    targets = [
        {"what": what, "target": f"<= {bound:g}", "figure": round(figure, 2), "met": figure <= bound}
        for what, bound, figure in figures
    ]
    print_table(targets)
    if not options.only:
        print(write_result("mistakes", rows, targets))


def make(mistake: Mistake, *, show: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        mistake.prepare(Path(folder))
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), folder])}
        began = time.monotonic()
        done = subprocess.run(
            ["timeout", "--signal=INT", f"{GIVE_UP_S:g}", sys.executable, "-m", "sppo_ray", *mistake.command],
            cwd=folder,
            env=environment | mistake.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    message = said[-1] if said else (done.stderr or done.stdout).strip()[-200:]
    as_expected = done.returncode == mistake.code and re.search(mistake.says, message) is not None
    if show and not as_expected:
        print(f"--- {mistake.name}: exit {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return {
        "mistake": mistake.name,
        "seconds": round(seconds, 2),
        "exit": done.returncode,
        "as expected": "yes" if as_expected else "no",
        "message": message.replace(str(Path.home()), "~")[:300],
    }


if __name__ == "__main__":
    main()
