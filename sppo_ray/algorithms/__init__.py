"""Maps the config's `algorithm.type` to an algorithm. docs/algorithms.md explains how to add one.

Importing this package does not import torch, so the driver and the command line start fast. Only
the loss modules import torch, and only the actors import the loss modules.
"""

from __future__ import annotations

from collections.abc import Mapping

from sppo_ray.algorithms import grpo, ppo, reinforce, reinforce_pp, remax, rloo, sao, spo, sppo
from sppo_ray.algorithms.base import AlgorithmSpec

ALGORITHMS: Mapping[str, AlgorithmSpec] = {
    "sppo": AlgorithmSpec(sppo.SPPOSettings, sppo.advantages, needs="sample", critic="prompt"),
    "ppo": AlgorithmSpec(ppo.PPOSettings, ppo.advantages, needs="step", critic="token", returns=ppo.returns),
    "sao": AlgorithmSpec(sao.SAOSettings, sao.advantages, needs="step", critic="token", returns=sao.returns),
    "spo": AlgorithmSpec(spo.SPOSettings, spo.advantages, needs="step"),
    "grpo": AlgorithmSpec(grpo.GRPOSettings, grpo.advantages, needs="group"),
    "rloo": AlgorithmSpec(rloo.RLOOSettings, rloo.advantages, needs="group"),
    "remax": AlgorithmSpec(remax.ReMaxSettings, remax.advantages, needs="sample", greedy_baseline=True),
    "reinforce": AlgorithmSpec(reinforce.REINFORCESettings, reinforce.advantages, needs="step"),
    "reinforce++": AlgorithmSpec(reinforce_pp.ReinforcePPSettings, reinforce_pp.advantages, needs="step"),
}
