"""Hosts on one machine: network namespaces on a bridge, each with its own address, name, Ray
directory and shared memory.

    lab (private mounts, processes and network; whatever runs in it dies with it)
     +-- bridge 10.77.0.1 --- head 10.77.0.2 --- worker-1 10.77.0.3 --- ...      shared: /srv/sppo-ray, as in the image

Nothing leaves the lab: the bridge is in a network namespace that has no other link. Linux; root, or
user namespaces.
"""  # noqa: E501, W505 (a drawing)

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

SHARED = "/srv/sppo-ray"
_AS_ROOT = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
_UNSHARE = ["unshare", *_AS_ROOT, "--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]


def why_not() -> str | None:
    """The reason why this machine cannot hold such hosts; None when it can."""
    if not shutil.which("unshare") or not shutil.which("nsenter") or not shutil.which("ip"):
        return "needs unshare and nsenter (util-linux) and ip (iproute2)"
    probe = "mount -t tmpfs tmpfs /run && ip netns add probe && ip link add probe0 type bridge"
    done = subprocess.run([*_UNSHARE, "bash", "-c", probe], capture_output=True, text=True, timeout=30)
    return None if done.returncode == 0 else f"no namespaces on this machine: {done.stderr.strip()}"


class Hosts:
    """`names` become hosts that reach each other by name. Close it, and every process on them is
    gone.
    """

    def __init__(self, names: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, start=2)}
        self._folder, self._environment = folder, dict(environment)
        (folder / "shared").mkdir(parents=True)
        entries = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.addresses.items())]
        (folder / "hosts").write_text("\n".join(entries) + "\n")
        # A name server that refuses at once: gRPC asks one before it reads /etc/hosts, and would
        # wait for an answer.
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self._lab = subprocess.Popen(
            [*_UNSHARE, "bash", "-c", self._building()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._lab.stdout is not None
        said = self._lab.stdout.readline().decode()
        if said != "built\n":
            raise AssertionError(f"the hosts did not come up: {said}{self._lab.communicate()[0].decode()}")
        children = Path(f"/proc/{self._lab.pid}/task/{self._lab.pid}/children").read_text().split()
        self._init = int(children[0])  # process 1 of the lab

    @property
    def shared(self) -> Path:
        """Where SHARED of the hosts lies on this machine."""
        return self._folder / "shared"

    def _building(self) -> str:
        shared = shlex.quote(str(self._folder / "shared"))
        lines = [
            "set -e",
            "mount -t tmpfs tmpfs /run",  # `ip netns` keeps its names there
            f"mkdir -p /tmp/ray; mount -t tmpfs tmpfs /srv; mkdir -p {SHARED}; mount --bind {shared} "
            f"{SHARED}",
            "ip link set lo up; ip link add lan type bridge; ip addr add 10.77.0.1/24 dev lan; ip link set "
            "lan up",
        ]
        for name, address in self.addresses.items():
            inside = f"ip -n {name}"
            lines += [
                f"mkdir -p /run/{name}/shm /run/{name}/ray; mount -t tmpfs -o size=1g tmpfs /run/{name}/shm",
                f"ip netns add {name}; ip link add to-{name[:10]} type veth peer name eth0 netns {name}",
                f"ip link set to-{name[:10]} master lan up; {inside} link set lo up",
                f"{inside} addr add {address}/24 dev eth0; {inside} link set eth0 up",
                # Ray finds the host's address by its default route, which leads nowhere here.
                f"{inside} route add default via 10.77.0.1",
            ]
        return "\n".join([*lines, "echo built", "exec sleep infinity"])

    def _command(self, name: str, command: str) -> list[str]:
        setting = (
            f"hostname {name} && mount --bind {shlex.quote(str(self._folder / 'hosts'))} /etc/hosts"
            f" && mount --bind {shlex.quote(str(self._folder / 'resolv.conf'))} /etc/resolv.conf"
            f" && mount --bind /run/{name}/ray /tmp/ray && mount --bind /run/{name}/shm /dev/shm"
        )
        entering = [
            "nsenter",
            f"--target={self._init}",
            *(["--user"] if _AS_ROOT else []),
            "--net",
            "--mount",
            "--pid",
        ]
        return [
            *entering,
            "ip",
            "netns",
            "exec",
            name,
            "unshare",
            "--uts",
            "bash",
            "-c",
            f"{setting} && exec {command}",
        ]

    def start(
        self, name: str, command: str, log: IO[Any], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a shell command on a host and go on."""
        env = self._environment | dict(environment or {})
        return subprocess.Popen(self._command(name, command), env=env, stdout=log, stderr=subprocess.STDOUT)

    def run(self, name: str, command: str, timeout_s: float = 60.0) -> str:
        """What a shell command on a host prints. Raises CalledProcessError with its output when it
        fails.
        """
        done = subprocess.run(
            self._command(name, command),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode:
            raise AssertionError(
                f"{name}: {command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def wait_for(self, name: str, command: str, timeout_s: float, *, alive: subprocess.Popen[bytes]) -> str:
        """Repeat `command` on a host until it succeeds, and return what it prints then; gives up
        when `alive` has ended.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.run(name, command)
            except AssertionError:
                if time.monotonic() > deadline or alive.poll() is not None:
                    raise
                time.sleep(0.5)

    def set_link(self, name: str, *, up: bool) -> None:
        """Plug a host's cable in, or pull it: pulled, what is sent to it gets no answer and no
        error.
        """
        command = ["ip", "link", "set", f"to-{name[:10]}", "up" if up else "down"]
        entering = ["nsenter", f"--target={self._init}", *(["--user"] if _AS_ROOT else []), "--net"]
        subprocess.run([*entering, *command], check=True, capture_output=True, timeout=30)

    def processes(self) -> dict[int, int]:
        """Everything that runs on the hosts: its number there -> its number on this machine."""
        inside = os.readlink(f"/proc/{self._init}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # it ended while we looked
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == inside:
                    numbers = re.search(r"^NSpid:(.*)$", (entry / "status").read_text(), re.M)
                    found[int(numbers.group(1).split()[-1]) if numbers else int(entry.name)] = int(entry.name)
        return found

    def close(self) -> None:
        """End the lab and everything that runs in it."""
        # --kill-child: process 1 of the lab dies with it, and all others with process 1
        self._lab.kill()
        self._lab.wait(timeout=30)
