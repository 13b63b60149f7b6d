"""Sections for tests of `benchmarks.gpu_smoke`."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from benchmarks.gpu.common import Found
from benchmarks.gpu_smoke import Check, Setup, Skipped


def good(setup: Setup) -> Found:
    yield "the start"
    yield {"device": setup.device, "tiny": setup.tiny}
    yield Check("a figure", "<= 1", 0.5, True)


def misses(setup: Setup) -> Found:
    yield Check("a figure", "<= 1", 2.0, False)


def skips(setup: Setup) -> Found:
    raise Skipped("no such device")
    yield {}


def needs_a_package(setup: Setup) -> Found:
    import no_such_package_of_anyone  # noqa: F401

    yield {}


def needs_a_module_of_ours(setup: Setup) -> Found:
    import sppo_ray.no_such_module  # noqa: F401

    yield {}


def imports_what_names_no_package(setup: Setup) -> Found:
    raise ModuleNotFoundError("Could not import module 'AutoModel'")
    yield {}


def raises(setup: Setup) -> Found:
    yield {"number": 1}
    yield "the second part"
    raise ValueError("bad shape")


def crashes(setup: Setup) -> Found:
    yield {"number": 1}
    yield "the kernel"
    print("illegal memory access", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def ends_early(setup: Setup) -> Found:
    yield {"number": 1}
    os._exit(0)


def hangs(setup: Setup) -> Found:
    child = subprocess.Popen(["sleep", "600"])
    yield {"child": child.pid}
    yield "a collective"
    time.sleep(600)
