"""A run directory as an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo_ray.cli.shared import runs_directory
from sppo_ray.config import RunConfig, permissions
from sppo_ray.config.loading import parse_config
from sppo_ray.display.plots import learning_curve
from sppo_ray.errors import UserError
from sppo_ray.formatting import format_fraction
from sppo_ray.launch.callbacks import Callback
from sppo_ray.library.settings import apply, names_in, tree_of
from sppo_ray.library.start import start
from sppo_ray.rundir.evaluations import read_evaluations
from sppo_ray.rundir.files import RunFile
from sppo_ray.rundir.layout import SUMMARY, RunDir
from sppo_ray.rundir.metrics import is_training_step, read_events, read_metrics
from sppo_ray.rundir.status import RunStatus, read_status
from sppo_ray.rundir.summary import Summary
from sppo_ray.rundir.trajectories import read_step, steps

_ACCURACY = ("eval/accuracy", "eval/accuracy_low", "eval/accuracy_high")
_TOTALS = ("seconds/total", "samples/total", "tokens/total")


class Run:
    """Reads a run directory, also while the run continues. Tables are Arrow tables;
    `.to_pandas()` on them needs pandas.
    """

    def __init__(self, directory: str | Path) -> None:
        """Raises UserError when there is no run. A bare name is also looked for in the directory of
        runs.
        """
        given = Path(directory).expanduser()
        found = [place for place in (given, runs_directory() / given) if RunDir(place).is_run]
        if not found:
            raise UserError(f"{given}: holds no run: name a run directory, e.g. runs/quickstart-seed1-...")
        self.path = found[0].resolve()
        self._files = RunDir(self.path)

    def __repr__(self) -> str:
        status = self.status
        state = status.state
        accuracy = _risen(state.initial_accuracy, state.final_accuracy)
        return f"Run({str(self.path)!r}: {status.phase} after step {state.step}{accuracy})"

    @property
    def config(self) -> RunConfig:
        """The resolved settings."""
        return parse_config(tree_of(self._files.config)[1], str(self._files.config))

    @property
    def status(self) -> RunStatus:
        """What status.json says now: `phase`, `state`, `fleet`, `alerts`, `last_error`, ..."""
        return read_status(self.path)

    @property
    def summary(self) -> Summary | None:
        """The results; None before the run has ended."""
        return Summary.read(RunFile(self.path, SUMMARY))

    @property
    def metrics(self) -> pa.Table:
        """One row a training step: `step` and every metric, null in steps without it."""
        return _table([row for row in read_metrics(self.path) if is_training_step(row)])

    @property
    def curve(self) -> pa.Table:
        """One row an evaluation: step, held-out accuracy with its 95 % interval, and the training
        seconds, samples and tokens until then.
        """
        names = ("step", *_ACCURACY, *_TOTALS)
        rows = [row for row in read_metrics(self.path) if row.get(_ACCURACY[0]) is not None]
        return _table([{name: row.get(name) for name in names} for row in rows])

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations in full: by data set, with pass@k, the critic's calibration, ..."""
        return read_evaluations(self.path)

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.path)

    def trajectories(self, step: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the samples of a step, one a row: prompt, response, reward, value, advantage,
        tokens. None = the newest step. Raises UserError when it was not recorded.
        """
        if step is None:
            step = max(steps(self.path), default=0)
        return read_step(self.path, step, columns)

    def plot(self) -> Path:
        """Draw the learning curve and return the file, curve.png."""
        return learning_curve(self.path)

    @property
    def policy(self) -> Path:
        """The exported policy, a Transformers checkpoint. Raises UserError before the run has
        finished.
        """
        return self._exported(self._files.exported_policy)

    @property
    def critic(self) -> Path:
        """The exported critic. Raises UserError without one."""
        return self._exported(self._files.exported_critic)

    def values(self, prompts: Sequence[str | Sequence[Mapping[str, str]]]) -> list[float]:
        """Return the exported critic's value of each prompt (a text or chat messages), in [0, 1]:
        the probability that the policy solves it. Loads the critic. Raises UserError without a
        prompt critic.
        """
        from sppo_ray.library.critic import values_of

        return values_of(self.critic, prompts)

    def resume(
        self,
        *,
        callbacks: Sequence[Callback] = (),
        allow_module: Sequence[str] = (),
        allow_unconfined: Sequence[str] = (),
        **changes: Any,
    ) -> Run:
        """Continue the run in this process with its own settings, rows and reward; `changes` as in
        `load_config`, e.g. `loop={"steps": 80}`. Returns this object.

        A directory grants its own code nothing: when the settings name a reward function of yours,
        the error says what to give as `allow_module`.
        """
        _, tree = tree_of(self._files.config)
        apply(tree, changes)
        config = parse_config(tree, str(self._files.config))
        granted = permissions.Grants(tuple(allow_module), tuple(allow_unconfined))
        permissions.require_all(config, granted, names_in(changes), str(self._files.config))
        start(config, self.path, resume=True, callbacks=callbacks)
        return self

    def _exported(self, directory: Path) -> Path:
        if not directory.is_dir():
            raise UserError(
                f"{self.path}: has no {directory.relative_to(self.path)}: let the run finish (resume()) with "
                "checkpoint.export, and an algorithm that has a critic if that is what is missing"
            )
        return directory


def _risen(first: float | None, last: float | None) -> str:
    if first is None or last is None:
        return ""
    return f", accuracy {format_fraction(first)} to {format_fraction(last)}"


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return rows with different keys as a table; numbers of a column become floats if one is."""
    names = dict.fromkeys(name for row in rows for name in row if name != "nonfinite")
    columns = {name: [row.get(name) for row in rows] for name in names}
    is_float = {name: any(isinstance(one, float) for one in column) for name, column in columns.items()}
    return pa.table(
        {name: pa.array(column, pa.float64() if is_float[name] else None) for name, column in columns.items()}
    )
