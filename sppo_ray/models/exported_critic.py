"""A critic out of its export: checked by its headers, then read by plain Transformers in one process.

    export/critic --check_value_head--> one logit a prompt --sigmoid--> value = probability that the policy solves it

No Ray and no DeepSpeed: a map of a data set and a calibration need forwards only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sppo_ray.data.batching import chunk
from sppo_ray.errors import UserError
from sppo_ray.models.bundled import check_checkpoint
from sppo_ray.models.critic_output import prompt_value
from sppo_ray.types import PromptValue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD = "score.weight"
TOKENS_A_FORWARD = 16_384  # padded; bounds the memory of a forward

TokenIds = Sequence[tuple[int, ...]]


def check_value_head(directory: Path, *, required: bool) -> None:
    """Refuse a checkpoint whose head is not a critic's: reads headers only, no weights.

    A causal LM has no head, which is an error only where one is `required` (to read values; training starts a fresh one).
    Raises UserError naming the directory, also for an incomplete checkpoint.
    """
    check_checkpoint(directory)
    labels = _labels(directory)
    if labels is None and required:
        raise UserError(
            f"critic {directory}: has no value head ({HEAD}), so it predicts nothing yet: give the export/critic of a finished "
            "run"
        )
    if labels not in (None, 1):
        raise UserError(
            f"critic {directory}: its head has {labels} labels, a critic has one (the logit of solving the prompt): give the "
            "export/critic of a run, or a causal LM to start a fresh critic from"
        )


def critic_directory(given: str | Path) -> Path:
    """`given` itself, or its export/critic when it is a run directory. Raises UserError for a run without an export."""
    path = Path(given).expanduser()
    if not (path / "config.yaml").is_file():
        return path
    exported = path / "export" / "critic"
    if not exported.is_dir():
        raise UserError(
            f"run {path}: has no export/critic: finish it (sppo-ray train ... --resume --run-dir {path}) with checkpoint.export "
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
        """The longest prompt that its positions reach; None = no limit known."""
        return getattr(self._model.model.config, "max_position_embeddings", None)

    def values(self, token_ids: TokenIds) -> list[PromptValue]:
        """One value a prompt, in their order. Prompts are tokens of `tokenizer`, each with at least one."""
        found: dict[int, float] = {}
        for indices in chunk([len(ids) for ids in token_ids], TOKENS_A_FORWARD):
            outputs = self._outputs([token_ids[index] for index in indices])
            found.update(zip(indices, outputs, strict=True))
        return [prompt_value(found[index], self._model.critic_loss, 0) for index in range(len(token_ids))]

    def _outputs(self, token_ids: TokenIds) -> list[float]:
        import torch

        from sppo_ray.algorithms.tensor_ops import pad_right

        lengths = torch.tensor([len(ids) for ids in token_ids], device=self._device)
        with torch.inference_mode():
            return self._model(pad_right(token_ids, pad_id=0).to(self._device), lengths).tolist()


def _labels(directory: Path) -> int | None:
    """Rows of the checkpoint's head; None when it has none."""
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
