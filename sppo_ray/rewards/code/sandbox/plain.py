"""The second run of a program that passed: its own objects, in one process with the tests, started
by `sppo_ray.rewards.code.sandbox.run` only: `main(SETUP_FD)`.

The tester sees copies and proxies, which differ from plain Python in some details. Here the tests
run as pytest would run them. A program can tamper with this run, so its report is not trusted: it
only ever lowers what the tester, which no program can reach, has found. Standard library only: see
`confine`.
"""

from __future__ import annotations

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

    def exceptions(self, names: dict[str, str]) -> dict[str, Any]:
        """What the program has under the names that the tests use as exceptions, whatever it is."""
        return {name: self._names[real] for name, real in names.items() if real in self._names}


def main(setup_fd: int) -> None:
    setup = program.enter(setup_fd)
    write, result, token = os.pwrite, setup.pop("result"), setup.pop("token")
    tests = CodeTests(setup.pop("tests"), setup["name"], proxies=False)
    passed = failed = 0
    names = served.definitions(setup["code"])
    served.check_names(names, tests.required)
    for test in tests.steps(OwnObjects(names)):
        try:
            test.run()
        except BaseException:  # boundary: the program may raise anything
            failed += 1
            if setup["stop_at_failure"] or not test.counts:
                break
        else:
            passed += test.counts
    write(result, b"%s %d %d" % (token, passed, failed), 0)
