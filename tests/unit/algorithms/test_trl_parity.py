"""TRL's own trainers on the same samples: advantages of GRPO and RLOO, and the loss of each of
their forms that is ours too.

The trainers are real ones round a tiny model; only the responses (`rollout_func`) and rewards are
given, so that both sides judge the same. Log-probs come from the model through TRL's forward, and
everything after them is computed twice.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sppo_ray.algorithms import grpo, rloo
from sppo_ray.algorithms.base import AlgorithmSettings, KLSettings, OverlongSettings, RewardedSample
from sppo_ray.algorithms.loss_settings import CISPOLoss, ImportanceMaskSettings
from sppo_ray.algorithms.policy_loss import LossScale, PolicyLoss, training_loss
from sppo_ray.algorithms.shaping import shaped_reward
from sppo_ray.algorithms.tensor_ops import to_tensors
from tests.training_data import micro_batch, save_llama

trl = pytest.importorskip("trl", reason="needs the development extra: pip install --no-deps trl==1.16.0")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # which releases of vLLM it was tried with; none is used here
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    from trl.rewards import get_soft_overlong_punishment

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")

PROMPT = (4, 5, 6)
RESPONSES = (
    (7, 8, 2),
    (9, 2),
    (10, 11, 12, 13, 14),
    (15,),
    (16, 17, 18),
    (19, 20),
    (21, 22, 23, 24, 2),
    (25, 2),
)
REWARDS = (1.0, 0.0, 0.5, None, 1.0, 1.0, 0.0, 0.0)  # None: the verifier failed
GROUP = 4
LONGEST = 5  # max_completion_length
CAP = 1.2  # of importance weights
MASK = (0.8, 1.5)  # their bounds in TRL's mode token_mask


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("policy"))


def trainer_of(
    kind: str, checkpoint: Path, output: Path, rewards: tuple[float | None, ...] = REWARDS, **options: Any
) -> GRPOTrainer | RLOOTrainer:
    """GRPO's policy "responds" with RESPONSES; RLOO's samples some itself, on which its advantages
    do not depend.
    """
    config, trainer = {"GRPO": (GRPOConfig, GRPOTrainer), "RLOO": (RLOOConfig, RLOOTrainer)}[kind]
    given = {"rollout_func": canned_responses} if kind == "GRPO" else {}
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint),
        reward_funcs=lambda completions, **_: list(rewards),
        args=config(
            output_dir=str(output),
            per_device_train_batch_size=len(RESPONSES),
            num_generations=GROUP,
            max_completion_length=LONGEST,
            use_cpu=True,
            bf16=False,
            report_to=[],
            **options,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * len(RESPONSES)}),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
        **given,
    )


def canned_responses(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[list[float]]]:
    return {
        "prompt_ids": [list(PROMPT)] * len(RESPONSES),
        "completion_ids": [list(ids) for ids in RESPONSES],
        "logprobs": [[-1.0] * len(ids) for ids in RESPONSES],
    }


def scored_by(trainer: Any) -> dict[str, torch.Tensor]:
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": "a"}] * len(RESPONSES))


def ours_of(advantages: Any, settings: AlgorithmSettings, rewards: tuple[float | None, ...]) -> list[float]:
    """Our advantages with 0 where there is none: a sample that could not be scored never reaches an
    algorithm.
    """
    known = [index for index, reward in enumerate(rewards) if reward is not None]
    samples = [RewardedSample(str(index // GROUP), rewards[index], len(RESPONSES[index])) for index in known]
    by_index = dict(zip(known, advantages(samples, settings), strict=True))
    return [by_index.get(index, 0.0) for index in range(len(rewards))]


# --------------------------------------------------------------------------------------- advantages

REWARD_CASES = [
    REWARDS,
    (0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0),  # one group says nothing
    (1.0, None, None, None, 0.25, 0.5, None, 1.0),  # one sample is left of a group
    (-1.0, 1.0, 3.5, 0.1, 0.1, 0.2, 0.3, 0.4),
]


@pytest.mark.parametrize("rewards", REWARD_CASES)
@pytest.mark.parametrize("normalize", [True, False])
def test_grpo_advantages(
    checkpoint: Path, tmp_path: Path, rewards: tuple[float | None, ...], normalize: bool
) -> None:
    trainer = trainer_of(
        "GRPO", checkpoint, tmp_path, rewards, scale_rewards="group" if normalize else "none"
    )
    expected = scored_by(trainer)["advantages"]
    ours = ours_of(grpo.advantages, grpo.GRPOSettings(normalize_std=normalize), rewards)
    torch.testing.assert_close(torch.tensor(ours), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rewards", REWARD_CASES)
def test_rloo_advantages(checkpoint: Path, tmp_path: Path, rewards: tuple[float | None, ...]) -> None:
    expected = scored_by(trainer_of("RLOO", checkpoint, tmp_path, rewards, beta=0.0))["advantages"]
    torch.testing.assert_close(
        torch.tensor(ours_of(rloo.advantages, rloo.RLOOSettings(), rewards)), expected, rtol=1e-5, atol=1e-6
    )


# ------------------------------------------------------------------------------------------- losses


def disturbed(
    inputs: dict[str, torch.Tensor], logprobs: torch.Tensor, *, masked: bool
) -> dict[str, torch.Tensor]:
    """The same samples from an older policy, whose ratios fall on both sides of the clip range; and
    a reference.
    """
    generator = torch.Generator().manual_seed(5)
    old = logprobs + 0.4 * torch.randn(logprobs.shape, generator=generator)
    frozen = logprobs + 0.5 * torch.randn(logprobs.shape, generator=generator)
    engine = old + 0.4 * torch.randn(logprobs.shape, generator=generator)
    ratio = (old - engine).exp()
    outside = (ratio < MASK[0]) | (ratio > MASK[1])
    return inputs | {
        "old_per_token_logps": old,
        "ref_per_token_logps": frozen,
        "sampling_per_token_logps": engine,
        # as TRL's modes token_mask and token_truncate make it
        "importance_sampling_ratio": ratio.masked_fill(outside, 0.0) if masked else ratio.clamp(max=CAP),
    }


def ragged(padded: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row[: len(ids)].tolist()) for row, ids in zip(padded, RESPONSES, strict=True))


def our_loss(
    inputs: dict[str, torch.Tensor],
    logprobs: torch.Tensor,
    entropies: torch.Tensor,
    settings: AlgorithmSettings,
) -> PolicyLoss:
    mask = inputs["completion_mask"].bool()
    batch = micro_batch(
        prompts=(PROMPT,) * len(RESPONSES),
        responses=RESPONSES,
        old=ragged(inputs["old_per_token_logps"]),
        rollout=ragged(inputs["sampling_per_token_logps"]),
        advantages=tuple(
            (a,) * len(ids) for a, ids in zip(inputs["advantages"].tolist(), RESPONSES, strict=True)
        ),
        weights=(1.0,) * len(RESPONSES),
        reference=ragged(inputs["ref_per_token_logps"]),
    )
    scale = LossScale(int(mask.sum()), len(RESPONSES), LONGEST)
    return training_loss(logprobs[mask], entropies[mask], to_tensors(batch), settings, scale)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("form", "aggregation"),
    [("grpo", "sequence-mean"), ("dr_grpo", "constant"), ("bnpo", "token-mean"), ("dapo", "token-mean")],
)
def test_loss_forms(
    checkpoint: Path, tmp_path: Path, form: str, aggregation: str, level: str, penalty: float
) -> None:
    """Value and gradient. `level` sequence is GSPO, whose loss form is `grpo`."""
    options = {
        "loss_type": form,
        "importance_sampling_level": level,
        "beta": penalty,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
    }
    assert_same_loss(
        # Without the correction the penalty is GRPO's own; with it, it would be weighted by the
        # clipped term's ratio.
        trainer_of("GRPO", checkpoint, tmp_path, use_bias_correction_kl=False, **options),
        AlgorithmSettings(
            ratio=level,
            loss_aggregation=aggregation,
            clip_low=0.2,
            clip_high=0.28,
            kl=KLSettings(coefficient=penalty),
        ),
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_dual_clip(checkpoint: Path, tmp_path: Path, level: str) -> None:
    """TRL's delta. Without it the loss of tokens is another; no response's ratio is that high."""
    options = {"loss_type": "bnpo", "importance_sampling_level": level, "beta": 0.0, "delta": 1.25}
    assert_same_loss(
        trainer_of("GRPO", checkpoint, tmp_path, **options),
        AlgorithmSettings(loss_aggregation="token-mean", ratio=level, dual_clip=1.25),
    )
    if level == "token":
        with pytest.raises(AssertionError):
            assert_same_loss(trainer_of("GRPO", checkpoint, tmp_path, **options), AlgorithmSettings())


def test_entropy_bonus(checkpoint: Path, tmp_path: Path) -> None:
    """A mean over tokens, also where the policy's term is a mean over responses."""
    trainer = trainer_of("GRPO", checkpoint, tmp_path, loss_type="grpo", beta=0.0, entropy_coef=0.1)
    assert_same_loss(trainer, AlgorithmSettings(loss_aggregation="sequence-mean", entropy_coefficient=0.1))


def test_truncated_importance_weights(checkpoint: Path, tmp_path: Path) -> None:
    trainer = trainer_of("GRPO", checkpoint, tmp_path, loss_type="bnpo", beta=0.0)
    assert_same_loss(trainer, AlgorithmSettings(old_logprobs="learner", importance_cap=CAP), corrected=True)


def test_masked_importance_weights(checkpoint: Path, tmp_path: Path) -> None:
    """IcePop is TRL's mode token_mask."""
    trainer = trainer_of("GRPO", checkpoint, tmp_path, loss_type="bnpo", beta=0.0)
    mask = ImportanceMaskSettings(low=MASK[0], high=MASK[1])
    assert_same_loss(trainer, AlgorithmSettings(old_logprobs="learner", importance_mask=mask), corrected=True)


def test_cispo(checkpoint: Path, tmp_path: Path) -> None:
    """TRL's epsilon_high is the cap of the ratio itself; it has no lower bound."""
    trainer = trainer_of("GRPO", checkpoint, tmp_path, loss_type="cispo", beta=0.0, epsilon_high=1.3)
    assert_same_loss(trainer, AlgorithmSettings(loss=CISPOLoss(high=1.3)))


def assert_same_loss(trainer: GRPOTrainer, settings: AlgorithmSettings, *, corrected: bool = False) -> None:
    inputs = scored_by(trainer)
    # only now: it shall not start an engine
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = corrected
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logprobs, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, attention, LONGEST, compute_entropy=True
    )
    inputs = disturbed(inputs, logprobs.detach(), masked=settings.importance_mask is not None)
    trainer.current_gradient_accumulation_steps = 1

    theirs = trainer._compute_loss(trainer.model, inputs)
    ours = our_loss(inputs, logprobs, entropies, settings)
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-7)
    parameters = list(trainer.model.parameters())
    expected = torch.autograd.grad(theirs, parameters, allow_unused=True, materialize_grads=True)
    gradients = torch.autograd.grad(ours.loss, parameters, allow_unused=True, materialize_grads=True)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    for mine, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)
    logged = trainer._metrics["train"]
    if settings.ratio == "token" and settings.loss is None:
        for name in ("low", "high"):
            assert ours.sums[f"clip_fraction_{name}"].item() == pytest.approx(
                logged[f"clip_ratio/{name}_mean"][-1], abs=1e-6
            )
        assert ours.sums["clip_fraction_low"] + ours.sums["clip_fraction_high"] > 0
    if settings.kl.coefficient:
        assert ours.sums["kl_reference"].item() == pytest.approx(logged["kl"][-1], rel=1e-5)


# ------------------------------------------------------------------------------------------ shaping


def test_soft_overlong_punishment() -> None:
    lengths = [1, 79, 80, 81, 90, 99, 100]
    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)(
        [[1] * length for length in lengths]
    )
    ours = [shaped_reward(0.0, length, 100, OverlongSettings(buffer_tokens=20)) for length in lengths]
    assert ours == pytest.approx(theirs)
