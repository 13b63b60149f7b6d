"""`sppo-ray report`: write a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sppo_ray.errors import UserError


def report(
    run: Annotated[Path, Argument(help="a run directory, of a run that goes on or has ended")],
    *,
    out: Annotated[Path | None, Option(help="file to write (default: RUN/report.html)")] = None,
) -> int:
    """Write a run as one HTML file. It has curves, evaluations, samples, alerts, settings and
    timing.
    """
    from sppo_ray.display.report import report_html
    from sppo_ray.rundir.jsonlines import write_atomically
    from sppo_ray.rundir.layout import RunDir

    place = out or RunDir(run).report
    html = report_html(run)
    try:
        write_atomically(place, html)
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror}): name another --out") from None
    print(place)
    return 0
