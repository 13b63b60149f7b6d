"""The verifier processes: `python -m sppo_ray.rewards.worker PARENT_PID`, started by `sppo_ray.rewards.process` only.

    parent (pool) --stdin-->  keeper: imports and warms up the verifier, then only forks and waits
                                 '-- child: reads batches from the same stdin, scores, replies on the same stdout

The keeper stays clean because it never sees a response; when a child is killed, crashes or retires, the next one is
a fork away (milliseconds, against seconds of imports). SIGUSR1 tells the keeper to kill its child.

In, as pickles: first {"function": ..., "memory_mib": ...}, then (generation, [pickled (response, ground_truth,
extra), ...]). Out, one JSON line each: {"fatal": message}; {"ready": generation}; one reply a sample, in order;
{"died": exit code}. A batch for another generation is dropped: the parent has given it up. The end of stdin ends
both. Torch and Ray are never imported here.
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
import sys
import time
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from sppo_ray.config import RewardFunction
from sppo_ray.errors import UserError
from sppo_ray.rewards.base import Verifier, build_verifier

_PR_SET_PDEATHSIG = 1
_EXIT_END = 64  # child: stdin has ended, or what came is no batch; the keeper ends too
_MAX_REASON_CHARS = 200
_MAX_ANSWER_CHARS = 160  # six bytes each in JSON at worst, twelve beyond the basic plane: well below PIPE_BUF
_MIB = 2**20


def main() -> None:
    _die_with_parent(int(sys.argv[1]))
    requests, replies = _private_pipes()
    setup = pickle.load(requests)
    try:
        verifier = build_verifier(TypeAdapter(RewardFunction).validate_python(setup["function"]))
    except UserError as error:
        _write(replies, {"fatal": str(error)})
        return
    gc.freeze()  # the keeper's objects stay shared with every child
    keep_a_child(verifier, requests, replies, setup["memory_mib"])


def keep_a_child(verifier: Verifier, requests: BinaryIO, replies: BinaryIO, memory_mib: int) -> None:
    """Fork a scoring child, wait for its end, say so, and again."""
    keeper, child = os.getpid(), 0

    def kill_child(signum: int, frame: Any) -> None:
        if child:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGUSR1, kill_child)
    for generation in itertools.count():
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            _die_with_parent(keeper)
            _write(replies, {"ready": generation})  # by the child: whoever may be handed a sample does not outlive the keeper
            os._exit(_score_batches(verifier, requests, replies, generation=generation, memory_mib=memory_mib))
        _, status = os.waitpid(child, 0)
        child = 0
        exit_code = os.waitstatus_to_exitcode(status)
        if exit_code == _EXIT_END:
            return
        _write(replies, {"died": exit_code})


def _score_batches(verifier: Verifier, requests: BinaryIO, replies: BinaryIO, *, generation: int, memory_mib: int) -> int:
    """A child's life; returns its exit code: 0 when it is used up."""
    retire_above = _limit_memory(memory_mib)
    while True:
        try:
            meant_for, payloads = pickle.load(requests)
        except (EOFError, pickle.UnpicklingError, ValueError):
            return _EXIT_END
        if meant_for != generation:
            continue
        for payload in payloads:
            reply = _score(verifier, payload)
            reply["retire"] |= _address_space() > retire_above
            try:
                _write(replies, reply)
            except BrokenPipeError:  # the pool was closed
                return _EXIT_END
            if reply["retire"]:
                return 0


def _score(verifier: Verifier, payload: bytes) -> dict[str, Any]:
    """One sample's reply: reward (None = error), reason, answer, seconds; `fatal` stops the run, `retire` this child."""
    started = time.perf_counter()
    reply: dict[str, Any] = {"reward": None, "reason": "", "answer": None, "fatal": None, "retire": False}
    try:
        response, ground_truth, extra = pickle.loads(payload)
        reward, reason = verifier.score(response, ground_truth, extra)
        reply |= {"reward": reward, "reason": reason, "answer": _short(verifier.answer(response))}
    except UserError as error:
        reply["fatal"] = str(error)
    except MemoryError:
        reply |= {"reason": "error: out of memory", "retire": True}
    except (Exception, SystemExit) as error:  # boundary: hostile text through SymPy, or a user's function, raises anything
        reply["reason"] = f"error: {type(error).__name__}: {str(error)[:_MAX_REASON_CHARS]}"
    return reply | {"seconds": time.perf_counter() - started}


def _short(answer: str | None) -> str | None:
    """Answers differ after it when they differed before: a long one ends in its hash, since a reply is one small write."""
    if answer is None or len(answer) <= _MAX_ANSWER_CHARS:
        return answer
    return f"{answer[:_MAX_ANSWER_CHARS]}... (sha256 {hashlib.sha256(answer.encode(errors='replace')).hexdigest()[:16]})"


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the parent's pipes for the protocol: what a verifier prints goes to stderr, what it reads is empty."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _write(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")  # below PIPE_BUF: keeper's and child's lines never mix
    replies.flush()


def _die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends: a verifier stuck inside C code would never see the end of stdin."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request took effect
        os._exit(1)


def _limit_memory(growth_mib: int) -> int:
    """Bound the address space to today's plus `growth_mib`. Returns the size, in bytes, above which to retire."""
    now = _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (now + growth_mib * _MIB,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return now + growth_mib * _MIB // 2


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
