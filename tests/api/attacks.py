"""Random malicious requests and run directories. Each must get a proper answer in limited time.

An attack returns a description of the fault, or None. `make fuzz` sends hundreds, `test_fuzz` a few
of each kind.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from sppo_ray.config.loading import load_config
from sppo_ray.config.outside_yaml import write_yaml
from tests.api.run_directories import LiveRun, finished_run

SLOWEST_S = 10.0  # an answer on a busy machine
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CALLS = ("", "/config", "/metrics", "/trajectories", "/evaluations", "/logs?tail=20")


@dataclass
class Target:
    """A server under attack: it was started with `--allow shared` and no module allowed."""

    url: str
    token: str
    runs: Path
    shared: Path
    dice: random.Random

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} | request.pop("headers", {})
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=SLOWEST_S, **request)

    def word(self, length: int) -> str:
        return "".join(self.dice.choices(LETTERS, k=length))

    def submit(self, **body: Any) -> httpx.Response:
        return self.ask("POST", "/v1/jobs", json=body)


def secret_of(target: Target) -> str:
    word = target.word
    shapes = [
        f"sk-{word(24)}", f"sk-ant-{word(20)}", f"hf_{word(24)}", f"ghp_{word(36)}",
        f"sppo_{word(20)}7{word(22)}",
        f"xoxb-{word(20)}", f"eyJ{word(20)}.eyJ{word(20)}.{word(20)}",
        f"https://{word(5)}:{word(8)}@host/x", "-----BEGIN EC PRIVATE KEY-----",
        f"AKIA{''.join(target.dice.choices('ABCDEFGH234567', k=16))}", f"Authorization: Bearer {word(20)}7",
    ]  # fmt: skip
    return target.dice.choice(shapes)


def a_secret(target: Target) -> str | None:
    secret = secret_of(target)
    text = f"{target.word(5)} {secret} {target.word(5)}"
    body = target.dice.choice(
        [
            {"overrides": {"name": text}},
            {"overrides": {"data": {"system_prompt": text}}},
            {"overrides": {"reward.function": {"type": "custom", "function": "a:b", text: 1}}},
            {"metadata": {"note": text}},
            {"metadata": {secret[:100]: "note"}},
            {"metadata": {target.dice.choice(["password", "db_password", "API-KEY", "token"]): secret}},
            {text: 1},
        ]
    )
    answer = target.submit(recipe="quickstart", **body)
    if answer.status_code != 422 or secret in answer.text:
        return f"a secret: {answer.status_code} {answer.text[:300]}"
    found = [path for path in target.runs.rglob("*") if path.is_file() and secret.encode() in _start_of(path)]
    return f"a secret is in {found[0]}" if found else None


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 20)


def a_self_granted_package(target: Target) -> str | None:
    known = ["sympy:sympify", "os:system", "sppo_ray.launch.train:train", "numpy:full"]
    function = target.dice.choice([*known, f"x{target.word(4)}:f"])
    settings = {
        "type": "custom",
        "function": function,
        "packages": [function.partition(":")[0].partition(".")[0]],
    }
    if target.dice.random() < 0.3:
        settings["function"] = "sppo_ray.rewards.last_number:reward"
        settings["packages"] = ["sympy"]
    answer = target.submit(recipe="quickstart", overrides={"reward.function": settings})
    return None if answer.status_code == 400 else f"a package: {answer.status_code} {answer.text[:300]}"


def an_alias(target: Target) -> str | None:
    """A recipe that is right but for 250 characters, which stand for five million texts."""
    names = [f"k{number}" for number in range(7)]
    entries = [f"{names[0]}: &{names[0]} [{', '.join(['x'] * 9)}]"]
    entries += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip(names, names[1:], strict=False)
    ]
    tree = load_config("quickstart").model_dump(mode="json")
    tree["data"]["train"] = ["HERE"]
    source = f"- {{type: reasoning-gym, task: chain_sum, options: {{{', '.join(entries)}}}}}"
    recipe = target.shared / f"{target.word(8)}.yaml"
    recipe.write_text(write_yaml(tree).replace("- HERE", source))
    answer = target.submit(recipe=str(recipe))
    recipe.unlink()
    is_told = answer.status_code == 422 and "the anchor" in answer.text
    return None if is_told else f"an alias: {answer.status_code} {answer.text[:300]}"


def a_strangers_run(target: Target) -> str | None:
    """Continued over REST, it is held to the server's own list of what is allowed."""
    override = target.dice.choice(
        [
            "--reward.function={type: custom, function: 'evil:reward'}",
            "--reward.function={type: custom, function: 'sympy:sympify', packages: [sympy]}",
            "--data.train=[{type: jsonl, path: /etc/passwd}]",
            "--learner.model=/etc",
        ]
    )
    name = f"foreign-{target.word(8)}"
    run = LiveRun(target.runs, name, overrides=[override])
    run.finish(status="stopped")
    if target.dice.random() < 0.3:
        (run.path / "output.log").symlink_to(target.shared / "victim")
    answer = target.submit(run_name=name, resume=True)
    if answer.status_code not in (400, 409) or (run.path / "submitted.yaml").exists():
        return f"a stranger's run ({override}): {answer.status_code} {answer.text[:300]}"
    return None


def a_swollen_run(target: Target) -> str | None:
    name = f"swollen-{target.word(8)}"
    path = LiveRun(target.runs, name)
    path.step()
    path.finish()
    victim = target.dice.choice(
        [
            "status.json",
            "job.json",
            "config.yaml",
            "summary.json",
            "metrics.jsonl",
            "output.log",
            "evaluations/step-000009.json",
        ]
    )
    file = path.path / victim
    file.parent.mkdir(exist_ok=True)
    kind = target.dice.choice(["sparse", "aliases", "deep", "slow to redact", "fifo"])
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    else:
        text = {
            "sparse": "{",
            "aliases": "a: &a [x]\nb: *a\n",
            "deep": '{"a":' * 50_000,
            "slow to redact": "a_" * 200_000 + "\n",
        }[kind]
        file.write_text(text)
        if kind == "sparse":
            os.truncate(file, 400 << 20)
    for call in CALLS:
        answer = target.ask("GET", f"/v1/jobs/{name}{call}")
        if answer.status_code not in (200, 404):
            return f"{kind} {victim}{call}: {answer.status_code} {answer.text[:300]}"
    return None


def a_body_without_token(target: Target) -> str | None:
    """Malformed, slow or large: 401, at once."""
    place = urlsplit(target.url)
    began = time.monotonic()
    body = target.dice.choice([b"{", b"\xff", b"[" * 1000, b" "])
    length = target.dice.choice([1, 100, 10**6, 10**15])
    path = target.dice.choice(["/v1/jobs", "/v1/jobs/x/stop", "/nowhere"])
    with socket.create_connection((place.hostname, place.port), timeout=SLOWEST_S) as client:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
            f"{length}\r\n\r\n"
        )
        client.sendall(head.encode() + body[:length])
        answer = client.recv(100)
    is_right = answer.startswith(b"HTTP/1.1 401 ") and time.monotonic() - began < SLOWEST_S
    return None if is_right else f"a body without token: {answer!r} after {time.monotonic() - began:.1f} s"


ATTACKS: tuple[Callable[[Target], str | None], ...] = (
    a_secret, a_self_granted_package, an_alias, a_strangers_run, a_swollen_run, a_body_without_token,
)  # fmt: skip


def attack(target: Target, rounds: int) -> list[str]:
    """What went wrong in `rounds` attacks of each kind; a healthy run beside them is answered all
    along.
    """
    finished_run(target.runs, "healthy", steps=1)
    faults = []
    for _ in range(rounds):
        for one in ATTACKS:
            began = time.monotonic()
            try:
                fault = one(target)
            except httpx.TransportError as error:
                fault = f"{one.__name__}: {type(error).__name__}"
            took = time.monotonic() - began
            slow = f"{one.__name__}: took {took:.1f} s" if took > 2 * SLOWEST_S else None
            faults += [found for found in (fault, slow) if found]
        if target.ask("GET", "/v1/jobs/healthy").status_code != 200:
            faults.append("the healthy run is not answered")
    return [json.dumps(fault) for fault in faults]
