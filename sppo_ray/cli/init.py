"""`sppo-ray init`: write a project that trains: rows, a reward function and a recipe."""

from __future__ import annotations

import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Annotated

from typer import Argument

from sppo_ray.environments.running_sum import HELD_OUT_SEED, generate_example
from sppo_ray.errors import UserError

ROWS, HELD_OUT_ROWS = 512, 64


def init(directory: Annotated[Path, Argument(help="a new or empty directory")]) -> int:
    """Write a project of your own: rows, reward.py and a recipe."""
    files = {
        "recipe.yaml": _template("recipe.yaml"),
        "reward.py": _template("reward.py"),
        "rows.jsonl": _rows(0, ROWS),
        "held_out.jsonl": _rows(HELD_OUT_SEED, HELD_OUT_ROWS),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UserError(f"{directory} is not empty: name a new directory")
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror}): name another directory") from None
    print(
        f"wrote {', '.join(files)} to {directory}\n\n"
        f"  cd {shlex.quote(str(directory))}\n"
        "  sppo-ray train recipe.yaml --run-dir runs/first\n"
        "  sppo-ray report runs/first\n\n"
        "The first start makes the small model, about a minute. Then put your own rows, reward and model in."
    )
    return 0


def _template(name: str) -> str:
    return (resources.files("sppo_ray") / "template" / name).read_text(encoding="utf-8")


def _rows(seed: int, count: int) -> str:
    """Return `count` different prompts of the running sum, one JSON object a line."""
    found: dict[str, str] = {}
    index = 0
    while len(found) < count:
        prompt, truth = generate_example(index, seed=seed, max_operands=8)
        found.setdefault(prompt, truth)
        index += 1
    rows = ({"prompt": prompt, "ground_truth": truth} for prompt, truth in found.items())
    return "".join(json.dumps(row) + "\n" for row in rows)
