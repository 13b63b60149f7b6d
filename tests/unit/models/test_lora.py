"""LoRA adapters: the start, a hand-checked gradient and merge, packed rows, targets, PEFT's
format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sppo_ray.config import LearnerSettings, LoraSettings
from sppo_ray.config.loading import dump_config, load_config, parse_config, read_settings
from sppo_ray.errors import UserError
from sppo_ray.models.lora import WholeParameter, add_adapters, save_adapter, whole_parameters
from sppo_ray.models.packed import policy_inputs, sequence_inputs
from sppo_ray.models.policy import PolicyModel, load_policy
from sppo_ray.models.value_head import load_value_model
from tests.training_data import micro_batch, save_llama, save_qwen

LORA = LoraSettings(rank=4, alpha=8.0)
PROMPTS, RESPONSES = [[5, 6, 7], [8], [9, 10]], [[11, 12], [13, 14, 15, 16], [17]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, with biases in the attention."""
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def adapted(directory: Path, lora: LoraSettings = LORA, *, scatter: float = 0.0) -> PolicyModel:
    """A policy with adapters; with `scatter` B is not zero."""
    policy = load_policy(directory, dtype="float32")
    add_adapters(policy.model, lora, seed=3, directory=directory)
    if scatter:
        scattered(policy, scatter)
    return policy


def scattered(module: nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name or name.endswith("score.weight"):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def packed(responses: list[list[int]] = RESPONSES) -> Any:
    zeros = [[0.0] * len(row) for row in responses]
    return policy_inputs(micro_batch(PROMPTS, responses, zeros, zeros, zeros, [1.0] * 3))


@pytest.mark.parametrize("model", ["llama", "qwen"])
def test_a_model_starts_as_its_base_bit_for_bit(model: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(model)
    base, policy = load_policy(directory, dtype="float32"), adapted(directory)
    with torch.no_grad():
        expected, found = base(packed(), 0.7), policy(packed(), 0.7)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    names = dict(base.model.named_parameters())
    whole = {one.name: one.merged() for one in whole_parameters(policy.model)}
    assert list(whole) == list(names)
    assert all(torch.equal(whole[name], names[name]) for name in names)


def test_only_adapters_are_trained_and_a_is_drawn_from_the_seed(llama: Path) -> None:
    state = torch.get_rng_state()
    first, second = adapted(llama), adapted(llama)
    assert torch.equal(torch.get_rng_state(), state)  # the run's random numbers are not used
    trained = {name: p for name, p in first.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    # 2 layers of q and o (32 x 32), k and v (32 x 16), gate, up and down (32 x 48):
    # rank 4 x (2 x 64 + 2 x 48 + 3 x 80) = 4 x 464
    assert sum(p.numel() for p in trained.values()) == 2 * 4 * 464
    again = dict(second.named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in trained.items())
    assert any(p.abs().max() > 0 for name, p in trained.items() if ".lora_A." in name)


def test_a_merge_and_a_gradient_by_hand() -> None:
    """W = [[1, 2], [3, 4]], A = [[1, -1]], B = [[2], [0.5]], alpha 3, rank 1: scale 3."""
    from peft import LoraConfig, inject_adapter_in_model

    model = nn.Sequential()
    model.add_module("layer", nn.Linear(2, 2, bias=False))
    inject_adapter_in_model(LoraConfig(r=1, lora_alpha=3, target_modules=["layer"]), model)
    (whole,) = whole_parameters(model)
    a, b = whole.adapter or ()
    with torch.no_grad():
        whole.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        a.copy_(torch.tensor([[1.0, -1.0]]))
        b.copy_(torch.tensor([[2.0], [0.5]]))
    # 3 B A = 3 [[2, -2], [0.5, -0.5]]
    assert whole.name == "layer.weight" and whole.scale == 3.0
    assert whole.merged().tolist() == [[7.0, -4.0], [4.5, 2.5]]
    x = torch.tensor([[1.0, 3.0]])
    y = model(x)  # [7 - 12, 4.5 + 7.5]
    assert y.tolist() == [[-5.0, 12.0]]
    y.sum().backward()
    # dy/dB = 3 A x = 3 x (1 - 3) for both rows; dy/dA = 3 (2 + 0.5) x
    assert b.grad.tolist() == [[-6.0], [-6.0]]
    assert a.grad.tolist() == [[7.5, 22.5]]
    assert whole.weight.grad is None


def test_a_merged_weight_is_rounded_once() -> None:
    """bfloat16 has no number between 1 and 1 + 2^-7. The sum lies at three quarters of the way; if
    each addition of 2^-9 was rounded, some elements would rise twice.
    """
    weight = nn.Parameter(torch.ones(200, 200, dtype=torch.bfloat16))
    a = nn.Parameter(torch.full((3, 200), 2.0**-9, dtype=torch.bfloat16))
    b = nn.Parameter(torch.ones(200, 3, dtype=torch.bfloat16))
    merged = WholeParameter("w", weight, (a, b), 1.0).merged()
    assert merged.dtype == torch.bfloat16 and set(merged.unique().tolist()) == {1.0, 1 + 2.0**-7}
    assert (merged > 1).float().mean().item() == pytest.approx(0.75, abs=0.01)
    a.data.zero_()
    assert torch.equal(WholeParameter("w", weight, (a, b), 1.0).merged(), weight)


@pytest.mark.parametrize("model", ["llama", "qwen"])
def test_merged_weights_compute_what_the_adapters_do_and_the_base_stays(
    model: str, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(model)
    policy, plain = adapted(directory, scatter=0.3), load_policy(directory, dtype="float32")
    before = {one.name: one.weight.clone() for one in whole_parameters(policy.model)}
    target = dict(plain.model.named_parameters())
    with torch.no_grad():
        for _ in range(3):
            for one in whole_parameters(policy.model):
                target[one.name].copy_(one.merged())
        found, expected = policy(packed(), 0.7)[0], plain(packed(), 0.7)[0]
        base = load_policy(directory, dtype="float32")(packed(), 0.7)[0]
    assert (found - base).abs().max() > 0.1
    assert (found - expected).abs().max() < 2e-5
    assert all(torch.equal(one.weight, before[one.name]) for one in whole_parameters(policy.model))


def test_packed_rows_stay_apart(llama: Path) -> None:
    policy = adapted(llama, scatter=0.3)
    with torch.no_grad():
        together = policy(packed(), 0.7)[0]
        alone = []
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
            row = policy(sequence_inputs(np.array(prompt + response)), 0.7)[0]
            alone.append(row[len(prompt) - 1 :])
    assert (together - torch.cat(alone)).abs().max() < 1e-5


def test_gradients_do_not_change_with_recomputation(llama: Path) -> None:
    grads = []
    for recompute in (False, True):
        policy = load_policy(llama, dtype="float32", gradient_checkpointing=recompute)
        add_adapters(policy.model, LORA, seed=3, directory=llama)
        scattered(policy, 0.3)
        policy(packed(), 0.7)[0].sum().backward()
        grads.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) == 2 * 7 * 2
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-6)


def test_target_modules(llama: Path) -> None:
    some = adapted(llama, LoraSettings(rank=2, target_modules=("q_proj", "down_proj")))
    with_adapter = {one.name.split(".")[-2] for one in whole_parameters(some.model) if one.adapter}
    assert with_adapter == {"q_proj", "down_proj"}
    with pytest.raises(UserError, match=r"names wq, and the linear layers .* are down_proj, gate_proj"):
        adapted(llama, LoraSettings(target_modules=("q_proj", "wq")))


def test_settings_that_cannot_work_are_refused() -> None:
    for text, remedy in {
        "rank=0": "at least rank 1",
        "dropout=0.1": "set it to 0",
        "target_modules=[]": "use all-linear",
        "target_modules=[q_proj, lm_head]": "names lm_head: heads and embeddings take no adapter",
    }.items():
        for role in ("learner", "critic"):
            with pytest.raises(UserError, match=remedy):
                load_config("quickstart", [f"--{role}.lora.{text}"])
    config = load_config("quickstart", ["--learner.lora.rank=8"])
    assert (config.learner.lora, config.critic.lora) == (LoraSettings(rank=8), None)
    assert LearnerSettings(model="x").lora is None
    some = load_config("quickstart", ["--learner.lora.target_modules=[q_proj, v_proj]"])
    again = parse_config(read_settings(dump_config(some).encode(), "config.yaml"))
    assert again.learner.lora == LoraSettings(target_modules=("q_proj", "v_proj"))


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_peft_loads_a_saved_adapter(qwen: Path, tmp_path: Path) -> None:
    policy = adapted(qwen, scatter=0.3)
    save_adapter(tmp_path, trained_tensors(policy.model), LORA, base=str(qwen))
    assert {file.name for file in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(qwen), tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = theirs(input_ids=ids).logits[0, :-1] / 0.7
        ours = policy(sequence_inputs(ids[0].numpy()), 0.7)[0]
    expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    assert (ours - expected).abs().max() < 1e-5


def test_peft_loads_a_saved_critic_with_its_head(llama: Path, tmp_path: Path) -> None:
    critic = load_value_model(llama, dtype="float32")
    add_adapters(critic.model, LORA, seed=3, directory=llama)
    assert critic.model.score.weight.requires_grad
    scattered(critic, 0.3)
    save_adapter(tmp_path, trained_tensors(critic.model), LORA, base=str(llama))
    base = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    theirs = PeftModel.from_pretrained(base, tmp_path)
    from sppo_ray.types import TokenRows

    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([[5, 6, 7]])).logits[0, 0]
        ours = critic.read(TokenRows.of([(5, 6, 7)]), np.ones(1, np.int32), device="cpu")[0]
    assert abs(expected.item()) > 0.1
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
