"""The second run of a program that passed: its own objects, in one process with the tests, started
by `sppo_ray.rewards.code.sandbox.run` only: `main(SETUP_FD)`.

The tester sees copies and proxies, which differ from plain Python: it cannot tell whether a list is
the caller's own. Here the tests run as pytest would run them. A program can tamper with this run,
but only after it has passed the tester, which it cannot reach. So a right program passes both, an
honest wrong one fails here, and a hostile one has failed there. Standard library only: see
`confine`.
"""

from __future__ import annotations

import json
import os

from sppo_ray.rewards.code.sandbox import program, served
from sppo_ray.rewards.code.sandbox.tester import CodeTests

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    from typing import Any


class OwnObjects:
    """The program, in the place of the tester's link to it."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def subject(self, name: str) -> Any:
        """The function or class under test."""
        return served.find(self._names, name)

    def exception(self, name: str) -> type[BaseException]:
        """An exception of the program's that the tests name; without it, one that is never
        raised.
        """
        kind = self._names.get(name)
        is_exception = isinstance(kind, type) and issubclass(kind, BaseException)
        return kind if is_exception else type(name, (Exception,), {})


def main(setup_fd: int) -> None:
    setup = program.enter(setup_fd)
    tests = CodeTests(setup["tests"], setup["name"], proxies=False)
    passed = failed = 0
    for test in tests.steps(OwnObjects(served.definitions(setup["code"]))):
        try:
            test.run()
        except BaseException:  # boundary: the program may raise anything
            failed += 1
            if setup["stop_at_failure"] or not test.counts:
                break
        else:
            passed += test.counts
    failed = failed or not passed
    os.pwrite(setup["result"], json.dumps({"passed": passed, "failed": failed}).encode(), 0)
