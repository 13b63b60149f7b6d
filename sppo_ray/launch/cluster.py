"""Join or start the Ray cluster of a run."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo_ray.config import RunConfig
from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.errors import UserError
from sppo_ray.launch.reaper import GIVE_UP_S, MARK
from sppo_ray.planning.resources import Bundle, Resources, require_feasible, resolve_device

CONNECT_S = 5.0
_KIND = "accelerator_type:"
RAY_ENVIRONMENT = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def ray_session(config: RunConfig) -> Iterator[list[Resources]]:
    """Join the configured cluster, or start a local one that ends with the block. In a process that
    has called `ray.init` already, use that session and leave it open. Yields each node's logical
    resources.
    """
    for key, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if session_is_open():
        yield _live_nodes()
        return
    # the latter is set for a Ray job's entrypoint
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        require_reachable(address)
    options: dict[str, Any] = {
        "log_to_driver": config.cluster.actor_output,
        "logging_level": "ERROR",
        "namespace": "sppo-ray",
    }
    if address:
        options["address"] = address
    else:
        options |= {
            "address": "local",
            "num_cpus": config.cluster.local_cpus or os.cpu_count(),
            "include_dashboard": False,
        }
    with contextlib.nullcontext() if address else _reaped():
        yield from _session(options, address)


def session_is_open() -> bool:
    """Whether this process is connected to Ray, by `ray.init` of the caller."""
    # not imported for the answer; while another thread imports it, the function is missing
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and is_initialized()


def starts_cluster(config: RunConfig) -> bool:
    """Whether the run starts a local cluster of its own, rather than joining one."""
    return not (session_is_open() or config.cluster.address or os.environ.get("RAY_ADDRESS"))


def require_reachable(address: str) -> None:
    """Raise UserError when nothing listens at the address of a cluster: Ray itself would try for
    minutes. "auto" and Ray client addresses are left to Ray.
    """
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{address} is a Ray job server, which takes jobs: send the run there with sppo-ray submit, or "
            "join the cluster itself at HOST:6379 (cluster.address or RAY_ADDRESS)"
        )
    if address in ("auto", "local") or address.startswith("ray://"):
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(
            f"{address!r} is not an address of a Ray cluster: give HOST:PORT of its head, usually HOST:6379 "
            "(cluster.address or RAY_ADDRESS)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}): start its head (ray start --head), or unset "
            "cluster.address and RAY_ADDRESS to use a local one"
        ) from None


@contextlib.contextmanager
def cluster_with_room(
    config: RunConfig,
    bundles: Sequence[Bundle],
    check: Callable[[str, Sequence[Resources]], None] = lambda device, nodes: None,
    *,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[str]:
    """`ray_session` on a cluster that `bundles` fit on. Yields what config.device means there:
    "cpu" or "cuda". `check` gets that and the nodes before, and may refuse them. `report`
    is told when the run leaves the cluster's GPUs idle.

    Raises UserError with the required and available resources, and the remedy, when they do not
    fit.
    """
    with ray_session(config) as nodes:
        require_feasible(config, nodes, bundles)
        if note := idle_gpus(config, nodes):
            report(note)
        device = resolve_device(config, nodes)
        check(device, nodes)
        yield device


def idle_gpus(config: RunConfig | EvaluationConfig, nodes: Sequence[Resources]) -> str | None:
    """Return what `device: auto` does on a cluster with GPUs when no role asks for one; else
    None.
    """
    gpus = sum(node.gpus for node in nodes)
    if config.device != "auto" or config.logical_gpus() > 0 or gpus == 0:
        return None
    return (
        f"the cluster has {gpus:g} GPU(s), but no role asks for one, so everything runs on CPUs: set "
        "rollout.gpus_per_worker, learner.gpus_per_rank and critic.gpus_per_rank, or device to cpu"
    )


def _session(options: dict[str, Any], address: str | None) -> Iterator[list[Resources]]:
    import ray

    try:
        ray.init(**options)
    except Exception as error:  # boundary
        # Ray raises plain Exceptions too, e.g. when a busy machine starts it too slowly
        if address:
            remedy = "is its head running, and is RAY_AUTH_MODE the same here and there?"
            raise UserError(f"cannot reach the Ray cluster at {address}: {error}: {remedy}") from None
        raise UserError(
            f"cannot start a local Ray cluster: {error}: Ray gives its processes 30 s, which an overloaded "
            "machine or a full disk exceeds: end other work or free space, and start again"
        ) from None
    try:
        yield _live_nodes()
    finally:
        ray.shutdown()


def _live_nodes() -> list[Resources]:
    import ray

    live = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Resources(node.get("CPU", 0.0), node.get("GPU", 0.0), _accelerator(node)) for node in live]


def _accelerator(resources: Mapping[str, float]) -> str:
    """Return the kind of GPU that Ray names, e.g. "H100" of `accelerator_type:H100`."""
    names = (name.removeprefix(_KIND) for name in resources if name.startswith(_KIND))
    return next(names, "")


@contextlib.contextmanager
def _reaped() -> Iterator[None]:
    """Kill all processes that the block leaves behind, even when this process is killed
    (`reaper.py`).
    """
    mark = secrets.token_hex(16)
    reaper = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("reaper.py")), mark],
        stdin=subprocess.PIPE,
        start_new_session=True,  # survives a signal to the driver's group
    )
    assert reaper.stdin is not None
    # All later child processes inherit it. Ray's agents write their process titles over the start
    # of their environment, which could erase the mark; SPT_NOENV makes setproctitle use only the
    # space of the arguments.
    marks = {MARK: mark, "SPT_NOENV": "1"}
    os.environ |= marks
    try:
        yield
    finally:
        for name in marks:
            del os.environ[name]
        reaper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it continues on its own
            reaper.wait(timeout=GIVE_UP_S)
