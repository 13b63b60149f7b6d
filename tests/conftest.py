"""The environment of all tests: no network, one thread per process, and one real Ray cluster.

The environment is set on import, before a test module can import torch, Ray or vLLM. Ray workers
inherit it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "DS_ACCELERATOR": "cpu",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without a GPU, Ray would warn that it hides none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Two OpenMP threads on a core that another process uses run tens of times slower than one.
    "OMP_NUM_THREADS": "1",
    # Ray's own 15 lets its workers starve where other tests run beside them.
    "RAY_worker_niceness": "0",
    "MPLBACKEND": "Agg",
    # Every Ray process of a session has to hold the same token, clients started by a test as well.
    "RAY_AUTH_MODE": "token",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Started in the background of a script, this process ignores SIGINT, and what it starts would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes says more of what else runs than of the example.
hypothesis.settings.register_profile("sppo-ray", deadline=None)
hypothesis.settings.load_profile("sppo-ray")
# Tests make clusters of their own and never join one that happens to run.
os.environ.pop("RAY_ADDRESS", None)


_STARTS_PROCESSES = ("tests/api/", "tests/chaos/", "tests/ray/")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What `pytest -n 2` may run side by side: the tests that start clusters, servers and browsers
    go to one process, one after the other, where they share their fixtures; the others go file by
    file to whichever is free.
    """
    from xdist.scheduler import LoadScopeScheduling

    class SideBySide(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "processes" if nodeid.startswith(_STARTS_PROCESSES) else nodeid.partition("::")[0]

    return SideBySide(config, log)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The module `ray`, connected to a local cluster of 8 logical CPUs that the whole session
    shares.

    A test that kills nodes or needs other resources starts its own cluster in a subprocess.
    """
    import ray

    # Ray's socket paths go below this directory and have to stay under 107 characters.
    temp_dir = tempfile.mkdtemp(prefix="spr-", dir="/tmp")
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=512 * 2**20,
        log_to_driver=False,
        _temp_dir=temp_dir,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:
        yield ray
    finally:
        processes = _cluster_processes(temp_dir)
        ray.shutdown()
        _, leftover = psutil.wait_procs(processes, timeout=15)
        for process in leftover:
            process.kill()
        shutil.rmtree(temp_dir, ignore_errors=True)
    assert not leftover, f"processes outlived their Ray cluster: {leftover}"


def _cluster_processes(temp_dir: str) -> list[psutil.Process]:
    """The daemons of the cluster in `temp_dir` (their command lines name it) and whatever they
    started, workers included.
    """
    daemons = [
        p
        for p in psutil.process_iter(["cmdline"])
        if any(temp_dir in part for part in p.info["cmdline"] or ())
    ]
    return list({process.pid: process for daemon in daemons for process in _with_children(daemon)}.values())


def _with_children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
