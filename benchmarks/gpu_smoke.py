"""Checks and figures of one GPU: numerics, packing, log-prob head, weight sync, learner, engine.

    python -m benchmarks.gpu_smoke [--only SECTION ...] [--minutes 12]    on a GPU
    python -m benchmarks.gpu_smoke --device cpu --tiny                    what a CPU can check

Each section is a file of `benchmarks/gpu/` and runs in a process of its own with a deadline, so a
crash or a hang of one is named and the others go on. The result is written after each section. A
section is skipped by name where a package or the device is missing. To start, this needs Python
alone; most sections need only torch and Transformers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import Row, write_result

ROOT = Path(__file__).resolve().parent.parent
OURS = ("actors", "benchmarks", "sppo_ray", "tests")
LINES_SHOWN = 12  # of the output of a section that failed


@dataclass(frozen=True, slots=True)
class Section:
    """A function that yields rows, `Check`s and lines of progress, and its limit in seconds."""

    function: str  # "module:function"
    limit_s: float


SECTIONS: dict[str, Section] = {  # the most valuable first
    name: Section(f"benchmarks.gpu.{name}:{name}", limit_s)
    for name, limit_s in {
        "versions": 60,
        "numerics": 90,
        "packed": 180,
        "head": 60,
        "flat_sync": 90,
        "digest": 60,
        "ipc": 90,
        "transports": 120,
        "learner": 150,
        "offload": 150,
        "engine": 240,
        "colocated": 240,
    }.items()
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a section measures on."""

    device: str  # "cuda" or "cpu"
    tiny: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A figure with its target."""

    what: str
    target: str
    figure: Any
    met: bool


class Skipped(Exception):
    """A section cannot run here. The message is the reason."""


@dataclass(slots=True)
class Outcome:
    """What became of one section; `reason` unless it is done."""

    name: str
    status: str  # done, skipped, failed, or deadline
    seconds: float = 0.0
    reason: str = ""
    rows: list[Row] = field(default_factory=list)
    checks: list[Row] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None, sections: Mapping[str, Section] = SECTIONS) -> int:
    """Run the sections and return the exit code: 1 when one failed, exceeded its limit or missed a
    target.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes of a test, for any machine")
    parser.add_argument("--only", nargs="+", choices=list(sections), metavar="SECTION")
    parser.add_argument("--minutes", type=float, default=12, help="for all sections together")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.tiny:
        parser.error("a CPU takes hours for the shapes of a GPU: add --tiny")
    setup = Setup(options.device, options.tiny)
    name = "gpu_smoke" if setup == Setup("cuda", False) else f"gpu_smoke-{setup.device}-tiny"
    ends = time.monotonic() + 60 * options.minutes
    outcomes: list[Outcome] = []
    for section in options.only or sections:
        outcome = run_apart(section, sections[section], setup, ends - time.monotonic())
        outcomes.append(outcome)
        path = _write(name, setup, outcomes)
        print(f"\n== {section}: {outcome.status}, {outcome.seconds:.0f} s {outcome.reason}".rstrip())
        for row in [*outcome.rows, *outcome.checks]:
            print("  " + ", ".join(f"{key} {_short(value)}" for key, value in row.items() if value != ""))
        sys.stdout.flush()
    print(f"\n{path}")
    good = all(outcome.status in ("done", "skipped") for outcome in outcomes)
    return 0 if good and all(check["met"] for outcome in outcomes for check in outcome.checks) else 1


def run_apart(name: str, section: Section, setup: Setup, left_s: float) -> Outcome:
    """Run a section in a process of its own. What it yielded before its end is kept."""
    limit_s = min(section.limit_s, left_s)
    if limit_s <= 0:
        return Outcome(name, "skipped", reason="no time is left: see --minutes and --only")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found, log = Path(folder) / "found.jsonl", Path(folder) / "log"
        found.touch()
        code = "import sys; from benchmarks.gpu_smoke import run_here; sys.exit(run_here(*sys.argv[1:]))"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", code, section.function, json.dumps(asdict(setup)), str(found)],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": folder},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                ended: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                ended = None
            finally:
                _end_group(process)
        entries = [json.loads(line) for line in found.read_text().splitlines() if line.endswith("}")]
        outcome = _outcome(name, entries, ended, limit_s, log.read_text(errors="replace"))
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def run_here(function: str, setup: str, to: str) -> int:
    """Run a section in this process and write what it yields to the file `to`, one JSON object a
    line. Returns the exit code.
    """
    module, _, attribute = function.partition(":")
    with open(to, "a", buffering=1) as file:

        def write(**entry: Any) -> None:
            file.write(json.dumps(entry) + "\n")

        try:
            run: Callable[[Setup], Iterable[Row | Check | str]] = getattr(
                importlib.import_module(module), attribute
            )
            for found in run(Setup(**json.loads(setup))):
                if isinstance(found, Check):
                    write(check=asdict(found))
                else:
                    write(**({"at": found} if isinstance(found, str) else {"row": found}))
        except Skipped as skipped:
            write(skipped=str(skipped))
        except Exception as error:  # the parent reports any error by the section's name
            if isinstance(error, ModuleNotFoundError) and (reason := _missing(error)):
                write(skipped=reason)
                return 0
            traceback.print_exc()
            write(failed=f"{type(error).__name__}: {error}"[:2000])
            return 1
        write(done=True)
    return 0


def _outcome(
    name: str, entries: Sequence[Mapping[str, Any]], code: int | None, limit_s: float, log: str
) -> Outcome:
    def of(kind: str) -> list[Any]:
        return [entry[kind] for entry in entries if kind in entry]

    outcome = Outcome(name, "done", rows=of("row"), checks=of("check"))
    at = f", at: {of('at')[-1]}" if of("at") else ""
    if of("skipped"):
        outcome.status, outcome.reason = "skipped", of("skipped")[0]
    elif of("failed"):
        outcome.status, outcome.reason = "failed", of("failed")[0] + at
    elif not of("done"):
        if code is None:
            outcome.status, outcome.reason = "deadline", f"stopped after {limit_s:.0f} s{at}"
        else:
            ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            tail = "\n".join(log.strip().splitlines()[-LINES_SHOWN:])
            outcome.status, outcome.reason = "failed", f"the process ended with {ended}{at}\n{tail}".rstrip()
    return outcome


def _missing(error: ModuleNotFoundError) -> str:
    """Return which package is missing and which file of this project imports it; "" when the
    project itself lacks a module, or the error names none.
    """
    if not error.name or error.name.split(".")[0] in OURS:
        return ""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    names = [file.relative_to(ROOT) for file in files if file.is_relative_to(ROOT)]
    ours = [name.as_posix() for name in names if name.parts[0] in OURS]
    return f"{error.name} is not installed ({ours[-1]} imports it)"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the section's process and all that it started: they form a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write(name: str, setup: Setup, outcomes: Sequence[Outcome]) -> Path:
    rows = [{"section": outcome.name, **row} for outcome in outcomes for row in outcome.rows]
    targets = [check for outcome in outcomes for check in outcome.checks]
    summary = [
        {"name": o.name, "status": o.status, "seconds": o.seconds, "reason": o.reason} for o in outcomes
    ]
    return write_result(name, rows, targets, {"setup": asdict(setup), "sections": summary})


if __name__ == "__main__":
    # end the present section as well, which is a process group of its own
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise SystemExit(main())
