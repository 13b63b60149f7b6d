"""Sequence-Level PPO (arXiv 2604.08865) in one process, for reading and as reference for the parity
tests.

A whole response is one action. The critic reads only the prompt and predicts the probability that
the policy solves it:

    V(x) = sigmoid(critic(x))      A = R - V(x)          one number for all tokens of a response
    policy loss = - mean over tokens of min(r_t A, clip(r_t, 1 - eps, 1 + eps) A),   r_t = pi(y_t) / pi_old(y_t)
    critic loss = BCE(critic(x), R)

It uses one response per prompt and no groups, GAE, whitening or KL. It is not distributed and does
not import `sppo_ray.algorithms`, so it is an independent reference.

    python tests/reference_sppo.py --steps 100 --seed 1

Suffixes of tensor names: B samples, T tokens (padded), V vocabulary, D hidden size.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sppo_ray.environments import running_sum
from sppo_ray.models.bundled import resolve_model

TokenIds = Sequence[int]


@dataclass(frozen=True)
class Sample:
    prompt_ids: TokenIds
    response_ids: TokenIds  # EOS included, unless it was cut at the limit
    old_logprobs: Sequence[float]  # of the response's tokens, under the weights that sampled them
    reward: float  # in [0, 1]
    value: float  # V(prompt) before the update

    @property
    def advantage(self) -> float:
        return self.reward - self.value


class PromptCritic(nn.Module):
    """A causal LM without its head, with one logit at the last token of the prompt. A new critic
    predicts V = 0.5 for every prompt.
    """

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        self.trunk = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        self.head = nn.Linear(self.trunk.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, prompt_ids: Sequence[TokenIds]) -> Tensor:
        """Return the value logits, [B]."""
        ids_BT, mask_BT = pad_right(prompt_ids)
        hidden_BTD = self.trunk(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        # by length: it does not matter what pads, or where
        last_B = torch.tensor([len(ids) - 1 for ids in prompt_ids])
        return self.head(hidden_BTD[torch.arange(len(prompt_ids)), last_B]).squeeze(-1)


def pad_right(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.long) -> tuple[Tensor, Tensor]:
    """Return the rows as one tensor [B, T] with zeros at the end, and the mask [B, T] of real
    entries.
    """
    longest = max(len(row) for row in rows)
    padded_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return padded_BT, mask_BT


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel, prompt_ids: Sequence[TokenIds], max_tokens: int, temperature: float
) -> list[list[int]]:
    """Sample one response per prompt from softmax(logits / temperature), EOS included."""
    eos, longest = model.config.eos_token_id, max(len(ids) for ids in prompt_ids)
    # on the left: all rows go on at the end
    padded = [[eos] * (longest - len(ids)) + list(ids) for ids in prompt_ids]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids]
    how = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    ids_BT = model.generate(torch.tensor(padded), attention_mask=torch.tensor(mask), generation_config=how)
    return [row[: row.index(eos) + 1] if eos in row else row for row in ids_BT[:, longest:].tolist()]


def sequence_logprobs(
    model: PreTrainedModel,
    prompt_ids: Sequence[TokenIds],
    response_ids: Sequence[TokenIds],
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the log-probs of the response tokens, [B, T], and the mask of real tokens, [B, T]. T
    counts response tokens only.
    """
    ids_BT, attention_BT = pad_right([[*p, *r] for p, r in zip(prompt_ids, response_ids, strict=True)])
    logits_BTV = (
        model(input_ids=ids_BT, attention_mask=attention_BT, use_cache=False).logits.float() / temperature
    )
    responses_BT, mask_BT = pad_right(response_ids)
    starts_B1 = torch.tensor([[len(p)] for p in prompt_ids])
    # The logits at position t - 1 are those of token t. Past a row's end any position serves: the
    # mask drops it.
    before_BT = (starts_B1 - 1 + torch.arange(responses_BT.shape[1])).clamp(max=ids_BT.shape[1] - 1)
    logits_BTV = logits_BTV[torch.arange(len(prompt_ids))[:, None], before_BT]
    return logits_BTV.log_softmax(-1).gather(-1, responses_BT[..., None]).squeeze(-1), mask_BT


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    ratio_BT = (logprobs_BT - old_logprobs_BT).exp()
    advantages_B1 = advantages_B[:, None]
    gain_BT = torch.minimum(
        ratio_BT * advantages_B1, ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_B1
    )
    return -(gain_BT * mask_BT).sum() / mask_BT.sum()


def critic_loss(value_logits_B: Tensor, rewards_B: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(value_logits_B, rewards_B)


def update_policy(
    model: PreTrainedModel,
    optimizer: Optimizer,
    samples: Sequence[Sample],
    *,
    temperature: float = 1.0,
    clip: float = 0.2,
) -> float:
    """Do one optimizer step on a minibatch. Returns the loss before it."""
    prompts, responses = [s.prompt_ids for s in samples], [s.response_ids for s in samples]
    logprobs_BT, mask_BT = sequence_logprobs(model, prompts, responses, temperature)
    old_BT, _ = pad_right([s.old_logprobs for s in samples], torch.float32)
    loss = policy_loss(logprobs_BT, old_BT, torch.tensor([s.advantage for s in samples]), mask_BT, clip, clip)
    return descend(model, optimizer, loss)


def update_critic(
    critic: PromptCritic, optimizer: Optimizer, prompt_ids: Sequence[TokenIds], rewards: Sequence[float]
) -> float:
    return descend(critic, optimizer, critic_loss(critic(prompt_ids), torch.tensor(rewards)))


def descend(model: nn.Module, optimizer: Optimizer, loss: Tensor, grad_clip: float = 1.0) -> float:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    return loss.item()


class RunningSum:
    """Prompts and rewards of the running-sum task."""

    def __init__(self, checkpoint: str, seed: int) -> None:
        self.tokenizer, self.seed = AutoTokenizer.from_pretrained(checkpoint), seed

    def draw(self, indices: range) -> tuple[list[list[int]], list[str]]:
        texts, answers = zip(
            *(running_sum.generate_example(i, seed=self.seed, max_operands=8) for i in indices), strict=True
        )
        return self.tokenizer([self.tokenizer.bos_token + text for text in texts])["input_ids"], list(answers)

    def rewards(self, response_ids: Sequence[TokenIds], answers: Sequence[str]) -> list[float]:
        texts = self.tokenizer.batch_decode(response_ids, skip_special_tokens=True)
        return [
            float(text.endswith(f"\\boxed{{{int(answer):02d}}}"))
            for text, answer in zip(texts, answers, strict=True)
        ]


def rollout(
    model: PreTrainedModel, critic: PromptCritic, task: RunningSum, indices: range, max_tokens: int = 80
) -> list[Sample]:
    prompt_ids, answers = task.draw(indices)
    responses = sample_responses(model, prompt_ids, max_tokens, 1.0)
    with torch.no_grad():
        logprobs_BT, _ = sequence_logprobs(model, prompt_ids, responses, 1.0)
        values = critic(prompt_ids).sigmoid().tolist()
    old = [row[: len(ids)] for row, ids in zip(logprobs_BT.tolist(), responses, strict=True)]
    return [
        Sample(*fields)
        for fields in zip(prompt_ids, responses, old, task.rewards(responses, answers), values, strict=True)
    ]


def accuracy(samples: Sequence[Sample]) -> float:
    return sum(s.reward for s in samples) / len(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=130)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=10)
    parser.add_argument("--model", default="builtin:running-sum")
    args = parser.parse_args()
    batch, minibatch, warmup_steps = 256, 64, 3

    # the critic leaves the language head unread, and is right to
    transformers_logging.set_verbosity_error()
    torch.manual_seed(args.seed)
    checkpoint = str(resolve_model(args.model))
    policy, critic = (
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        PromptCritic(checkpoint),
    )
    train, held_out = RunningSum(checkpoint, args.seed), RunningSum(checkpoint, running_sum.HELD_OUT_SEED)
    adam = {"betas": (0.9, 0.95), "weight_decay": 0.0}
    learn_policy, learn_critic = AdamW(policy.parameters(), **adam), AdamW(critic.parameters(), **adam)

    seconds = 0.0
    for step in range(args.steps + 1):
        if step % args.eval_every == 0 or step == args.steps:
            figure = accuracy(rollout(policy, critic, held_out, range(256)))
            print(f"step {step:4d}  {seconds:6.1f} s  held-out accuracy {figure:.3f}", flush=True)
        if step == args.steps:
            break
        start = time.perf_counter()
        decay = 1 - 0.9 * step / args.steps  # in a straight line to a tenth
        learn_policy.param_groups[0]["lr"], learn_critic.param_groups[0]["lr"] = 5e-4 * decay, 1e-3 * decay
        samples = rollout(policy, critic, train, range(step * batch, (step + 1) * batch))
        for part in (samples[i : i + minibatch] for i in range(0, batch, minibatch)):
            update_critic(critic, learn_critic, [s.prompt_ids for s in part], [s.reward for s in part])
            if step >= warmup_steps:
                update_policy(policy, learn_policy, part)
        seconds += time.perf_counter() - start


if __name__ == "__main__":
    main()
