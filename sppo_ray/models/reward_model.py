"""A reward model: a Transformers sequence classifier with one output, the score of a conversation.

    messages + response --its chat template, its tokenizer--> rows --by length--> padded batches --> scores

Its own forward pass is used and not packed rows, so that every classifier of Transformers works,
encoders too, and scores are those that it was trained for.
"""  # noqa: W505 (a drawing)

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification

from sppo_ray.config import ModelReward
from sppo_ray.data.render_guard import LONGEST_TEXT, RenderTooLarge, bounded_rendering, problem_of
from sppo_ray.errors import UserError
from sppo_ray.models.loading import DTYPES, explained, read_config, require_finite
from sppo_ray.models.tokenizers import load_tokenizer

Score = float | str
"""A score, or the reason why there is none."""


class RewardModel:
    """Scores conversations. `score` is not for several threads at the same time."""

    def __init__(self, directory: str | Path, settings: ModelReward) -> None:
        """Load the checkpoint. Raises UserError when it is no reward model."""
        self._settings = settings
        self.device = "cuda" if settings.gpus_per_replica > 0 else "cpu"
        self._tokenizer = load_tokenizer(directory)
        template = self._tokenizer.chat_template
        problem = problem_of(template) if isinstance(template, str) else "is missing"
        if problem is not None:
            raise UserError(
                f"reward model {directory}: its chat template {problem}: save the tokenizer with the "
                "template that the model was trained with (tokenizer.chat_template)"
            )
        self._model = _load(directory, settings.dtype, self.device)
        self._text_config = self._model.config.get_text_config()
        self._has_pad = self._text_config.pad_token_id is not None
        context = getattr(self._text_config, "max_position_embeddings", None)
        budget = settings.max_tokens_per_microbatch
        self._longest = budget if context is None else min(budget, context)
        added = self._tokenizer.added_tokens_decoder.values()
        self._special = {token.content for token in added if token.special}

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[Score]:
        """Return the score of each conversation, in their order."""
        rows = self._rows(conversations)
        scores: list[Score] = [row if isinstance(row, str) else 0.0 for row in rows]
        known = {index: row for index, row in enumerate(rows) if not isinstance(row, str)}
        lengths = {index: len(row) for index, row in known.items()}
        for batch in batches(lengths, self._settings.max_tokens_per_microbatch):
            for index, score in zip(batch, self._forward([known[index] for index in batch]), strict=True):
                scores[index] = score
        return scores

    def _rows(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int] | str]:
        rows: list[list[int] | str] = []
        for conversation in conversations:
            try:
                with bounded_rendering(1):
                    text = self._tokenizer.apply_chat_template(self._plain(conversation), tokenize=False)
            except (TemplateError, RenderTooLarge, MemoryError) as error:
                rows.append(f"the reward model's chat template fails: {error or type(error).__name__}")
                continue
            rows.append(self._tokenized(text))
        return rows

    def _plain(self, conversation: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        """Remove special tokens from the first answer on, where texts of the policy and of tools
        could end their turn and begin another.
        """
        roles = [message["role"] for message in conversation]
        first = roles.index("assistant")
        said = [{**one, "content": self._without_special(one["content"])} for one in conversation[first:]]
        return [*conversation[:first], *said]

    def _without_special(self, text: str) -> str:
        before = None
        while text != before:
            before = text
            for token in self._special:
                text = text.replace(token, "")
        return text

    def _tokenized(self, text: str) -> list[int] | str:
        if len(text) > LONGEST_TEXT:
            return f"a conversation of {len(text)} characters"
        row = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not row:
            return "a conversation without a token"
        if len(row) > self._longest:
            return f"{len(row)} tokens, and the reward model reads at most {self._longest}"
        return row

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        width, pad = max(map(len, rows)), self._pad(rows)
        token_ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self.device)
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        logits = self._model(input_ids=token_ids, attention_mask=real).logits
        return logits[:, 0].float().tolist()

    def _pad(self, rows: Sequence[Sequence[int]]) -> int:
        """Return the pad token. Transformers reads a decoder's score at the last other token of a
        row, so a model that names no pad token gets one with which no row ends.
        """
        if not self._has_pad:
            ends = {row[-1] for row in rows}
            free = (token for token in range(len(ends) + 1) if token not in ends)
            self._text_config.pad_token_id = next(free)
        return self._text_config.pad_token_id


def batches(lengths: Mapping[int, int], max_tokens: int) -> list[list[int]]:
    """Group rows of similar length, longest first, so that rows x longest row is at most
    `max_tokens`. `lengths`: tokens by row; a longer row is a batch of its own.
    """
    found: list[list[int]] = []
    for index in sorted(lengths, key=lambda index: -lengths[index]):
        batch = found[-1] if found else []
        if batch and (len(batch) + 1) * lengths[batch[0]] <= max_tokens:
            batch.append(index)
        else:
            found.append([index])
    return found


def _load(directory: str | Path, dtype: str, device: str) -> Any:
    config = read_config(directory)
    if config.num_labels != 1:
        raise UserError(
            f"reward model {directory}: it has {config.num_labels} outputs, and a score is one: use a model "
            "that was trained with num_labels=1"
        )
    with explained(directory, attention="sdpa", device=device):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            directory,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"reward model {directory}: weights are missing from it ({', '.join(missing[:3])}), so it has no "
            "trained classification head: use a sequence classifier, not a causal LM"
        )
    for name, parameter in model.named_parameters():
        require_finite(directory, name, parameter)
    return model.to(device).eval().requires_grad_(False)


class QueuedRewardModel:
    """A reward model for one event loop: what waits while a forward pass runs is scored together
    in the next one.
    """

    def __init__(self, model: RewardModel) -> None:
        self.scored = 0
        self._model = model
        self._waiting: list[tuple[Sequence[Any], asyncio.Future[list[Score]]]] = []
        self._serving: asyncio.Task[None] | None = None

    async def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[Score]:
        """Return the scores in the order of the conversations."""
        if not conversations:
            return []
        scores: asyncio.Future[list[Score]] = asyncio.get_running_loop().create_future()
        self._waiting.append((conversations, scores))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await scores

    async def _serve(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            together = [conversation for conversations, _ in taken for conversation in conversations]
            try:
                scores = iter(await asyncio.to_thread(self._model.score, together))
            except Exception as error:  # boundary: each caller raises it
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            self.scored += len(together)
            for conversations, future in taken:
                own = [next(scores) for _ in conversations]
                if not future.done():
                    future.set_result(own)
