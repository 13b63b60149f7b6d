"""The commands of the control plane: `serve` and `token` for whoever runs the server, the rest over its REST API.

sppo-ray serve --runs DIR [--host --port --tokens FILE --ray-address URL]       the server and its page
sppo-ray token NAME --role viewer|operator --tokens FILE                        make a token
sppo-ray submit RECIPE [--name NAME] [--seed N] [--section.key=value ...]
sppo-ray list | status JOB [--watch] | logs JOB [-f]
sppo-ray scale JOB --rollout-workers N | pause JOB | resume JOB | checkpoint JOB | stop JOB [--force] | delete JOB
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo_ray.errors import UserError

if TYPE_CHECKING:
    from sppo_ray.api.client import Client
    from sppo_ray.api.schemas import Job

TAKES_SETTINGS = ("submit",)
EXIT_NOT_SUCCEEDED = 1
Commands = Any  # argparse's own type of a group of subcommands is private
Run = Callable[[argparse.Namespace, Sequence[str]], int]


def add_parsers(commands: Commands, default_runs: Callable[[], Path]) -> None:
    """Add the subcommands; `default_runs` says where runs go."""
    _add_serve(commands, default_runs)
    token = commands.add_parser("token", help="make a token for the REST API and print it once", allow_abbrev=False)
    token.add_argument("name", help="whose it is; shown in the record of what was asked of a job")
    token.add_argument(
        "--role", choices=("viewer", "operator"), default="viewer", help="viewer reads; operator also acts (default: viewer)"
    )
    token.add_argument(
        "--tokens", type=Path, required=True, metavar="FILE", help="its hash is added here; remove the line to revoke it"
    )
    token.set_defaults(run=_token)

    submit = _command(commands, "submit", _submit, "submit a training job; settings as --section.key=value", job=False)
    submit.add_argument("recipe", help="a recipe that ships, or a .yaml file of this machine")
    submit.add_argument("--name", help="name of the run directory (default: recipe, seed and time)")
    submit.add_argument("--seed", type=int)
    submit.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="kept with the job")
    submit.add_argument("--follow", action="store_true", help="print the log until the job has ended")
    listing = _command(commands, "list", _list, "jobs, newest first", job=False)
    listing.add_argument("--state", action="append", type=str.upper, metavar="STATE", help="only these; may be repeated")
    listing.add_argument("--name", metavar="TEXT", help="only those with it in their id, name, recipe or algorithm")
    listing.add_argument("--limit", type=int, default=20, metavar="N")
    status = _command(commands, "status", _status, "how a job stands")
    status.add_argument("--watch", action="store_true", help="go on until it has ended")
    logs = _command(commands, "logs", _logs, "what a job printed", has_json=False)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it has ended")
    logs.add_argument("--tail", type=int, default=1000, metavar="N", help="lines from the end (default: 1000)")
    scale = _command(commands, "scale", _scale, "change the number of rollout workers of a running job")
    scale.add_argument("--rollout-workers", type=int, required=True, metavar="N")
    _command(commands, "pause", _pause, "pause a job after the step under way")
    _command(commands, "resume", _resume, "let a paused job go on")
    _command(commands, "checkpoint", _checkpoint, "write a checkpoint after the step under way")
    stop = _command(commands, "stop", _stop, "end a job after the step under way, with a checkpoint")
    stop.add_argument("--force", action="store_true", help="now, without a last checkpoint")
    delete = _command(commands, "delete", _delete, "delete a job that has ended, with its run directory", has_json=False)
    delete.add_argument("--yes", action="store_true", help="do not ask")


def _add_serve(commands: Commands, default_runs: Callable[[], Path]) -> None:
    serve = commands.add_parser("serve", help="the REST API and its page, over a directory of runs", allow_abbrev=False)
    serve.add_argument(
        "--runs", type=Path, default=default_runs(), metavar="DIR", help="its children are the runs (default: %(default)s)"
    )
    serve.add_argument("--host", help="address to listen at (default: 127.0.0.1); others than loopback need --tokens")
    serve.add_argument("--port", type=int, help="(default: 8642)")
    serve.add_argument(
        "--ray-address", metavar="URL", help="Ray's job server (default: $RAY_ADDRESS, else http://127.0.0.1:8265)"
    )
    serve.add_argument("--tokens", type=Path, metavar="FILE", help="see `sppo-ray token` (default: $SPPO_RAY_API_TOKENS)")
    serve.add_argument(
        "--allow", action="append", metavar="DIR", help="submitted jobs may name recipes, data and checkpoints below it"
    )
    serve.add_argument(
        "--allow-module", action="append", dest="allow_modules", metavar="NAME", help="submitted jobs may use its verifiers"
    )
    serve.add_argument("--cors-origin", action="append", dest="cors_origins", metavar="ORIGIN", help="its pages may call the API")
    serve.add_argument("--python", metavar="FILE", help="interpreter of the jobs' entrypoints (default: the server's)")
    serve.add_argument(
        "--rate", type=float, dest="rate_per_second", metavar="N", help="requests a second and token; 0 = no limit (default: 100)"
    )
    serve.add_argument("--max-body-bytes", type=int, metavar="N", help="(default: 1048576)")
    serve.add_argument("--max-streams", type=int, metavar="N", help="open event and log streams (default: 256)")
    serve.add_argument("--max-streams-per-caller", type=int, metavar="N", help="of these, for one token (default: 64)")
    serve.set_defaults(run=_serve)


def _command(
    commands: Commands, name: str, run: Run, meaning: str, *, job: bool = True, has_json: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=meaning, allow_abbrev=False)
    if job:
        parser.add_argument("job", help="its id, see `sppo-ray list`")
    parser.add_argument(
        "--url", help="the server (default: $SPPO_RAY_API, else http://127.0.0.1:8642); the token is $SPPO_RAY_API_TOKEN"
    )
    if has_json:
        parser.add_argument("--json", action="store_true", help="print the server's answer")
    parser.set_defaults(run=run)
    return parser


def _serve(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from sppo_ray.api.server import run
    from sppo_ray.api.settings import ApiSettings
    from sppo_ray.config_loading import parse_settings

    given = {name: value for name, value in vars(options).items() if name in ApiSettings.model_fields and value is not None}
    settings = parse_settings(ApiSettings, given, (), "serve")
    return run(settings)


def _token(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from sppo_ray.api.tokens import add_token

    print(add_token(options.tokens, options.name, options.role))
    print(f"{options.role} {options.name}: its hash is in {options.tokens}; the token itself is shown only now", file=sys.stderr)
    return 0


def _submit(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from sppo_ray.api.schemas import JobRequest

    given: dict[str, Any] = {
        "overrides": dict(_override(text) for text in overrides),
        "metadata": dict(map(_pair, options.metadata)),
    }
    given |= {"run_name": options.name} if options.name else {}
    given |= {"seed": options.seed} if options.seed is not None else {}
    given |= (
        {"config": _read_recipe(Path(options.recipe))}
        if options.recipe.endswith((".yaml", ".yml"))
        else {"recipe": options.recipe}
    )
    with _client(options) as client:
        job = client.submit_job(_checked(JobRequest, given))
        _show(job, options, f"submitted {job.id}: `sppo-ray status {job.id} --watch`, `sppo-ray logs {job.id} -f`")
        return _print_log(client, job.id, tail=0, follow=True) if options.follow else 0


def _list(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from sppo_ray.api.schemas import JobState

    unknown = sorted(set(options.state or ()) - set(JobState))
    if unknown:
        raise UserError(f"--state {unknown[0]}: there are {', '.join(JobState)}")
    with _client(options) as client:
        states = [JobState(state) for state in options.state or ()] or None
        page = client.list_jobs(state=states, name=options.name, limit=options.limit)
    if options.json:
        print(page.model_dump_json(indent=2))
        return 0
    width = max([len(job.id) for job in page.jobs], default=4)
    print(f"{'JOB':<{width}}  {'STATE':<9}  {'STEP':>9}  {'REWARD':>6}  {'ACCURACY':>8}  {'WORKERS':>7}  CREATED")
    for job in page.jobs:
        print(
            f"{job.id:<{width}}  {job.state:<9}  {_position(job):>9}  {_figure(job.reward):>6}  {_figure(job.accuracy):>8}  "
            f"{len(job.workers) if not job.state.is_final else '-':>7}  {_date(job.created)}"
        )
    if page.total > len(page.jobs):
        print(f"{page.total - len(page.jobs)} more: --limit {page.total}")
    return 0


def _status(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    with _client(options) as client:
        job = client.get_job(options.job)
        if not options.watch:
            _show(job, options, describe(job))
            return 0
        for event in client.event_stream(job.id):
            job = _watched(event.kind, event.data, job)
        job = client.get_job(options.job)
    _show(job, options, describe(job))
    return 0 if job.state == "SUCCEEDED" else EXIT_NOT_SUCCEEDED


def _watched(kind: str, data: dict[str, Any], job: Job) -> Job:
    """Print what an event says, one line; the job as it stands after it."""
    from sppo_ray.api.schemas import Job

    if kind == "step":
        job = job.model_copy(update={"step": data["step"], "seconds": data.get("seconds/total", job.seconds)})
        print(f"step {_position(job)}  reward {_figure(data.get('reward/mean'))}", flush=True)
    elif kind == "evaluation":
        print(f"step {data['step']}  held-out accuracy {_figure(data.get('eval/accuracy'))}", flush=True)
    elif kind == "event":
        print(harmless(f"{data.get('kind')}: {data.get('message')}", lines=False), flush=True)
    elif kind == "state":
        seen = Job.model_validate(data)
        if (seen.state, seen.phase) != (job.state, job.phase):
            print(f"{seen.state} ({seen.phase})", flush=True)
        return seen
    return job


def _logs(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    with _client(options) as client:
        return _print_log(client, options.job, tail=options.tail, follow=options.follow)


def _print_log(client: Client, job_id: str, *, tail: int, follow: bool) -> int:
    for piece in client.log(job_id, tail=tail, follow=follow):
        sys.stdout.write(harmless(piece))
        sys.stdout.flush()
    return 0


def _scale(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    return _patch(options, {"rollout_workers": options.rollout_workers})


def _pause(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    return _patch(options, {"paused": True})


def _resume(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    return _patch(options, {"paused": False})


def _patch(options: argparse.Namespace, change: dict[str, Any]) -> int:
    from sppo_ray.api.schemas import JobPatch

    patch = _checked(JobPatch, change)
    return _ordered(options, lambda client: client.patch_job(options.job, patch))


def _checkpoint(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    return _ordered(options, lambda client: client.checkpoint_job(options.job))


def _stop(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    return _ordered(options, lambda client: client.stop_job(options.job, force=options.force))


def _ordered(options: argparse.Namespace, order: Callable[[Client], Job]) -> int:
    with _client(options) as client:
        job = order(client)
        newest = job.commands[-1] if job.commands else None
        _show(job, options, f"{job.id}: {newest.kind if newest else options.command} asked for, the job is {job.state}")
    return 0


def _delete(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError("delete removes metrics, samples and checkpoints: say --yes")
        if input(f"delete {options.job} with its metrics, samples and checkpoints? [y/N] ").strip().lower() != "y":
            return EXIT_NOT_SUCCEEDED
    with _client(options) as client:
        client.delete_job(options.job)
    print(f"deleted {options.job}")
    return 0


def describe(job: Job) -> str:
    """How a job stands, for people: a line a fact, what it does not have left out."""
    workers = ", ".join(f"{w.name} {w.state.lower()} v{w.version}" for w in job.workers)
    facts: list[tuple[str, Any]] = [
        ("job", job.id),
        ("state", f"{job.state} ({job.phase}{f', {job.stage}' if job.stage else ''})"),
        ("step", _position(job) + (f", about {job.eta_s:.0f} s left" if job.eta_s is not None else "")),
        ("budget", None if job.budget_s is None else f"{job.seconds:.0f} of {job.budget_s:.0f} s of training"),
        ("reward", None if job.reward is None else _figure(job.reward)),
        ("accuracy", None if job.accuracy is None else f"{_figure(job.accuracy)} (best {_figure(job.best_accuracy)})"),
        ("tokens/s", None if job.tokens_per_second is None else f"{job.tokens_per_second:.0f}"),
        ("policy", None if job.policy_version is None else f"version {job.policy_version}"),
        ("workers", workers or None),
        ("restarts", _restarts(job) or None),
        ("waiting", ", ".join(f"{p.worker} for {p.waiting_for}" for p in job.pending) or None),
        (
            "commands",
            ", ".join(f"{c.kind} {c.outcome}" + (f" ({c.detail})" if c.outcome == "refused" else "") for c in job.commands)
            or None,
        ),
        ("checkpoints", ", ".join(f"step {c.step} ({c.bytes / 2**20:.1f} MiB)" for c in job.checkpoints) or None),
        ("alerts", "; ".join(alert.message for alert in job.alerts) or None),
        ("error", None if job.last_error is None else f"{job.last_error.actor or ''} {job.last_error.message}".strip()),
    ]
    return harmless("\n".join(f"{name:<12} {value}" for name, value in facts if value is not None))


def harmless(text: str, *, lines: bool = True) -> str:
    """`text` with control characters made visible: what a model wrote may be in it, and a terminal would obey them. Tabs
    stay, and with `lines` line breaks, as which carriage returns count then."""
    kept = "\t\n" if lines else "\t"
    text = text.replace("\r\n", "\n").replace("\r", "\n") if lines else text
    return "".join(mark if mark.isprintable() or mark in kept else repr(mark)[1:-1] for mark in text)


def _restarts(job: Job) -> str:
    """In all, and how often each process that is up now was made anew."""
    anew = ", ".join(f"{actor.name} {actor.restarts}" for actor in job.actors if actor.restarts)
    return f"{job.restarts}" + (f" ({anew})" if anew else "") if job.restarts or anew else ""


def _position(job: Job) -> str:
    """Steps done: 12/60; where a budget of seconds is what ends the run at its present pace, 12 (23%) of the budget."""
    share = 0.0 if job.budget_s is None else job.seconds / job.budget_s
    if job.budget_s is not None and share >= (job.step / job.steps if job.steps else 0.0):
        return f"{job.step} ({min(share, 1.0):.0%})"
    return f"{job.step}/{job.steps if job.steps is not None else '?'}"


def _show(job: Job, options: argparse.Namespace, text: str) -> None:
    print(job.model_dump_json(indent=2) if options.json else text)


def _client(options: argparse.Namespace) -> Client:
    from sppo_ray.api.client import Client

    return Client(options.url)


def _checked(model: Any, given: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} (given: {first.get('input')!r})") from None


def _override(text: str) -> tuple[str, Any]:
    import yaml

    key, _, value = text.removeprefix("--").partition("=")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--{key}: value {value!r} is not valid YAML") from None


def _read_recipe(path: Path) -> dict[str, Any]:
    """A recipe of this machine is sent whole: the server need not see the file."""
    import yaml

    from sppo_ray.config_loading import dump_config, load_config  # checked here too: the message is nearer to the file

    return yaml.safe_load(dump_config(load_config(str(path))))


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"--metadata {text!r}: write it as KEY=VALUE")
    return key, value


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "-"


def _date(unix: float | None) -> str:
    return "-" if unix is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))
