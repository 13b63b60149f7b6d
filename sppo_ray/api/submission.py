"""Turn a request into a Ray job: check its settings, and build a command without any text of the
caller.

The whole resolved config is written below the run directory and named in the entrypoint; overrides
never reach a shell. The run name is the only word that a caller chooses, and it is checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_ray.api.path_policy import allowed_path, confined, require_as_stored
from sppo_ray.api.problems import ApiProblem
from sppo_ray.api.schemas import FieldError, JobRequest
from sppo_ray.api.settings import ApiSettings
from sppo_ray.config import RunConfig
from sppo_ray.config.loading import parse_config, read_settings, recipe_names, recipe_tree, set_setting
from sppo_ray.config.outside_yaml import write_yaml
from sppo_ray.config.permissions import asks_for, flags_for
from sppo_ray.errors import UserError
from sppo_ray.planning.preflight import check_code, check_settings
from sppo_ray.redaction import redact, secret_places
from sppo_ray.rundir.files import RunFile, names_in
from sppo_ray.rundir.job import SubmissionRecord, read_submission, write_submission
from sppo_ray.rundir.jsonlines import write_atomically
from sppo_ray.rundir.layout import CONFIG, OUTPUT, SUBMISSION, SUBMITTED_CONFIG

MAX_DEPTH = 20
# restarts in a row without progress of a job whose driver crashes (`sppo-ray train --restarts`)
DRIVER_RESTARTS = 3
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_SETTING = re.compile(
    r"^(?:[^:\s]+: )?(?:override --)?(?P<path>[a-z_]+(?:\.[\w-]+)*): (?P<message>.+)$", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that is ready to be submitted to Ray."""

    run_dir: Path
    submission_id: str
    entrypoint: str
    metadata: Mapping[str, str]


def prepare(request: JobRequest, settings: ApiSettings, *, by: str) -> Submission:
    """Check the request and make its run directory. Raises ApiProblem: 400 path not allowed, 409
    name in use, else 422.
    """
    refuse_secrets(request)
    return _continued(request, settings, by=by) if request.resume else _new(request, settings, by=by)


def check(request: JobRequest, settings: ApiSettings) -> None:
    """Check as `prepare` does, without writing anything, so that mistakes are reported even without
    Ray. Raises ApiProblem.
    """
    refuse_secrets(request)
    if request.resume:
        _checked_run(request, settings)
    else:
        checked_config(request, settings)


def mark_failed(submission: Submission, message: str) -> None:
    """Record that Ray refused the job."""
    record = read_submission(submission.run_dir) or SubmissionRecord()
    write_submission(submission.run_dir, record.model_copy(update={"error": message}))


def _new(request: JobRequest, settings: ApiSettings, *, by: str) -> Submission:
    config = checked_config(request, settings)
    name = (
        request.run_name
        or f"{_slug(config.name)}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    )
    run_dir = settings.runs / name
    try:
        run_dir.mkdir(parents=True)
    except FileExistsError:
        raise _name_in_use(name) from None
    command = _written(config, run_dir, settings, resume=False)
    return _recorded(run_dir, name, command, request, by=by, recipe=request.recipe or "config")


def _written(config: RunConfig, run_dir: Path, settings: ApiSettings, *, resume: bool) -> str:
    """Write the checked settings; return the command that trains with exactly these and only the
    permissions that they need.
    """
    text = as_yaml(config.model_dump(mode="json"))
    write_atomically(run_dir / SUBMITTED_CONFIG, text)
    checked = [
        *flags_for(asks_for(config.reward, config.environment)),
        f"--config-sha256={hashlib.sha256(text.encode()).hexdigest()}",
    ]
    return entrypoint(run_dir, settings.python, resume=resume, checked=checked)


def _checked_run(request: JobRequest, settings: ApiSettings) -> tuple[Path, RunConfig, str]:
    """Return directory, settings and recipe name of the run to resume. Raises ApiProblem."""
    if (
        request.run_name is None
        or request.recipe
        or request.config
        or request.overrides
        or request.seed is not None
    ):
        raise _invalid("body.resume", "a run is continued as it was: give run_name and nothing else")
    run_dir = settings.runs / request.run_name
    config = _stored_config(run_dir)
    # even if another user started it: this server is responsible for its jobs
    require_as_stored(config, settings)
    before = _submitted_before(run_dir)
    _require_no_links(run_dir)
    return run_dir, config, "config" if before.recipe is None else before.recipe


def _continued(request: JobRequest, settings: ApiSettings, *, by: str) -> Submission:
    run_dir, config, recipe = _checked_run(request, settings)
    command = _written(config, run_dir, settings, resume=True)
    submission_id = f"{request.run_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return _recorded(run_dir, submission_id, command, request, by=by, recipe=recipe)


def _stored_config(run_dir: Path) -> RunConfig:
    """Read the settings of a run. Raises ApiProblem: 404 without a run, 409 for unreadable
    settings.
    """
    try:
        return parse_config(read_settings(RunFile(run_dir, CONFIG).read(), CONFIG), CONFIG)
    except FileNotFoundError:
        raise ApiProblem(404, f"there is no run {run_dir.name!r} to continue", kind="unknown-job") from None
    except (OSError, UserError) as error:
        raise ApiProblem(
            409, f"the settings of run {run_dir.name!r} cannot be read: {error}", kind="damaged-record"
        ) from None


def _require_no_links(run_dir: Path) -> None:
    """Raises ApiProblem (409) when the run directory contains links: a job appends to files there
    and would follow them.
    """
    for name in names_in(run_dir, ""):
        path = run_dir / name
        if path.is_symlink() and not path.is_dir():
            what = (
                f"{name[:100]!r} of run {run_dir.name!r} is a link, which a job would write through: replace "
                "it by a file"
            )
            raise ApiProblem(409, what, kind="link-in-run")


def _submitted_before(run_dir: Path) -> SubmissionRecord:
    """Read the submission record; empty when no server submitted the run. Raises ApiProblem (409)
    when it is unreadable.
    """
    record = read_submission(run_dir)
    if record is None:
        what = (
            f"{SUBMISSION} of run {run_dir.name!r} is damaged: remove that file from its directory, then "
            "resume again"
        )
        raise ApiProblem(409, what, kind="damaged-record")
    return record


def _recorded(
    run_dir: Path, submission_id: str, command: str, request: JobRequest, *, by: str, recipe: str
) -> Submission:
    own = {key: redact(text) for key, text in request.metadata.items()}
    record = SubmissionRecord(
        submission_id=submission_id,
        recipe=recipe,
        overrides=request.overrides,
        entrypoint=command,
        metadata=own,
        by=by,
        created=time.time(),
    )
    write_submission(run_dir, record)
    metadata = {**own, "sppo_ray_run": run_dir.name, "submitted_by": by}
    return Submission(run_dir, submission_id, command, metadata)


def entrypoint(run_dir: Path, python: str, *, resume: bool, checked: Sequence[str] = ()) -> str:
    """Build the job's shell command; the options `checked` bind `train` to the checked settings.

    Its output goes to Ray and into the run directory, where it survives the head. `tee` ignores the
    signals that end a job, so that it records the last lines. A driver that dies is restarted.
    """
    run_dir = run_dir.resolve()
    train = [python, "-m", "sppo_ray", "train", str(run_dir / SUBMITTED_CONFIG), "--run-dir", str(run_dir)]
    train += [f"--restarts={DRIVER_RESTARTS}", *(["--resume"] if resume else []), *checked]
    output = shlex.quote(str(run_dir / OUTPUT))
    script = f"exec {shlex.join(train)} > >(trap '' TERM INT HUP; exec tee -a {output}) 2>&1"
    return f"exec bash -c {shlex.quote(script)}"


def checked_config(request: JobRequest, settings: ApiSettings) -> RunConfig:
    """Return the requested settings, whose files and function are there. Runs no code of a user.
    Raises ApiProblem (422 with the path to the field, 400 for a path that is not allowed).
    """
    if (request.recipe is None) == (request.config is None):
        raise _invalid("body.recipe", 'give either a recipe or a config, e.g. {"recipe": "quickstart"}')
    refuse_secrets(request)
    try:
        origin, tree = (
            ("config", dict(request.config))
            if request.config is not None
            else recipe_tree(_recipe(request, settings))
        )
        for key, value in request.overrides.items():
            set_setting(tree, _setting(key), value)
        if request.seed is not None:
            tree["seed"] = request.seed
        config = parse_config(tree, origin)
        config = confined(config, settings)
        check_settings(config, code=False)
        _require_code(config)
    except UserError as error:
        raise _settings_problem(str(error), request) from None
    return config


def _require_code(config: RunConfig) -> None:
    """Find reward function and environment where the jobs of this server will, without running
    them. Raises UserError.
    """
    try:
        check_code(config)
    except UserError as error:
        raise UserError(
            f"{error} (looked for on the server; a job does not bring the module with it: install it there, "
            "or send it along with ray job submit --working-dir . -- python -m sppo_ray train FILE)"
        ) from None


def refuse_secrets(request: JobRequest) -> None:
    """Raises ApiProblem (422) naming the place of a secret without repeating it. Submitted values
    are written into the run directory and passed to Ray, where others can read them.
    """
    _require_shallow(request)
    place = next(secret_places(request.model_dump(mode="json"), "body"), None)
    if place is not None:
        what = (
            "looks like a password or token: leave it out, and give it to the job in its environment or a "
            "private file"
        )
        raise _invalid(place, what, kind="holds-secret")


def as_yaml(tree: dict[str, Any]) -> str:
    """Return the settings as ASCII YAML: PyYAML does not read every character back unchanged, such
    as U+0085.
    """
    return write_yaml(tree, ascii_only=True)


def _require_shallow(request: JobRequest) -> None:
    """Refuse very deep nesting, which would break recursive code."""
    level: list[Any] = [request.config, request.overrides]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise _invalid(
        "body.config" if request.config else "body.overrides",
        f"nested more than {MAX_DEPTH} deep: no setting is",
    )


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _recipe(request: JobRequest, settings: ApiSettings) -> str:
    """Return a recipe's name, or the real path of a file below an allowed directory."""
    recipe = request.recipe or ""
    if recipe in recipe_names():
        return recipe
    if "/" not in recipe and not recipe.endswith((".yaml", ".yml")):
        return recipe  # an unknown name: the loader suggests a near one
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
            overridden = next(
                (key for key in request.overrides if path == key or path.startswith(f"{key}.")), None
            )
            errors.append(
                FieldError(
                    path=f"body.overrides.{overridden}" if overridden else f"{given_as}.{path}",
                    message=match["message"],
                )
            )
    if not errors:
        errors = [FieldError(path=f"body.{given_as}", message=text)]
    return ApiProblem(422, text, kind="invalid-settings", errors=errors)


def _invalid(path: str, message: str, *, kind: str = "invalid-request") -> ApiProblem:
    return ApiProblem(422, f"{path}: {message}", kind=kind, errors=[FieldError(path=path, message=message)])


def _name_in_use(name: str) -> ApiProblem:
    return ApiProblem(
        409,
        f"there is a run {name!r} already: choose another run_name, or continue it with resume",
        kind="exists",
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "run"
