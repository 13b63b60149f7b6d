from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from sppo_ray.data.packing import pack
from sppo_ray.errors import UserError
from sppo_ray.models.packed import policy_inputs
from sppo_ray.models.policy import LogprobHead, PolicyModel, load_policy
from sppo_ray.types import MicroBatch
from tests.reference_sppo import sequence_logprobs
from tests.training_data import random_samples, save_llama, save_qwen


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def forward(
    model: PolicyModel, batch: MicroBatch, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    return model(policy_inputs(batch), temperature)


def batch_of(count: int, seed: int) -> MicroBatch:
    return pack(random_samples(count, seed), 1, 4096).ranks[0][0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("save", [save_llama, save_qwen])
def test_log_probs_are_the_references(save, temperature: float, tmp_path: Path) -> None:
    directory = save(tmp_path)
    samples = random_samples(6, seed=1)
    (batch,) = pack(samples, 1, 4096).ranks[0]
    logprobs, _ = forward(load_policy(directory, dtype="float32"), batch, temperature)
    plain = AutoModelForCausalLM.from_pretrained(directory)
    prompts = [sample.scored.prompt.token_ids for sample in samples]
    responses = [sample.scored.trajectory.response_ids for sample in samples]
    expected, mask = sequence_logprobs(plain, prompts, responses, temperature)
    torch.testing.assert_close(logprobs, expected[mask.bool()], rtol=1e-5, atol=1e-5)


def test_log_probs_do_not_depend_on_other_rows(llama: Path) -> None:
    model = load_policy(llama, dtype="float32")
    samples = random_samples(5, seed=2)
    together, _ = forward(model, pack(samples, 1, 4096).ranks[0][0])
    alone = torch.cat([forward(model, pack([s], 1, 4096).ranks[0][0])[0] for s in samples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_entropy_of_a_uniform_distribution(llama: Path) -> None:
    model = load_policy(llama, dtype="float32")
    torch.nn.init.zeros_(model.model.get_output_embeddings().weight)
    logprobs, entropies = forward(model, batch_of(3, seed=3))
    torch.testing.assert_close(entropies, torch.full_like(entropies, 45.0).log())
    torch.testing.assert_close(logprobs, -entropies)
    assert not entropies.requires_grad


@pytest.mark.parametrize("max_logits", [10**6, 200])
def test_entropies_carry_a_gradient_when_asked(max_logits: int) -> None:
    linear = torch.nn.Linear(8, 50, bias=False)
    states = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head = LogprobHead(linear, max_logits, entropy_gradient=True)
    _, entropies = head(states, torch.arange(7), 0.7)
    entropies.sum().backward()
    # dH/dz_j = -p_j (log p_j + H), and the logits z are linear(states) / temperature
    probabilities = (linear(states.detach()) / 0.7).softmax(-1)
    logs = probabilities.log()
    wanted = -(probabilities * logs).sum(-1, keepdim=True)
    torch.testing.assert_close(entropies[:, None], wanted)
    torch.testing.assert_close(
        states.grad, (-probabilities * (logs + wanted)) @ linear.weight / 0.7, rtol=1e-4, atol=1e-6
    )
    with torch.no_grad():
        assert not head(states, torch.arange(7), 0.7)[1].requires_grad


def test_chunks_give_the_same_values_and_gradients() -> None:
    linear = torch.nn.Linear(8, 50)
    hidden = torch.randn(23, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(23)

    def run(max_logits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        states = hidden.clone().requires_grad_()
        linear.zero_grad()
        logprobs, _ = LogprobHead(linear, max_logits)(states, targets, 0.7)
        logprobs.square().sum().backward()
        return logprobs.detach(), states.grad, linear.weight.grad.clone()

    # 50 x 4 logits a chunk: 23 rows are six chunks
    for whole, chunked in zip(run(10**6), run(200), strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient(llama: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_policy(llama, dtype="float32", gradient_checkpointing=checkpointing)
        forward(model, batch_of(4, seed=4))[0].sum().backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


def test_parameters_keep_their_transformers_names(tmp_path: Path) -> None:
    for tied in (False, True):
        directory = save_llama(tmp_path / str(tied), tied=tied)
        expected = [name for name, _ in AutoModelForCausalLM.from_pretrained(directory).named_parameters()]
        assert [
            name for name, _ in load_policy(directory, dtype="float32").model.named_parameters()
        ] == expected
        assert ("lm_head.weight" in expected) is not tied


def test_dropout_is_off(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=45, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    model = load_policy(tmp_path, dtype="float32").train()
    batch = batch_of(3, seed=5)
    assert torch.equal(forward(model, batch)[0], forward(model, batch)[0])


GEMMA2 = {
    "vocab_size": 45,
    "hidden_size": 16,
    "intermediate_size": 16,
    "head_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


def test_a_model_with_soft_capped_logits_is_refused(tmp_path: Path) -> None:
    config = Gemma2Config(**GEMMA2, final_logit_softcapping=0.01, attn_logit_softcapping=None)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="Gemma2ForCausalLM does more to its logits than a linear head"):
        load_policy(tmp_path, dtype="float32")


def test_a_model_whose_attention_is_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = Gemma2Config(**GEMMA2, final_logit_softcapping=None, attn_logit_softcapping=50.0)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="Gemma2ForCausalLM does not read rows that lie end to end"):
        load_policy(tmp_path, dtype="float32")


def test_what_is_no_checkpoint_is_named(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory"):
        load_policy(tmp_path / "nowhere", dtype="float32")
    with pytest.raises(UserError, match="no config.json"):
        load_policy(tmp_path, dtype="float32")
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(
        UserError,
        match=r"no \*\.safetensors in it; pytorch_model\.bin can run code when read.*save_pretrained",
    ):
        load_policy(tmp_path, dtype="float32")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="does not load"):
        load_policy(tmp_path, dtype="float32")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-family"}))
    with pytest.raises(UserError, match="config.json cannot be used"):
        load_policy(tmp_path, dtype="float32")


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, llama: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="weights of LlamaForCausalLM are missing from it: lm_head.weight"):
        load_policy(tmp_path, dtype="float32")
