"""How fast the REST server answers `GET /v1/jobs/{id}` with 200 jobs on record and 20 clients,
while a job trains beside it.

    python -m benchmarks.api                     # about 2 minutes; writes
                                                 benchmarks/results/api.json
    python -m benchmarks.api --no-training

Two loads: each client asks five times a second, as a page or a script that polls does; and each
asks again as soon as it has its answer, which measures how much the server can take. The clients
are one process of plain sockets, so that they cost little of the machine that they measure. Latency
is from the request's first byte to the answer's last one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.config.loading import dump_config, load_config
from sppo_ray.display.progress import SilentProgress
from sppo_ray.rollout.views import WorkerView
from sppo_ray.rundir.environment import environment
from sppo_ray.rundir.layout import RunDir
from sppo_ray.trainer.checkpoint import TrainerState
from sppo_ray.trainer.recorder import Recorder

JOBS, CLIENTS, STEPS = 200, 20, 60
POLLS_A_SECOND = 5.0  # of each client, in the paced load
RESULTS = Path(__file__).parent / "results" / "api.json"
TRAINING = [
    "--data.prompts_per_step=32",
    "--data.minibatch_size=16",
    "--data.held_out.0.size=16",
    "--loop.steps=100000",
]


@dataclass(frozen=True, slots=True)
class Load:
    """What one load measured; times in milliseconds."""

    requests: int
    per_second: float
    p50: float
    p99: float
    worst: float

    @classmethod
    def of(cls, seconds: list[float], wall: float) -> Load:
        cuts = statistics.quantiles(seconds, n=100)
        return cls(len(seconds), len(seconds) / wall, 1e3 * cuts[49], 1e3 * cuts[98], 1e3 * max(seconds))


def make_runs(root: Path, count: int) -> None:
    """`count` finished runs of STEPS steps: one written by the trainer's own recorder, the others
    copies of it.
    """
    config = load_config("quickstart", ["--logging.tensorboard=false"])
    run_dir = RunDir.create(root / "run-000", resume=False)
    run_dir.write_config(dump_config(config))
    recorder = Recorder(run_dir, config, SilentProgress())
    recorder.begin(TrainerState.initial())
    figures = {f"group/figure_{index}": index / 7 for index in range(60)} | {
        "reward/mean": 0.5,
        "response/tokens": 4000,
    }
    for step in range(1, STEPS + 1):
        state = TrainerState(step, step, step, 256 * step, 4000 * step, 2.0 * step, 0, 0, 0.4, 0.6, 0.6)
        recorder.step(
            state,
            [],
            figures,
            learner_version=step,
            fleet=[WorkerView("rollout-0", "HEALTHY", step, 0, 9, step)],
        )
    recorder.phase("finished", state)
    recorder.close()
    run_dir.close()
    for index in range(1, count):
        shutil.copytree(run_dir.path, root / f"run-{index:03d}")


async def measure(port: int, jobs: list[str], *, seconds: float, pace: float | None) -> Load:
    """CLIENTS clients for so long; `pace` = requests a second of each, None = as fast as answers
    come.
    """
    times: list[float] = []
    started = time.perf_counter()

    async def client(seed: int) -> None:
        draw = random.Random(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(draw.random() / (pace or 100.0))  # not all in the same instant
        while (begun := time.perf_counter()) - started < seconds:
            await _ask(reader, writer, draw.choice(jobs))
            times.append(time.perf_counter() - begun)
            if pace:
                await asyncio.sleep(max(0.0, 1.0 / pace - (time.perf_counter() - begun)))
        writer.close()

    await asyncio.gather(*(client(seed) for seed in range(CLIENTS)))
    return Load.of(times, time.perf_counter() - started)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, job: str) -> None:
    writer.write(f"GET /v1/jobs/{job} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 200"), head
    length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
    await reader.readexactly(int(length.partition(":")[2]))


@contextlib.contextmanager
def server(runs: Path) -> Iterator[int]:
    """`sppo-ray serve` over `runs`: its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--runs", str(runs), "--port", str(port), "--rate", "0", "--ray-address", "http://127.0.0.1:9"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sppo_ray", "serve", *options], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def training(run_dir: Path) -> Iterator[None]:
    """The quickstart on small steps, for as long as the block; begins when its first step is
    done.
    """
    command = [sys.executable, "-m", "sppo_ray", "train", "quickstart", "--run-dir", str(run_dir), *TRAINING]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while (
            not (run_dir / "metrics.jsonl").exists()
            or (run_dir / "metrics.jsonl").read_text().count("seconds/step") < 2
        ):
            if process.poll() is not None:
                raise SystemExit(f"the training ended with {process.returncode}")
            time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-training", action="store_true", help="the machine does nothing else")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load (default: 20)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sppo-api-") as folder, contextlib.ExitStack() as stack:
        runs = Path(folder)
        make_runs(runs, JOBS - (not given.no_training))
        if not given.no_training:
            stack.enter_context(training(runs / "training"))
        port = stack.enter_context(server(runs))
        jobs = sorted(path.name for path in runs.iterdir())
        asyncio.run(measure(port, jobs, seconds=3.0, pace=POLLS_A_SECOND))  # warm
        paced = asyncio.run(measure(port, jobs, seconds=given.seconds, pace=POLLS_A_SECOND))
        saturated = asyncio.run(measure(port, jobs, seconds=given.seconds, pace=None))
    report(given.out, paced, saturated, with_training=not given.no_training)
    return 0 if paced.p99 < 50.0 else 1


def report(out: Path, paced: Load, saturated: Load, *, with_training: bool) -> None:
    def shown(load: Load) -> dict[str, Any]:
        return {name: round(getattr(load, name), 3) for name in Load.__slots__}

    content = {
        "what": "GET /v1/jobs/{id}, milliseconds",
        "jobs": JOBS,
        "clients": CLIENTS,
        "training_beside_it": with_training,
        "cores_allowed": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        f"each client {POLLS_A_SECOND:g} times a second": shown(paced),
        "each client as fast as it is answered": shown(saturated),
        "environment": environment(),
    }
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in content.items() if key != "environment"}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
