"""Shapes and tokenizers of the small bundled models: Llama-like, heads of 32 (the smallest that
vLLM runs on a CPU).

The constants are plain data, so that a cached checkpoint can be looked up without importing torch.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BOXED = r"\boxed{"
PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNKNOWN)
CHARACTERS = (*SPECIALS, *string.digits, *string.ascii_lowercase, "+", "=", ";", "}", BOXED)
"""Vocabulary of the running sum, in the order of the ids. `\\boxed{` is one token instead of 7."""

TOOL_CHARACTERS = (*CHARACTERS, "*", "-", "?", ":", " ", "<calculator>", "</calculator>")
"""Vocabulary of the games of several turns. The tags of a call are one token each."""

CHARACTER_CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
BYTE_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

RUNNING_SUM_SHAPE: dict[str, Any] = {  # 129,088 parameters
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    # Llama's 0.02 suits widths in the thousands; at width 64 it needs twice as many steps to learn
    # copying.
    "initializer_range": 0.08,
}
LONG_RESPONSE_SHAPE: dict[str, Any] = RUNNING_SUM_SHAPE | {"max_position_embeddings": 1024}
BYTE_CRITIC_SHAPE: dict[str, Any] = {  # 361,600 parameters
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


TINY_CRITIC_SHAPE: dict[str, Any] = {  # 18,656 parameters
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


def character_tokenizer() -> PreTrainedTokenizerFast:
    r"""Create a tokenizer with one token per character, and one for `\boxed{`. The chat template
    adds BOS.
    """
    return _character_tokenizer(CHARACTERS, r"\\boxed\{|[\s\S]")


def tool_tokenizer() -> PreTrainedTokenizerFast:
    """Create the same tokenizer for `TOOL_CHARACTERS`."""
    return _character_tokenizer(TOOL_CHARACTERS, r"\\boxed\{|</?calculator>|[\s\S]")


def _character_tokenizer(vocabulary: Sequence[str], split: str) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(split), "isolated")
    core.decoder = decoders.Fuse()
    return _wrap(core, CHARACTER_CHAT_TEMPLATE)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer with one token per UTF-8 byte. It reads any text and needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # sorted: the binding's own order changes from run to run
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate((*SPECIALS, *alphabet))}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return _wrap(core, BYTE_CHAT_TEMPLATE)


def _wrap(core: Any, chat_template: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=chat_template,
    )


def new_model(shape: dict[str, Any], tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """Create a float32 Llama of that shape, initialised from `seed`; the caller's random state is
    unchanged.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    specials = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), dtype="float32", **shape, **specials)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**specials)
    return model
