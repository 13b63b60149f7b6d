"""`make chaos`: the fault matrix on real runs, about a minute a cell.

    python -m tests.chaos                            all cells that are not done yet
    python -m tests.chaos --cells "rollout/*"        some of them (by name; --list shows the names)
    python -m tests.chaos --again                    from the beginning
    python -m tests.chaos --report benchmarks/results/chaos    write what is known as chaos.json and
                                                               chaos.md

Ctrl-C ends the run under way and leaves nothing behind; the finished cells are kept in --work.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

import tests.conftest  # noqa: F401 - sets the environment that every test runs under
from tests.chaos.cells import Cell, selected
from tests.chaos.display import Display
from tests.chaos.matrix import Matrix
from tests.chaos.nodes import NodeMatrix, laboratory
from tests.chaos.outcomes import Ledger
from tests.chaos.report import write_report
from tests.ray.network_hosts import why_not


def main() -> int:
    options = _options()
    cells = selected(options.cells)
    if options.list:
        print("\n".join(cell.name for cell in cells))
        return 0
    if options.again:
        shutil.rmtree(options.work, ignore_errors=True)
    ledger = Ledger(options.work / "cells.json")
    # as Ctrl-C: the run under way is ended on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _run([cell for cell in cells if cell.name not in ledger.good], ledger, options)
    except KeyboardInterrupt:
        print("interrupted; the finished cells are kept")
        return 130
    finally:
        if options.report is not None:
            write_report(ledger, options.report)
    bad = [cell.name for cell in cells if cell.name not in ledger.good]
    print(f"{len(cells) - len(bad)} of {len(cells)} cells good" + (f"; not: {', '.join(bad)}" if bad else ""))
    return 1 if bad or any(not run.is_good for run in ledger.runs) else 0


def _run(cells: list[Cell], ledger: Ledger, options: argparse.Namespace) -> None:
    until = time.monotonic() + 60.0 * options.minutes
    on_one_host = [cell for cell in cells if cell.role != "node"]
    whole_hosts = [cell for cell in cells if cell.role == "node"]
    with Display(len(cells)) as display:
        ledger.on_cell = display.done
        Matrix(options.work, ledger, display.say, until=until).run(on_one_host)
        if not whole_hosts or time.monotonic() > until:
            return
        if (reason := why_not()) is not None:
            display.say(f"no cells of whole hosts: {reason}")
            return
        with laboratory(options.work / f"hosts-{time.strftime('%H%M%S')}") as lab:
            NodeMatrix(options.work, ledger, display.say, lab, until=until).run(whole_hosts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", default="*", help="names, with * and ?, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/chaos"), help="runs, and what is known of the cells"
    )
    parser.add_argument("--again", action="store_true", help="forget finished cells and the undisturbed runs")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no further cell after so long"
    )
    parser.add_argument("--report", type=Path, help="write PATH.json and PATH.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
