"""From a request to a Ray job: settings checked here, so that a mistake costs no cluster time, and a command without any text of
the caller's in it.

The whole resolved config is written below the run directory and named in the entrypoint; overrides never reach a shell. The run
name is the only word that a caller chooses, and it is checked.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sppo_ray.api.confinement import allowed_path, confined
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.records import OUTPUT, SUBMISSION, SUBMITTED_CONFIG, parse_object
from sppo_ray.api.run_files import RunFile
from sppo_ray.api.schemas import FieldError, JobRequest
from sppo_ray.api.settings import ApiSettings
from sppo_ray.config import RunConfig
from sppo_ray.config_loading import parse_config, recipe_names, recipe_tree, set_setting
from sppo_ray.errors import UserError
from sppo_ray.redaction import redact
from sppo_ray.trainer.jsonlines import finite_json, write_atomically
from sppo_ray.trainer.rundir import RunDir

MAX_DEPTH = 20
DRIVER_RESTARTS = 3  # of a job whose driver crashes, in a row without getting further (`sppo-ray train --restarts`)
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_SETTING = re.compile(r"^(?:[^:\s]+: )?(?:override --)?(?P<path>[a-z_]+(?:\.[\w-]+)*): (?P<message>.+)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that is ready to be handed to Ray."""

    run_dir: Path
    submission_id: str
    entrypoint: str
    metadata: Mapping[str, str]


def prepare(request: JobRequest, settings: ApiSettings, *, by: str) -> Submission:
    """Check the request and make its run directory. Raises ApiProblem: 400 path outside, 409 name in use, 422 else."""
    return _continued(request, settings, by=by) if request.resume else _new(request, settings, by=by)


def mark_failed(submission: Submission, message: str) -> None:
    """Ray did not take the job: leave the record saying so."""
    path = submission.run_dir / SUBMISSION
    write_atomically(path, json.dumps(json.loads(path.read_bytes()) | {"error": message}, indent=2) + "\n")


def _new(request: JobRequest, settings: ApiSettings, *, by: str) -> Submission:
    config = checked_config(request, settings)
    name = request.run_name or f"{_slug(config.name)}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    run_dir = settings.runs / name
    try:
        run_dir.mkdir(parents=True)
    except FileExistsError:
        raise _name_in_use(name) from None
    write_atomically(run_dir / SUBMITTED_CONFIG, as_yaml(config.model_dump(mode="json")))
    return _recorded(run_dir, name, settings, request, by=by, recipe=request.recipe or "config")


def _continued(request: JobRequest, settings: ApiSettings, *, by: str) -> Submission:
    if request.run_name is None or request.recipe or request.config or request.overrides or request.seed is not None:
        raise _invalid("body.resume", "a run is continued as it was: give run_name and nothing else")
    run_dir = settings.runs / request.run_name
    try:
        config = RunFile(run_dir, RunDir(run_dir).config.name).read()
    except FileNotFoundError:
        raise ApiProblem(404, f"there is no run {request.run_name!r} to continue", kind="unknown-job") from None
    before = _submitted_before(run_dir)
    write_atomically(run_dir / SUBMITTED_CONFIG, config)
    submission_id = f"{request.run_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return _recorded(run_dir, submission_id, settings, request, by=by, recipe=before.get("recipe", "config"))


def _submitted_before(run_dir: Path) -> Mapping[str, Any]:
    """Empty for a run that no server submitted. Raises ApiProblem (409) for a record that cannot be read."""
    try:
        record = parse_object(RunFile(run_dir, SUBMISSION).read())
    except FileNotFoundError:
        return {}
    if record is None or not isinstance(record.get("recipe", ""), str):
        what = f"{SUBMISSION} of run {run_dir.name!r} is damaged: remove that file from its directory, then resume again"
        raise ApiProblem(409, what, kind="damaged-record")
    return record


def _recorded(
    run_dir: Path, submission_id: str, settings: ApiSettings, request: JobRequest, *, by: str, recipe: str
) -> Submission:
    command = entrypoint(run_dir, settings.python, resume=request.resume)
    own = {key: redact(text) for key, text in request.metadata.items()}
    record = {
        "submission_id": submission_id,
        "recipe": recipe,
        "overrides": request.overrides,
        "entrypoint": command,
        "metadata": own,
        "by": by,
        "created": time.time(),
    }
    write_atomically(run_dir / SUBMISSION, json.dumps(finite_json(record), indent=2) + "\n")
    metadata = {**own, "sppo_ray_run": run_dir.name, "submitted_by": by}
    return Submission(run_dir, submission_id, command, metadata)


def entrypoint(run_dir: Path, python: str, *, resume: bool) -> str:
    """The job's shell command. What it prints goes to Ray and, beside it, into the run directory, where it outlives the head.

    `tee` ignores the signals that end a job: it has to take down the last words. A driver that dies is started again.
    """
    run_dir = run_dir.resolve()
    train = [python, "-m", "sppo_ray", "train", str(run_dir / SUBMITTED_CONFIG), "--run-dir", str(run_dir)]
    train += [f"--restarts={DRIVER_RESTARTS}", *(["--resume"] if resume else [])]
    output = shlex.quote(str(run_dir / OUTPUT))
    script = f"exec {shlex.join(train)} > >(trap '' TERM INT HUP; exec tee -a {output}) 2>&1"
    return f"exec bash -c {shlex.quote(script)}"


def checked_config(request: JobRequest, settings: ApiSettings) -> RunConfig:
    """The settings that the request asks for. Raises ApiProblem (422 with the path to the field, 400 for a path outside)."""
    if (request.recipe is None) == (request.config is None):
        raise _invalid("body.recipe", 'give either a recipe or a config, e.g. {"recipe": "quickstart"}')
    _require_shallow(request)
    try:
        origin, tree = ("config", dict(request.config)) if request.config is not None else recipe_tree(_recipe(request, settings))
        for key, value in request.overrides.items():
            set_setting(tree, _setting(key), value)
        if request.seed is not None:
            tree["seed"] = request.seed
        config = parse_config(tree, origin)
    except UserError as error:
        raise _settings_problem(str(error), request) from None
    return confined(config, settings)


def as_yaml(tree: dict[str, Any]) -> str:
    """In ASCII: PyYAML does not read back every character that it writes as itself, such as U+0085."""
    return yaml.safe_dump(tree, sort_keys=False)


def _require_shallow(request: JobRequest) -> None:
    """What is nested without end would break whoever walks through it."""
    level: list[Any] = [request.config, request.overrides]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise _invalid("body.config" if request.config else "body.overrides", f"nested more than {MAX_DEPTH} deep: no setting is")


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _recipe(request: JobRequest, settings: ApiSettings) -> str:
    """A recipe's name, or the real path of a file below an allowed directory."""
    recipe = request.recipe or ""
    if recipe in recipe_names():
        return recipe
    if "/" not in recipe and not recipe.endswith((".yaml", ".yml")):
        return recipe  # an unknown name: the loader says which is near
    return str(allowed_path(recipe, settings, "body.recipe"))


def _setting(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise _invalid(f"body.overrides.{key[:100]}", "not the name of a setting: write it as section.key")
    return key


def _settings_problem(text: str, request: JobRequest) -> ApiProblem:
    given_as = "config" if request.config is not None else "recipe"
    errors = []
    for line in text.splitlines():
        match = _SETTING.match(line)
        if match:
            path = match["path"]
            overridden = next((key for key in request.overrides if path == key or path.startswith(f"{key}.")), None)
            errors.append(
                FieldError(path=f"body.overrides.{overridden}" if overridden else f"{given_as}.{path}", message=match["message"])
            )
    if not errors:
        errors = [FieldError(path=f"body.{given_as}", message=text)]
    return ApiProblem(422, text, kind="invalid-settings", errors=errors)


def _invalid(path: str, message: str) -> ApiProblem:
    return ApiProblem(422, f"{path}: {message}", kind="invalid-request", errors=[FieldError(path=path, message=message)])


def _name_in_use(name: str) -> ApiProblem:
    return ApiProblem(409, f"there is a run {name!r} already: choose another run_name, or continue it with resume", kind="exists")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "run"
