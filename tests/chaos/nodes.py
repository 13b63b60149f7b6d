"""Cells that take a whole host: a Ray cluster of three network namespaces, one raylet killed or one
link cut under the run.

    head: Ray's head and the trainer, no actors      worker-1, worker-2: everything else, spread
                                                     over both

What a lost host held moves to the other one, which has room for all of it. The host itself comes
back after the cell.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from sppo_ray.models.bundled import cache_directory, resolve_model
from tests.chaos.cells import Cell
from tests.chaos.matrix import Kind, Matrix
from tests.chaos.outcomes import CellOutcome, Ledger
from tests.chaos.run import CLASSES, REPOSITORY, TrainingRun
from tests.chaos.states import holds
from tests.chaos.strike import Struck
from tests.ray.network_hosts import Hosts

PORT = 6379
WORKERS = ("worker-1", "worker-2")
# Ray's own patience with a node that is silent is about a minute; here 18 seconds
CUT_OFF_AFTER = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "6",
}
HEAD = (
    f"ray start --head --port={PORT} --num-cpus=0 --include-dashboard=false --object-store-memory=200000000 "
    "--block"
)
WORKER = f"ray start --address=head:{PORT} --num-cpus=8 --object-store-memory=200000000 --block"
NODE_IS_UP = "ray status --address=head:6379"
STATE_WITHIN_S, NODE_WITHIN_S = 120.0, 120.0


class Lab:
    """The three hosts with their Ray nodes."""

    def __init__(self, folder: Path) -> None:
        resolve_model("builtin:running-sum")  # made once a machine: the hosts share its cache
        environment = (
            os.environ
            | CUT_OFF_AFTER
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(REPOSITORY),
                "RAY_worker_niceness": "0",
                "SPPO_RAY_CACHE": str(cache_directory()),
            }
        )
        self._folder = folder
        self.hosts = Hosts(["head", *WORKERS], folder / "lab", environment)
        try:
            for name in ("head", *WORKERS):
                self.start_node(name)
        except BaseException:  # also Ctrl-C: the half-built lab must not stay
            self.hosts.close()
            raise

    def start_node(self, name: str) -> None:
        """Start Ray on a host, and wait until it answers there."""
        with (self._folder / f"{name}.log").open("ab") as log:
            node = self.hosts.start(name, HEAD if name == "head" else WORKER, log)
        self.hosts.wait_for(name, NODE_IS_UP, NODE_WITHIN_S, alive=node)

    def commands(self) -> Iterator[tuple[int, list[str]]]:
        """(process id on this machine, command line) of all that runs on the hosts."""
        for pid in self.hosts.processes().values():
            with suppress(psutil.NoSuchProcess):
                yield pid, psutil.Process(pid).cmdline()

    def raylet(self, name: str) -> int | None:
        """Its process."""
        address = f"--node_ip_address={self.hosts.addresses[name]}"
        return next(
            (pid for pid, line in self.commands() if line and line[0].endswith("raylet") and address in line),
            None,
        )

    def host_of(self, actor: str, run: TrainingRun) -> str | None:
        """Where an actor of the run lives."""
        names = {address: name for name, address in self.hosts.addresses.items()}
        rows = {row["name"]: row for row in run.status.get("actors", [])}
        return names.get(rows[actor]["node_ip"]) if actor in rows else None


class HostedRun(TrainingRun):
    """The trainer on the head."""

    def __init__(self, path: Path, overrides: Sequence[str], lab: Lab) -> None:
        super().__init__(path, overrides, {"RAY_ADDRESS": f"head:{PORT}"})
        self._lab = lab
        self.lost_address: str | None = None  # of the host that is struck

    def _launch(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        inside = f"cd {shlex.quote(str(REPOSITORY))} && exec {shlex.join(command)}"
        return self._lab.hosts.start(
            "head", f"bash -c {shlex.quote(inside)}", log, {"RAY_ADDRESS": f"head:{PORT}"}
        )

    @property
    def pid(self) -> int:
        """The trainer's own: what was started is `nsenter`, which only passes its exit code on."""
        mine = (
            pid
            for pid, line in self._lab.commands()
            if "sppo_ray" in line and str(self.path) in line and "python" in line[0]
        )
        return next(mine, super().pid)

    def is_up(self, actor: Mapping[str, Any]) -> bool:
        """Return whether the actor runs; never on a lost host. Process ids are those of the
        hosts.
        """
        if actor["node_ip"] == self.lost_address:
            return False
        outer = self._lab.hosts.processes().get(actor["pid"])
        return outer is not None and super().is_up({"pid": outer})

    def refresh(self) -> list[psutil.Process]:
        """Ray's nodes outlive a run here; its actors are to be gone."""
        found = []
        for pid, line in self._lab.commands():
            if line and line[0].startswith("ray::") and any(actor in line[0] for actor in CLASSES.values()):
                with suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(pid))
        self._known |= set(found)
        return found


class NodeMatrix(Matrix):
    """The cells of the role "node", on one lab."""

    def __init__(
        self, work: Path, ledger: Ledger, say: Callable[[str], None], lab: Lab, *, until: float = float("inf")
    ) -> None:
        super().__init__(work, ledger, say, until=until)
        self._lab = lab

    def _new_run(self, path: Path, kind: Kind) -> TrainingRun:
        return HostedRun(
            path.with_name(f"nodes-{path.name}"), [*kind.settings, "--cluster.placement=spread"], self._lab
        )

    def _cell(self, cell: Cell, run: TrainingRun, kind: Kind) -> CellOutcome:
        try:
            return super()._cell(cell, run, kind)
        finally:
            self._bring_back(cell, run)

    def _struck(self, cell: Cell, run: TrainingRun) -> Struck:
        run.wait(f"the state of {cell.name}", lambda: holds(cell, run.status), STATE_WITHIN_S)
        self._victim = self._lab.host_of("rollout-1", run) or WORKERS[-1]
        raylet, step = self._lab.raylet(self._victim), run.step
        assert isinstance(run, HostedRun)
        run.lost_address = self._lab.hosts.addresses[self._victim]
        assert raylet is not None, f"{self._victim} has no Ray node"
        if cell.fault == "link cut":
            self._lab.hosts.set_link(self._victim, up=False)
            return Struck(0, step, time.time())
        os.kill(raylet, signal.SIGKILL)
        return Struck(raylet, step, time.time())

    def _bring_back(self, cell: Cell, run: TrainingRun) -> None:
        """The host as it was: its link, and a Ray node of its own. A raylet that was given up ends
        when it hears of it.
        """
        self._say(f"{cell.name}: bringing {self._victim} back")
        self._lab.hosts.set_link(self._victim, up=True)
        deadline = time.monotonic() + NODE_WITHIN_S
        while (raylet := self._lab.raylet(self._victim)) is not None and time.monotonic() < deadline:
            time.sleep(0.5)
        if raylet is not None:
            os.kill(raylet, signal.SIGKILL)
        self._lab.start_node(self._victim)
        assert isinstance(run, HostedRun)
        run.lost_address = None


@contextmanager
def laboratory(folder: Path) -> Iterator[Lab]:
    folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(folder)
    try:
        yield lab
    finally:
        lab.hosts.close()
