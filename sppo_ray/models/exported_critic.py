"""Load an exported critic with plain Transformers in one process, after checking its headers.

    export/critic --check_value_head--> one logit a prompt --sigmoid--> value = probability that the policy solves it

No Ray and no DeepSpeed: `map` and `calibrate` need only forwards.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sppo_ray.data.packing import bins
from sppo_ray.errors import UserError
from sppo_ray.models.bundled import check_checkpoint
from sppo_ray.models.critic_output import prompt_value
from sppo_ray.types import PromptValue, TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD = "score.weight"
TOKENS_A_FORWARD = 16_384  # padded; bounds the memory of a forward

TokenIds = Sequence[tuple[int, ...]]


def check_value_head(directory: Path, *, required: bool) -> None:
    """Refuse a checkpoint whose head is not a critic's. Reads only headers, no weights.

    A causal LM has no value head. That is an error only with `required`; training adds a new head.
    Raises UserError naming the directory, also for an incomplete checkpoint.
    """
    check_checkpoint(directory)
    labels = _labels(directory)
    if labels is None and required:
        raise UserError(
            f"critic {directory}: has no value head ({HEAD}), so it predicts nothing yet: give the "
            "export/critic of a finished "
            "run"
        )
    if labels not in (None, 1):
        raise UserError(
            f"critic {directory}: its head has {labels} labels, a critic has one (the logit of solving the "
            "prompt): give the "
            "export/critic of a run, or a causal LM to start a fresh critic from"
        )


def critic_directory(given: str | Path) -> Path:
    """Return `given`, or its export/critic if it is a run directory.

    Raises UserError for a run without an export.
    """
    path = Path(given).expanduser()
    if not (path / "config.yaml").is_file():
        return path
    exported = path / "export" / "critic"
    if not exported.is_dir():
        raise UserError(
            f"run {path}: has no export/critic: finish it (sppo-ray train ... --resume --run-dir {path}) "
            "with checkpoint.export "
            "on and an algorithm that has a critic"
        )
    return exported


class ExportedCritic:
    """An exported critic, loaded. Raises UserError when `directory` holds none."""

    def __init__(self, directory: Path, *, device: Literal["cpu", "cuda"] = "cpu") -> None:
        from transformers.utils import logging

        from sppo_ray.models.tokenizers import load_tokenizer
        from sppo_ray.models.value_head import load_value_model

        check_value_head(directory, required=True)
        logging.disable_progress_bar()
        self.directory = directory
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(directory)
        self._model = load_value_model(directory, dtype="float32").eval().to(device)
        self._device = device

    @property
    def max_tokens(self) -> int | None:
        """The longest prompt that the model can read; None = no known limit."""
        return getattr(self._model.model.config, "max_position_embeddings", None)

    def values(self, token_ids: TokenIds) -> list[PromptValue]:
        """Return one value per prompt, in order. A prompt has at least one token of `tokenizer`."""
        found: dict[int, float] = {}
        for indices in bins([len(ids) for ids in token_ids], TOKENS_A_FORWARD):
            outputs = self._outputs([token_ids[index] for index in indices])
            found.update(zip(indices, outputs, strict=True))
        return [prompt_value(found[index], self._model.critic_loss, 0) for index in range(len(token_ids))]

    def _outputs(self, token_ids: TokenIds) -> list[float]:
        import numpy as np
        import torch

        rows = TokenRows.of(token_ids)
        with torch.inference_mode():
            return self._model.read(rows, np.ones_like(rows.lengths), device=self._device).tolist()


def _labels(directory: Path) -> int | None:
    """Return the number of rows of the checkpoint's head; None without a head."""
    from safetensors import safe_open

    for file in _weight_files(directory):
        with safe_open(file, framework="np") as tensors:
            if HEAD in tensors.keys():  # noqa: SIM118 - not a mapping
                return tensors.get_slice(HEAD).get_shape()[0]
    return None


def _weight_files(directory: Path) -> Iterator[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        yield from sorted(directory.glob("*.safetensors"))
        return
    where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    if HEAD in where:
        yield directory / where[HEAD]
