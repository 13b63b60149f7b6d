"""The state machine of roles that share GPUs: no walk through it overfills a GPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.protocols import Holds
from sppo_ray.trainer.phases import NEEDS, IllegalPhase, Move, Phase, Residency, applied, moves

PHASES = st.lists(st.sampled_from(list(Phase)), max_size=40)


@given(PHASES)
def test_no_walk_has_a_kv_cache_awake_beside_optimizer_states(walk: list[Phase]) -> None:
    """Every phase, and every moment between two moves; a phase that must not follow is skipped."""
    phase, residency = Phase.REST, NEEDS[Phase.REST]
    for wanted in walk:
        try:
            planned = moves(phase, wanted)
        except IllegalPhase:
            continue
        for move in planned:
            residency = applied(residency, move)
            optimizers = [tenant for tenant in (residency.learner, residency.critic) if tenant is Holds.ALL]
            assert not (residency.engines is Holds.ALL and optimizers)
            assert len(optimizers) <= 1
            assert residency.is_legal
        phase = wanted
        assert residency == NEEDS[phase]


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.REST])
def test_a_fault_leads_to_rest_from_every_phase(phase: Phase) -> None:
    assert all(move.to is Holds.NOTHING for move in moves(phase, Phase.REST))


def test_the_moves_of_a_step() -> None:
    step = [Phase.GENERATE, Phase.POLICY, Phase.CRITIC, Phase.PUBLISH, Phase.GENERATE]
    assert [moves(*pair) for pair in zip(step, step[1:], strict=False)] == [
        (Move("engines", Holds.NOTHING), Move("learner", Holds.ALL)),
        (Move("learner", Holds.NOTHING), Move("critic", Holds.ALL)),
        (Move("critic", Holds.NOTHING), Move("learner", Holds.WEIGHTS)),
        (Move("learner", Holds.NOTHING), Move("engines", Holds.ALL)),
    ]
    # without a critic only the optimizer leaves before the learner publishes
    assert moves(Phase.POLICY, Phase.PUBLISH) == (Move("learner", Holds.WEIGHTS),)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Phase.POLICY, Phase.GENERATE),  # the engines would serve a version that was not published
        (Phase.CRITIC, Phase.GENERATE),
        (Phase.GENERATE, Phase.PUBLISH),
        (Phase.PUBLISH, Phase.POLICY),
        (Phase.GENERATE, Phase.GENERATE),
    ],
)
def test_a_phase_out_of_order_is_refused(before: Phase, after: Phase) -> None:
    with pytest.raises(IllegalPhase, match=f"{after} after {before}"):
        moves(before, after)


def test_what_is_legal() -> None:
    every = [Residency(e, p, c) for e in Holds for p in Holds for c in Holds]
    illegal = [one for one in every if not one.is_legal]
    # both optimizers beside 3 states of the engines; a KV cache beside one optimizer, 2 + 2
    assert len(illegal) == 3 + 2 + 2
    assert Residency(engines=Holds.ALL, critic=Holds.WEIGHTS).is_legal  # the critic values prompts
