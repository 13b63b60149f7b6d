"""The process of a program that reads stdin and writes stdout: `main(SETUP_FD)`.

Started by `sppo_ray.rewards.code.sandbox.run` only.

Standard library only, and little of it: see `confine`.
"""

from __future__ import annotations

import builtins
import marshal
import os
import sys
import types

from sppo_ray.rewards.code.sandbox import confine, usual

TYPE_CHECKING = False  # the module typing costs as much time as the rest
if TYPE_CHECKING:
    import ast
    from typing import Any

CONFINED = b"C"
_PACKAGE = __name__.partition(".")[0]
MAX_DIGITS = 100_000
"""Digits of an integer that is read or written as text: reading takes quadratic time."""


def main(setup_fd: int) -> None:
    code = enter(setup_fd)["code"]
    started, module = sys.modules["__main__"], types.ModuleType("__main__")
    module.__file__ = "program.py"
    sys.modules["__main__"] = module  # pickle looks up classes there
    give_exit()
    script = compiled(code, "program.py")
    vars(builtins).update(usual.names(script))
    exec(script, vars(module))
    del started  # it had to live


def give_exit() -> None:
    """Python without `site`, which takes time, has neither of these."""
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]


def compiled(code: str | ast.Module, name: str, flags: int = 0) -> types.CodeType:
    """Compile code without this module's `from __future__ import annotations`, which would turn the
    types of its dataclasses into texts. `flags`: those of `statements.future_flags`.
    """
    return compile(code, name, "exec", flags, dont_inherit=True)


def read(setup_fd: int) -> dict[str, Any]:
    return marshal.loads(os.pread(setup_fd, os.fstat(setup_fd).st_size, 0))


def enter(setup_fd: int) -> dict[str, Any]:
    """Read the setup, confine this process, and report it in the setup's first byte; later no
    program can access it.
    """
    setup = read(setup_fd)
    confine.confine(**setup["limits"])
    os.pwrite(setup_fd, CONFINED, 0)
    os.close(setup_fd)
    os.close(setup["starts"])
    sys.path += setup["limits"]["readable"]
    sys.argv[:] = ["program.py"]
    sys.set_int_max_str_digits(MAX_DIGITS)
    # a program that looks for its judges does not find them at once
    for name in [one for one in sys.modules if one.partition(".")[0] == _PACKAGE]:
        vars(sys.modules["__main__"]).pop(name.rpartition(".")[2], None)
        del sys.modules[name]
    return setup
