"""The verifier processes: `python -m sppo_ray.rewards.pool.worker PARENT_PID CONTROL`.

Started by `sppo_ray.rewards.pool.process` only.

    parent (pool) --stdin-->  keeper: imports and warms up the verifier, then only forks and waits
          ^   ^                  '-- child, confined: reads batches from the same stdin, scores
          |   '----stdout-------------' replies
          '--------control pipe: a child is ready (its last words there), why there is none

The keeper stays trustworthy because it never reads a response. When a child is killed, crashes or
retires, the keeper forks the next one in milliseconds, without the seconds of imports. SIGUSR1
tells the keeper to kill its child.

A child confines itself before it reads anything (`sppo_ray.rewards.pool.confinement`), and closes
the control pipe, so that a compromised child cannot announce a new child. It cannot answer for the
next child either, because a reply repeats the random number of its batch.

In: first the setup as a pickle; then frames. Each header repeats a secret of the setup, so that
text of a response is never read as a frame after a child died within a batch. A frame is a pickle
of (batch, [pickled (response, ground_truth, extra), ...]); a response of None asks for the ground
truth alone. Out, a JSON line each: on stdout one reply a sample, in order; on the control pipe
{"fatal": message} or {"ready": generation, ...}. The end of stdin ends both. Torch and Ray are
never imported here.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import itertools
import json
import os
import pickle
import resource
import signal
import struct
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from sppo_ray.config import RewardFunction
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import BadGroundTruth, Verifier
from sppo_ray.rewards.pool.confinement import confine_child, missing_walls, needs_walls, unconfined_hint
from sppo_ray.rewards.reasoning_gym.evaluated import needs_own_process
from sppo_ray.rewards.registry import build_verifier

SECRET_BYTES = 16
HEADER = struct.Struct(f"<{SECRET_BYTES}sqq")
"""Header of a frame: the secret, the generation of the receiving child, the length."""
_PR_SET_PDEATHSIG = 1
_EXIT_END = 64  # child: stdin has ended or is invalid; the keeper ends too
_MAX_REASON_CHARS = 200
_NOT_THE_USERS = (
    str(Path(__file__).parents[2]),
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
)
"""Where code lies that is not the user's: this package, the standard library, other packages."""
# six bytes each in JSON at worst, twelve beyond the basic plane: well below PIPE_BUF
_MAX_ANSWER_CHARS = 160
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Desk:
    """The state that every child uses to score."""

    verifier: Verifier
    function: Any  # its settings
    requests: BinaryIO
    replies: BinaryIO
    secret: bytes
    memory_mib: int
    missing: str | None  # the confinement that this machine lacks


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    requests, replies = private_pipes()
    control = os.fdopen(int(sys.argv[2]), "wb")
    setup = pickle.load(requests)
    try:
        function = TypeAdapter(RewardFunction).validate_python(setup["function"])
        verifier = build_verifier(function, setup["deadline_s"])
        missing = missing_walls(verifier)
    except UserError as error:
        _write(control, {"fatal": str(error)})
        return
    gc.freeze()  # the keeper's objects stay shared with every child
    keep_a_child(
        Desk(verifier, function, requests, replies, setup["secret"], setup["memory_mib"], missing), control
    )


def keep_a_child(desk: Desk, control: BinaryIO) -> None:
    """Fork a scoring child, wait for its end, and repeat; each child reports how the last one
    ended.
    """
    keeper, child, exit_code = os.getpid(), 0, 0

    def kill_child(signum: int, frame: Any) -> None:
        if child:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGUSR1, kill_child)
    for generation in itertools.count():
        # until the handler knows the child's id
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            os._exit(_end_code(desk, control, keeper=keeper, generation=generation, last_exit=exit_code))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        _, status = os.waitpid(child, 0)
        child = 0
        exit_code = os.waitstatus_to_exitcode(status)
        if exit_code == _EXIT_END:
            return


def _end_code(desk: Desk, control: BinaryIO, **life: int) -> int:
    """Run a child and return its exit code in every case, so that it never continues as a second
    keeper.
    """
    try:
        return _live(desk, control, **life)
    except BrokenPipeError:  # the pool was closed
        return _EXIT_END
    except BaseException:  # boundary: its exit code reports the error
        traceback.print_exc()
        return 1


def _live(desk: Desk, control: BinaryIO, *, keeper: int, generation: int, last_exit: int) -> int:
    """Run a child; returns its exit code."""
    address_space = address_space_meter()
    confine_child(desk.verifier, keeper)  # a child must end with the keeper
    retire_above = limit_memory(address_space(), desk.memory_mib)
    ready = {"ready": generation, "pid": os.getpid(), "last_exit": last_exit, "missing": desk.missing}
    _write(control, ready | {"failure_is_wrong": desk.verifier.failure_is_wrong})
    control.close()
    return _score_batches(desk, generation, lambda: address_space() > retire_above)


def _score_batches(desk: Desk, generation: int, is_used_up: Callable[[], bool]) -> int:
    """Score until told to end; 0 when this child retires."""
    while True:
        header = desk.requests.read(HEADER.size)
        if len(header) < HEADER.size:
            return _EXIT_END
        secret, meant_for, length = HEADER.unpack(header)
        if secret != desk.secret:  # the rest of a batch in which the last child died
            return _EXIT_END
        frame = desk.requests.read(length)
        if meant_for != generation:
            continue
        batch, payloads = pickle.loads(frame)
        for payload in payloads:
            reply = _score(desk, payload)
            reply["retire"] |= is_used_up()
            _write(desk.replies, reply | {"batch": batch})
            if reply["retire"]:
                return 0


def _score(desk: Desk, payload: bytes) -> dict[str, Any]:
    """Score one sample and build its reply: reward (None = error), reason, answer, seconds; `fatal`
    stops the run, `retire` this child.
    """
    started = time.perf_counter()
    reply: dict[str, Any] = {
        "reward": None,
        "reason": "",
        "answer": None,
        "fatal": None,
        "retire": False,
        "failed": False,
    }
    response, ground_truth, extra = pickle.loads(payload)
    try:
        if (
            desk.missing is not None
            and needs_own_process(desk.function, extra)
            and desk.verifier.walls != "none"
        ):
            raise UserError(needs_walls(desk.verifier.name, desk.missing))
        if response is None:
            desk.verifier.try_truth(ground_truth, extra)
            reply |= {"reward": desk.verifier.low}
        else:
            reward, reason = desk.verifier.score(response, ground_truth, extra)
            reply |= {"reward": reward, "reason": reason, "answer": _short(desk.verifier.answer(response))}
    except UserError as error:
        reply["fatal"] = str(error)
    except MemoryError:
        reply |= {"reason": "error: out of memory", "retire": True}
        if response is not None:
            reply |= _blame_answer(desk.verifier, ground_truth, extra, "out_of_memory")
    except (Exception, SystemExit) as error:
        # boundary: hostile text in SymPy, or a user's function, may raise anything
        text = f"error: {type(error).__name__}: {str(error)[:_MAX_REASON_CHARS]}{_place_of(error)}"
        reply["reason"] = text + unconfined_hint(desk.verifier, error)
        if response is not None and not isinstance(error, BadGroundTruth):
            reply |= _blame_answer(desk.verifier, ground_truth, extra, "failed")
    return reply | {"seconds": time.perf_counter() - started}


def _place_of(error: BaseException) -> str:
    """Return file and line where the user's own code failed; empty when none of it was running."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(".py") and not frame.filename.startswith(_NOT_THE_USERS):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _blame_answer(
    verifier: Verifier, ground_truth: str, extra: Mapping[str, Any], reason: str
) -> dict[str, Any]:
    """Return the changes of a reply after a failure: a score of 0 when the ground truth alone does
    not fail, else none.
    """
    if not verifier.failure_is_wrong:
        return {}
    try:
        verifier.try_truth(ground_truth, extra)
    except (Exception, SystemExit):  # boundary, as above
        return {}
    return {"reward": verifier.low, "reason": reason, "failed": True}


def _short(answer: str | None) -> str | None:
    """Shorten an answer; a long one ends in its hash, so that different answers stay different."""
    if answer is None or len(answer) <= _MAX_ANSWER_CHARS:
        return answer
    return (
        f"{answer[:_MAX_ANSWER_CHARS]}... (sha256 "
        f"{hashlib.sha256(answer.encode(errors='replace')).hexdigest()[:16]})"
    )


def private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the parent's pipes for the protocol: a verifier prints to stderr and reads empty
    input.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _write(pipe: BinaryIO, message: dict[str, Any]) -> None:
    """Write a separate line, even after an unfinished line in the pipe."""
    pipe.write(b"\n" + json.dumps(message).encode() + b"\n")
    pipe.flush()


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends: a verifier stuck inside C code would never
    see the end of stdin.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the request took effect
        os._exit(1)


def limit_memory(now: int, growth_mib: int) -> int:
    """Limit the address space to its current size plus `growth_mib`. Returns the size, in bytes,
    above which to retire.
    """
    resource.setrlimit(resource.RLIMIT_AS, (now + growth_mib * _MIB,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return now + growth_mib * _MIB // 2


def address_space_meter() -> Callable[[], int]:
    """Return a function that measures the address space; it opens the file now, because a confined
    process cannot.
    """
    statm, page = os.open("/proc/self/statm", os.O_RDONLY), resource.getpagesize()
    return lambda: int(os.pread(statm, 64, 0).split()[0]) * page


if __name__ == "__main__":
    main()
