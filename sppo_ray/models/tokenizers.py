"""Load tokenizers of local checkpoints, without code from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sppo_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint. Raises UserError naming the directory.

    By default Transformers would ask at the terminal whether to run code from the checkpoint.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"model {directory}: its tokenizer does not load: {why_not(error)}") from error


def why_not(error: Exception) -> str:
    """Return the first line of a Transformers error; for a checkpoint with its own code, the
    remedy.
    """
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return (
            "it brings code of its own (auto_map in its JSON files), and code of a checkpoint is never run: "
            "convert it to an "
            "architecture that Transformers has built in"
        )
    return text
