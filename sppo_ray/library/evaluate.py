"""`sppo_ray.evaluate`: `sppo-ray eval` as a function."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sppo_ray.cli.eval_options import evaluation_tree
from sppo_ray.cli.evaluate import REPORT, RESPONSES, run_evaluation
from sppo_ray.cli.shared import runs_directory
from sppo_ray.config import permissions
from sppo_ray.config.evaluation import EvaluationConfig
from sppo_ray.config.loading import parse_settings
from sppo_ray.launch.shutdown import EndSignals
from sppo_ray.library import objects
from sppo_ray.library.run import Run
from sppo_ray.library.settings import apply, names_in
from sppo_ray.library.waiting import wait_for
from sppo_ray.rundir.layout import DATASET, REWARD


class Evaluation:
    """Reads the directory that an evaluation wrote."""

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory)

    def __repr__(self) -> str:
        return f"Evaluation({str(self.path)!r}: accuracy {self.accuracy:.3f})"

    @property
    def report(self) -> dict[str, Any]:
        """report.json: every score with its 95 % interval."""
        return json.loads((self.path / REPORT).read_text(encoding="utf-8"))

    @property
    def accuracy(self) -> float:
        """The mean reward (avg@k): the share of solved responses where rewards are 0 or 1."""
        return self.report["overall"]["accuracy"]

    @property
    def responses(self) -> pa.Table:
        """One row a response: prompt, text, reward, reason, answer."""
        return pq.read_table(self.path / RESPONSES)


def evaluate(
    model: str | Path | Run,
    dataset: Any = None,
    *,
    recipe: str | Path | None = None,
    reward: str | dict[str, Any] | Callable[..., Any] | None = None,
    out: str | Path | None = None,
    allow_module: Sequence[str] = (),
    allow_unconfined: Sequence[str] = (),
    **changes: Any,
) -> Evaluation:
    """Sample a checkpoint on prompts, score the responses, and return the evaluation.

    Args:
        model: A Transformers checkpoint, builtin:NAME, or a run (its exported policy).
        dataset: Rows or a path as for `train`. None = the held-out data of `recipe`, else of the
            run.
        recipe: Takes held-out data, reward and rollout settings from a recipe.
        reward: As for `train`. None = the recipe's or run's, else by the data.
        out: A new directory. None = runs/eval-MODEL-TIME. Rows and functions that are given as
            objects are kept beside it, in OUT-inputs, to which its config.yaml refers.
        changes: Settings of an evaluation: `eval={"samples_per_prompt": 8, "temperature": 0}`,
            `rollout={"max_response_tokens": 512}`, `seed=2`.

    Raises:
        UserError: a mistake in settings, data or machine.
        WorkerFailure: no engine is left.
    """
    named = str(model.path if isinstance(model, Run) else model)
    stamp = f"eval-{Path(named).name.removeprefix('builtin:')}-{time.strftime('%Y%m%d-%H%M%S')}"
    place = (Path(out) if out is not None else runs_directory() / stamp).expanduser().resolve()
    given = place.with_name(f"{place.name}-inputs")  # the evaluation itself makes `place`
    held_out = None if dataset is None else [objects.rows_setting(dataset, given / DATASET, "dataset")]
    function = None if reward is None else objects.reward_setting(reward, given / REWARD)
    tree = evaluation_tree(named, None if recipe is None else str(recipe), held_out, function)
    apply(tree, changes)
    config = parse_settings(EvaluationConfig, tree, [], "evaluate")
    granted = permissions.Grants(tuple(allow_module), tuple(allow_unconfined))
    typed = [*names_in(changes), *(["reward.function"] if reward is not None else [])]
    if recipe is not None:
        permissions.require_for_file(config, granted, typed, str(recipe))
    elif dataset is None:
        permissions.require_all(config, granted, typed, f"run {named}")
    signals = EndSignals()
    code = wait_for(lambda: run_evaluation(config, place, signals), signals.interrupt)
    if code:
        raise SystemExit(code)
    return Evaluation(place)
