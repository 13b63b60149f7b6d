"""`sppo-ray calibrate`: its arguments; `calibrate_critic` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sppo_ray.cli.shared import AllowModule, AllowUnconfined, Overrides, lost_worker, repeated


@lost_worker("Nothing was written: run it again")
def calibrate(
    run_dir: Annotated[
        Path | None,
        Argument(metavar="RUN", help="a finished run: its export/critic, export/policy, settings and data"),
    ] = None,
    *,
    critic: Annotated[Path | None, Option(help="instead of a run: a critic's directory")] = None,
    policy: Annotated[
        str | None, Option(help="instead of a run: the policy's directory, or builtin:NAME")
    ] = None,
    data: Annotated[list[str], repeated(metavar="FILE...", help="held-out prompts (default: the run's)")],
    seen: Annotated[
        list[str], repeated(metavar="FILE...", help="prompts it learned from (default: the run's log)")
    ],
    reward: Annotated[
        str | None,
        Option(help="math, running-sum, package.module:function, ... (default: the run's, or the card's)"),
    ] = None,
    allow_module: AllowModule,
    allow_unconfined: AllowUnconfined,
    k: Annotated[int, Option("-k", help="responses a prompt")] = 8,
    prompts: Annotated[int, Option(help="maximum number of prompts in each set")] = 256,
    bins: Annotated[int, Option(help="bins of ECE and the reliability plot")] = 10,
    out: Annotated[
        Path | None, Option(help="directory of the results (default: RUN/calibration, else ./calibration)")
    ] = None,
    overrides: Overrides,
) -> int:
    """Measure a critic against its policy's solve rates. Settings are given as
    --section.key=value.
    """
    from sppo_ray.cli.calibrate_critic import Options, run_calibration
    from sppo_ray.config.permissions import Grants

    granted = Grants(tuple(allow_module), tuple(allow_unconfined))
    options = Options(run_dir, critic, policy, data, seen, reward, granted, k, prompts, bins, out)
    return run_calibration(options, overrides)
