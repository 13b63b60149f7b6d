"""Redaction: linear time on any text, and secrets are distinguished from harmless names."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time

import pytest

import sppo_ray.api
import sppo_ray.data
from sppo_ray import redaction
from sppo_ray.config import loading, outside_yaml
from sppo_ray.redaction import holds_secret, redact, secret_places

SIZE = 50_000
SEEDS = [
    "a_", "a-", "secret", "secret ", "secret=", "secret: ", "password" + " " * 20, "://", "://a:", "://a:b",
    ":", "@",
    "x:x@", "eyJ",
    "eyJ-", "eyJaaaaaaaaa.", "eyJaaaaaaaa-eyJ", "sk-", "sk-a", "hf_", "hf_a-", "sppo_", "sppo_-", "bearer ",
    "bearer a",
    "AKIA", "xoxb-",
    "-----BEGIN ", "-----BEGIN A PRIVATE "
                   "KEY-----", "a.", "A_B-", "api_key_", "api-", "x_token", "aa_token=", " ", "\n",
    "pid 1 on ",
    "rollout-", "name viewer ", "a: ", "override --", "step-000001",
]  # fmt: skip


def patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Every compiled pattern of the modules that read text from outside."""
    modules = [redaction, loading, outside_yaml]
    for package in (sppo_ray.api, sppo_ray.data):
        names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
        modules += [importlib.import_module(name) for name in names if not name.endswith("serve_app")]
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            for number, one in enumerate(value if isinstance(value, tuple) else (value,)):
                if isinstance(one, re.Pattern):
                    found[one] = f"{module.__name__}.{name}[{number}]"
    return [(name, pattern) for pattern, name in found.items()]


def test_every_pattern_takes_linear_time() -> None:
    """16 kB took 16 s with a quadratic pattern; a second is far more than a linear one needs."""
    found = patterns()
    assert len(found) > 20
    for name, pattern in found:
        for seed in SEEDS:
            text = (seed * (SIZE // len(seed) + 1))[:SIZE]
            began = time.process_time()
            pattern.search(text + "!")
            pattern.fullmatch(text + "!")
            pattern.sub("", text + "!")
            assert time.process_time() - began < 3.0, (name, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_megabyte_is_redacted_in_seconds(seed: str) -> None:
    text = (seed * (1_000_000 // len(seed) + 1))[:1_000_000]
    began = time.process_time()
    redact(text)
    holds_secret(text)
    assert time.process_time() - began < 5.0


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-abcdefghijklmnop1234", "sk-ant-api03-AbCdEf_GhIjKl-MnOp", "sk-proj-AAAAbbbbCCCCdddd",
        "hf_" + "Ab1" * 10,
        "ghp_" + "a1B2" * 9,
        "github_pat_11ABCDEFG0123456789_abc", "AKIAIOSFODNN7EXAMPLE", "xoxb-123456789012-abcdefABCDEF", JWT,
        "sppo_" + "aB3-_" * 8 + "xyz", "-----BEGIN RSA PRIVATE KEY-----", "https://user:hunter22@host/x",
        "redis://:hunter22@host",
        "Authorization: Bearer abcDEF123456789xyz", "WANDB_API_KEY=0123456789", "glpat-abcdefghij0123456789",
        "sk_live_abcdef123456",
    ],
)  # fmt: skip
def test_what_is_certainly_a_secret(secret: str) -> None:
    for text in (secret, f"a note: {secret}", f'"{secret}"', f"x\n{secret}\n"):
        assert holds_secret(text), text
        assert redact(text) != text
    assert list(secret_places({"a": [{secret: 1}]}, "body")) == ["body.a.0 (the name of an entry)"]


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer", "max_tokens", "data/sk-learn-experiments-2024.jsonl",
        "/srv/sppo_ray_checkpoints/step-000001",
        "sppo_ray.rewards.x:reward",
        "https://host:8080/a", "git@host:path", "a bearer of responsibilities", "eos_token_id=2",
        "token 7 of 9",
        "The secret: find x.",
        "What is the password? Say "
        "it.", "builtin:running-sum", "hf_model", "eyJ", "sk-1", "task-1234567890abcdefgh",
        "0123456789abcdef" * 4,
    ],
)  # fmt: skip
def test_what_only_sounds_like_one(text: str) -> None:
    assert not holds_secret(text)


def test_a_value_under_the_name_of_a_secret_is_one() -> None:
    named = {
        "password": "x", "db.password": "12345678", "a": {"API_KEY": "k"}, "secret": 5, "hub_token": "abc",
        "token": "abc",
        "accessToken": "a",
    }  # fmt: skip
    places = list(secret_places(named, "body"))
    assert places == [
        "body.password", "body.db.password", "body.a.API_KEY", "body.secret", "body.hub_token", "body.token",
        "body.accessToken",
    ]  # fmt: skip
    innocent = {
        "tokenizer": "t",
        "max_tokens": 5,
        "eos_token": "</s>",
        "password": "",
        "secret": None,
        "token": {},
        "prompt_key": "p",
    }
    assert list(secret_places(innocent, "body")) == []
