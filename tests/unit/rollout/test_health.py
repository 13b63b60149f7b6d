"""The worker health machine, without Ray and without a clock."""

from __future__ import annotations

import itertools

import pytest

from sppo_ray.rollout.health import (
    Event,
    Health,
    IllegalTransition,
    RestartBudget,
    Vitals,
    WorkerHealth,
    restart_delay_s,
)


def after(*events: Event | tuple[Event, int]) -> WorkerHealth:
    health = WorkerHealth()
    for event in events:
        health = health.after(*event) if isinstance(event, tuple) else health.after(event)
    return health


def test_a_new_worker_serves_only_after_a_verified_sync() -> None:
    assert not after(Event.STARTED).takes_work
    healthy = after(Event.STARTED, (Event.SYNCED, 7))
    assert healthy.takes_work and healthy.version == 7


def test_a_dead_worker_comes_back_through_stale_and_forgets_its_version() -> None:
    dead = after(Event.STARTED, (Event.SYNCED, 7), Event.DIED)
    assert dead.state is Health.DEAD and dead.version is None
    back = dead.after(Event.RESTART).after(Event.STARTED)
    assert (back.state, back.restarts, back.version) == (Health.STALE, 1, None)
    assert back.after(Event.SYNCED, 9).takes_work


def test_a_suspect_keeps_its_version_and_recovers_or_dies() -> None:
    suspect = after(Event.STARTED, (Event.SYNCED, 2), Event.SUSPECTED)
    assert not suspect.takes_work and suspect.version == 2
    assert suspect.after(Event.RECOVERED).takes_work
    assert suspect.after(Event.DIED).state is Health.DEAD


def test_no_path_from_dead_to_healthy_avoids_a_sync() -> None:
    """Every sequence of up to five events after a death: work is taken only if a SYNCED came
    since.
    """
    dead = after(Event.STARTED, (Event.SYNCED, 1), Event.DIED)
    for events in itertools.product(Event, repeat=5):
        health, synced = dead, False
        for event in events:
            try:
                health = health.after(event, 5 if event is Event.SYNCED else None)
            except IllegalTransition:
                break
            synced = (synced or event is Event.SYNCED) and event is not Event.DIED
            assert not health.takes_work or synced, events


def test_a_pending_worker_comes_up_through_a_verified_sync() -> None:
    pending = WorkerHealth(Health.PENDING)
    with pytest.raises(IllegalTransition):
        pending.after(Event.STARTED)  # nothing starts without a place
    placed = pending.after(Event.PLACED)
    assert (placed.state, placed.restarts) == (Health.RESTARTING, 0)
    assert placed.after(Event.STARTED).after(Event.SYNCED, 4).takes_work


@pytest.mark.parametrize("before", [(), (Event.SUSPECTED,)])
def test_a_draining_worker_is_synced_and_takes_no_more_work(before: tuple[Event, ...]) -> None:
    draining = after(Event.STARTED, (Event.SYNCED, 2), *before, Event.DRAIN)
    assert draining.holds_weights and not draining.takes_work and not draining.is_gone
    synced = draining.after(Event.SYNCED, 3)
    assert (synced.state, synced.version) == (Health.DRAINING, 3)
    dead = synced.after(Event.DIED)
    assert (dead.state, dead.version) == (Health.RETIRED, None)  # there is nothing to bring back


def test_a_draining_worker_never_takes_work_again() -> None:
    draining = after(Event.STARTED, (Event.SYNCED, 1), Event.DRAIN)
    for events in itertools.product(Event, repeat=3):
        health = draining
        for event in events:
            try:
                health = health.after(event, 5 if event is Event.SYNCED else None)
            except IllegalTransition:
                break
            assert health.state in (Health.DRAINING, Health.RETIRED), events


@pytest.mark.parametrize("state", [Health.PENDING, Health.RESTARTING, Health.STALE, Health.DEAD])
def test_only_a_serving_worker_can_drain(state: Health) -> None:
    with pytest.raises(IllegalTransition):
        WorkerHealth(state).after(Event.DRAIN)


def test_retired_is_final() -> None:
    retired = after(Event.STARTED).after(Event.RETIRE)
    for event in (Event.STARTED, Event.RESTART, Event.DIED, Event.PLACED, Event.DRAIN):
        with pytest.raises(IllegalTransition):
            retired.after(event)


def test_a_version_comes_with_synced_and_only_with_it() -> None:
    stale = after(Event.STARTED)
    with pytest.raises(IllegalTransition):
        stale.after(Event.SYNCED)
    with pytest.raises(IllegalTransition):
        stale.after(Event.DIED, 3)


def test_back_off_doubles_to_its_limit() -> None:
    assert [restart_delay_s(n) for n in (0, 1, 2, 3, 10)] == [1.0, 2.0, 4.0, 8.0, 60.0]


LIMITS = {"probe_timeout_s": 30.0, "stall_timeout_s": 300.0}


def test_a_frozen_worker_is_detected_by_probes() -> None:
    vitals = Vitals.starting(100.0)
    # what was under way in pipes still arrives; it is no answer to a probe
    for now in (110.0, 120.0, 130.0):
        vitals.progressed(now)
    assert vitals.finding(114.9, has_work=True, **LIMITS).is_suspect is False  # 14.9 s < 30 s / 2
    assert vitals.finding(115.0, has_work=True, **LIMITS).is_suspect
    found = vitals.finding(131.0, has_work=True, **LIMITS)
    assert found.is_dead and found.what == "answered no probe for 31 s: frozen, or cut off"


def test_a_stuck_engine_that_answers_probes_is_detected_by_progress() -> None:
    vitals = Vitals.starting(0.0)
    for now in range(0, 305, 5):
        # the counter was 7 at second 0 and never again another
        vitals.answered(float(now), counter=7)
    # fine
    assert vitals.finding(149.0, has_work=True, **LIMITS) == vitals.finding(300.0, has_work=False, **LIMITS)
    assert vitals.finding(150.0, has_work=True, **LIMITS).is_suspect
    found = vitals.finding(300.0, has_work=True, **LIMITS)
    assert found.is_dead and found.what == "answers probes but made no token for 300 s: engine stuck"
    vitals.answered(300.0, counter=8)
    assert not vitals.finding(301.0, has_work=True, **LIMITS).is_suspect


def test_time_without_checks_does_not_count() -> None:
    vitals = Vitals.starting(0.0)
    vitals.forgive(1000.0)  # the driver itself was frozen
    finding = vitals.finding(1005.0, has_work=True, **LIMITS)
    assert not finding.is_dead and not finding.is_suspect


def test_a_restart_is_forgotten_after_its_window() -> None:
    budget = RestartBudget(window_s=60.0)
    for now in (0.0, 10.0, 50.0):
        budget.spend(now)
    # 0 and 10 lie in the last 60 s of second 59; at 60 the first has left, at 70 the second, at 110
    # the third.
    assert [budget.spent(now) for now in (59.0, 60.0, 70.0, 110.0)] == [3, 2, 1, 0]
