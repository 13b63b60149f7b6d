"""The Ray cluster of a run: join it or start it, and reserve a place for each actor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_ray.config import RunConfig
from sppo_ray.errors import UserError
from sppo_ray.launch.reaper import GIVE_UP_S, MARK
from sppo_ray.resources import Bundle, Resources, bundles_of, require_feasible, resolve_device

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

RAY_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def ray_session(config: RunConfig) -> Iterator[list[Resources]]:
    """Join the configured cluster, or start a local one that ends with the block. Yields each node's logical resources."""
    for key, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")  # the latter is set for a Ray job's entrypoint
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "sppo-ray"}
    if address:
        options["address"] = address
    else:
        options |= {"address": "local", "num_cpus": config.cluster.local_cpus or os.cpu_count(), "include_dashboard": False}
    with contextlib.nullcontext() if address else _reaped():
        yield from _session(options, address)


@contextlib.contextmanager
def cluster_with_room(config: RunConfig, bundles: Sequence[Bundle]) -> Iterator[str]:
    """`ray_session` on a cluster that `bundles` fit on. Yields what config.device means there: "cpu" or "cuda".

    Raises UserError with the sums and the way out when they do not fit.
    """
    with ray_session(config) as nodes:
        require_feasible(config, nodes, bundles)
        yield resolve_device(config, nodes)


def _session(options: dict[str, Any], address: str | None) -> Iterator[list[Resources]]:
    import ray

    try:
        ray.init(**options)
    except Exception as error:  # boundary: Ray raises plain Exceptions too, e.g. when a busy machine starts it too slowly
        if address:
            remedy = "is its head running, and is RAY_AUTH_MODE the same here and there?"
            raise UserError(f"cannot reach the Ray cluster at {address}: {error}: {remedy}") from None
        raise UserError(f"cannot start a local Ray cluster: {error}: is the machine overloaded, or its disk full?") from None
    try:
        live = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield [Resources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in live]
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _reaped() -> Iterator[None]:
    """Whatever the block starts and leaves behind is killed, also when this process is (`reaper.py`)."""
    mark = secrets.token_hex(16)
    reaper = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("reaper.py")), mark],
        stdin=subprocess.PIPE,
        start_new_session=True,  # not killed with the driver's group
    )
    assert reaper.stdin is not None
    # Inherited by all that is started from here on. Ray's agents write their titles over their environment, and would write
    # over the mark too, were it among the first 400 bytes: SPT_NOENV tells their setproctitle to keep to the arguments' room.
    marks = {MARK: mark, "SPT_NOENV": "1"}
    os.environ |= marks
    try:
        yield
    finally:
        for name in marks:
            del os.environ[name]
        reaper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on by itself
            reaper.wait(timeout=GIVE_UP_S)


async def place(config: RunConfig, bundles: Sequence[Bundle] | None = None) -> PlacementGroup:
    """Reserve a bundle for each actor (`bundles`: None = all of the run's).

    Raises UserError when the cluster is busy for longer than ready_timeout_s.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    bundles = bundles_of(config) if bundles is None else bundles
    group = placement_group([bundle.as_ray() for bundle in bundles], strategy=config.cluster.placement.upper())
    try:
        await asyncio.wait_for(_awaited(group.ready()), config.cluster.ready_timeout_s)
    except TimeoutError:
        free = ray.available_resources()
        remove_placement_group(group)
        raise UserError(
            f"waited {config.cluster.ready_timeout_s:.0f} s for {sum(b.cpus for b in bundles):g} CPUs and "
            f"{sum(b.gpus for b in bundles):g} GPUs, free are "
            f"{free.get('CPU', 0):g} and {free.get('GPU', 0):g}: another job holds the rest; stop it, add nodes, or "
            "raise cluster.ready_timeout_s"
        ) from None
    return group


async def _awaited(reference: Any) -> Any:
    return await reference
