"""A random policy of 1.6M parameters whose responses have a given length, for timing.

Every token is as likely as any other, but for the end of a response. Its logit comes from one
dimension of the hidden state that is the same for every token, so its chance is constant.
"""

from __future__ import annotations

import math
from pathlib import Path

SHAPE = {  # 1.6M parameters with the quickstart's vocabulary
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
CONSTANT = 8.0
"""Of every embedding in dimension 0; the other dimensions have a standard deviation of 0.02."""


def make_model(directory: Path, *, end_chance: float) -> None:
    """Write the checkpoint with the quickstart's tokenizer. A response ends after each token with
    `end_chance`; 0 = never.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sppo_ray.models.bundled import resolve_model
    from sppo_ray.models.tokenizers import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(resolve_model("builtin:running-sum"))
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE, **special))
    head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
    with torch.no_grad():
        embedding[:, 0] = CONSTANT
        head.mul_(0.01)[:, 0] = 0.0
        head[tokenizer.eos_token_id] = 0.0
        hidden = model.model(torch.arange(len(tokenizer))[None]).last_hidden_state[..., 0].mean()
        wanted = math.log(end_chance * (len(tokenizer) - 1) / (1 - end_chance)) if end_chance else -50.0
        head[tokenizer.eos_token_id, 0] = wanted / hidden
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
