"""Schemathesis against a real server: no 5xx, no answer outside the OpenAPI document. Then attacks
of known kinds (attacks.py).

    python -m tests.api.fuzz --cases 2000        with a Ray head, submissions included

A submission that passes the checks does reach Ray; its entrypoint is `true` instead of a training
run (--python), so that thousands of them fit into a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import tests.conftest  # noqa: F401  sets the token that every Ray process of a session has to share
from sppo_ray.api.tokens import add_token
from tests.api.attacks import ATTACKS, Target, attack
from tests.api.conftest import serving
from tests.api.run_directories import LiveRun, finished_run
from tests.ray_head import BIN, ray_head

OPERATIONS = 16
LIVE_S = 45.0
# A Ray job's id cannot be told from a run's, and a viewer's token is no other user's: these two
# checks know neither.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,"
    "negative_data_rejection,missing_required_header,unsupported_method,ignored_auth"
)


def fuzz(
    url: str, token: str, *, examples: int, seed: int, folder: Path, options: Sequence[str] = ()
) -> tuple[int, int, str]:
    """(exit code, cases sent, output) of Schemathesis with `examples` cases an operation and
    phase.
    """
    report = folder / "report.ndjson"
    command = [
        str(BIN / "schemathesis"),
        "run",
        f"{url}/openapi.json",
        "--header",
        f"Authorization: Bearer {token}",
    ]
    command += [
        "--checks",
        CHECKS,
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        str(examples),
        "--seed",
        str(seed),
    ]
    command += [
        "--request-timeout",
        "30",
        "--report",
        "ndjson",
        "--report-ndjson-path",
        str(report),
        "--no-color",
        "--warnings",
        "off",
    ]
    command += [
        "--continue-on-failure",
        "--generation-database",
        "none",
        "--suppress-health-check",
        "all",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    return done.returncode, _cases(report), done.stdout + done.stderr


def _cases(report: Path) -> int:
    """How many requests the report tells of."""
    count = 0
    for line in report.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        recorder = event.get("ScenarioFinished", {}).get("recorder", {})
        count += len(recorder.get("interactions", {}))
    return count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000, help="at least so many (default: 2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30, help="attacks of each kind (default: 30)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sppo-fuzz-"))
    runs, tokens, shared = folder / "runs", folder / "tokens", folder / "shared"
    runs.mkdir()
    shared.mkdir()
    token = add_token(tokens, "fuzz", "operator")
    finished_run(runs, "first", steps=3)
    live = LiveRun(runs, "live")
    live.step()
    # Its events end only with it, and a request for them with them.
    ending = threading.Timer(LIVE_S, live.finish)
    ending.daemon = True
    ending.start()
    with ray_head(cpus=1) as (address, environment):
        options = ("--tokens", str(tokens), "--ray-address", address, "--rate", "0", "--python", "/bin/true")
        options += ("--allow", str(shared))
        with serving(runs, *options, env=environment) as (url, _):
            examples = math.ceil(given.cases / OPERATIONS)
            code, cases, output = fuzz(url, token, examples=examples, seed=given.seed, folder=folder)
            target = Target(url, token, runs, shared, random.Random(given.seed))
            faults = attack(target, given.rounds)
    ending.join()
    print(output)
    print("\n".join(faults))
    print(f"{cases} cases, exit code {code}; {given.rounds * len(ATTACKS)} attacks, {len(faults)} faults")
    code = code or (4 if faults else 0)
    if code:
        print(f"the requests and the run directories: {folder}")
    else:
        shutil.rmtree(folder)
    return code if cases >= given.cases else 3


if __name__ == "__main__":
    sys.exit(main())
