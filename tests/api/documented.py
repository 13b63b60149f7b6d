"""Runs the curl commands of a documentation page with bash and curl."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
STATUS = "--silent --show-error --max-time 60 --write-out '\\n%{http_code}'"


def curls(page: str) -> list[str]:
    """Every curl command in the code blocks of docs/`page`, a command that goes over several lines
    as one.
    """
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S):
        command = ""
        for line in block.splitlines():
            if not command and not line.startswith("curl "):
                continue
            command += line + "\n"
            if _is_whole(command):
                found.append(command.strip())
                command = ""
    return found


def _is_whole(command: str) -> bool:
    if command.endswith("\\\n"):
        return False
    try:
        shlex.split(command, comments=True)
    except ValueError:  # an open quote
        return False
    return True


def run_curl(command: str, *, url: str, token: str, folder: Path) -> tuple[int, str]:
    """(HTTP status, body) of a documented command, sent to the server at `url`."""
    variables = {"API": url, "AUTH": f"Authorization: Bearer {token}", "SPPO_RAY_API_TOKEN": token}
    script = command.replace("curl ", f"curl {STATUS} ", 1).replace("http://127.0.0.1:8642", url)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body
