"""`sppo-ray report`: a run as one HTML file without scripts and without anything from elsewhere.

Prompts, responses and messages are text that others wrote. Jinja2 escapes every value, and the
page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sppo_ray.config.outside_yaml import write_yaml
from sppo_ray.display.panels import draw_panels
from sppo_ray.display.plots import draw_learning_curve, held_out_name
from sppo_ray.errors import UserError
from sppo_ray.formatting import format_fraction, format_seconds
from sppo_ray.redaction import redact, redact_tree
from sppo_ray.rundir.evaluations import read_evaluations
from sppo_ray.rundir.files import RunFile, json_object
from sppo_ray.rundir.job import read_job
from sppo_ray.rundir.layout import ENVIRONMENT, SUMMARY
from sppo_ray.rundir.metrics import read_events, read_metrics
from sppo_ray.rundir.record import is_run_directory, settings_of
from sppo_ray.rundir.status import read_status
from sppo_ray.rundir.summary import Summary
from sppo_ray.rundir.turns import COLUMNS as TURNS
from sppo_ray.rundir.turns import RecordedTurn, turns_of

SAMPLES_A_SIDE = 3  # of the best and of the worst responses of a step
SHOWN_CHARACTERS = 4000  # of a prompt or response
SHOWN_EVENTS = 200
_QUIET = ("checkpoint", "reward-error")  # events that are not worth a line
_COLUMNS = (
    "prompt_text", "response_text", "ground_truth", "source", "reward", "reason", "value", "advantage",
    "response_ids", "finish_reason", *TURNS,
)  # fmt: skip


def report_html(run_dir: Path) -> str:
    """Return the page. Raises UserError when `run_dir` holds no run."""
    if not is_run_directory(run_dir):
        raise UserError(f"{run_dir}: is not a run directory: check the path")
    from jinja2 import Environment, StrictUndefined

    rows = read_metrics(run_dir)
    layout = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_clean, **layout)
    template = (resources.files("sppo_ray") / "display" / "report_page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        run=run_dir.resolve().name,
        made=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        facts=_facts(run_dir, rows),
        alerts=_alerts(run_dir),
        error=read_status(run_dir).last_error,
        curve=_picture(draw_learning_curve(run_dir, dpi=110)) if rows else None,
        panels=_picture(draw_panels(rows)),
        evaluations=list(_evaluations(run_dir)),
        held_out_name=held_out_name(rows),
        samples=_samples(run_dir),
        roles=_times_by_role(rows),
        memory=_memory(run_dir),
        events=_events(run_dir),
        settings=write_yaml(redact_tree(settings_of(run_dir))),
        command=" ".join(redact(word) for word in read_job(run_dir).entrypoint),
        machine=json_object(RunFile(run_dir, ENVIRONMENT)),
    )


def _facts(run_dir: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    status, job = read_status(run_dir), read_job(run_dir)
    summary, state = Summary.read(RunFile(run_dir, SUMMARY)), status.state
    ends = summary or state
    facts = {
        "name": status.name or "",
        "state": status.phase or "unknown",
        "algorithm": status.algorithm or "",
        "steps": f"{state.step} of {status.steps}" if status.steps else str(state.step),
        "training time": format_seconds(state.seconds or 0.0),
        "samples": f"{state.samples:,}",
        "generated tokens": f"{state.response_tokens:,}",
        f"held-out {held_out_name(rows)}": " → ".join(
            format_fraction(math.nan if value is None else value)
            for value in (ends.initial_accuracy, ends.final_accuracy)
        ),
        "restarts": str(state.restarts),
        "reward errors": str(state.reward_errors),
    }
    if job.continues is not None:
        facts["continues"] = f"{job.continues.name}, step {job.continues.steps} ({job.continues.path})"
    if job.created is not None:
        facts["started"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(job.created))
    if summary is not None and summary.advice:
        facts["advice"] = summary.advice
    return facts


def _alerts(run_dir: Path) -> list[dict[str, Any]]:
    """The guardrails' alarms of the whole run; those that still hold are marked."""
    current = {(alert.detector, alert.since) for alert in read_status(run_dir).alerts}
    return [
        {
            "detector": event.get("detector", ""),
            "since": event.get("since", ""),
            "action": event.get("action", ""),
            "message": event["message"],
            "is_current": (event.get("detector"), event.get("since")) in current,
        }
        for event in read_events(run_dir)
        if event["kind"] == "guardrail"
    ]


def _events(run_dir: Path) -> list[dict[str, str]]:
    shown = [event for event in read_events(run_dir) if event["kind"] not in _QUIET]
    return [
        {
            "time": time.strftime("%m-%d %H:%M:%S", time.gmtime(event["time"])),
            "kind": event["kind"],
            "message": event["message"],
        }
        for event in shown[-SHOWN_EVENTS:]
    ]


def _evaluations(run_dir: Path) -> Iterator[dict[str, Any]]:
    for evaluation in read_evaluations(run_dir):
        for scores in evaluation["by_source"]:
            yield {
                "step": evaluation["step"],
                "time": format_seconds(evaluation.get("train_seconds") or 0.0),
                "source": scores["source"],
                "prompts": scores["num_prompts"],
                "k": scores["k"],
                "accuracy": _fraction(scores["accuracy"]),
                "interval": f"[{_fraction(scores['accuracy_low'])}, {_fraction(scores['accuracy_high'])}]",
                "passes": ", ".join(f"{k}: {_fraction(value)}" for k, value in scores["pass_at"].items()),
                "majority": _fraction(scores["majority"]),
                "length": _fraction(scores["response_length_mean"]),
                "auroc": _fraction(evaluation.get("critic", {}).get("auroc")),
            }


def _samples(run_dir: Path) -> list[dict[str, Any]]:
    """The best and the worst responses of the first and the last recorded step."""
    from sppo_ray.rundir.trajectories import read_step, steps

    recorded = steps(run_dir)
    found = []
    for step in dict.fromkeys(recorded[:1] + recorded[-1:]):
        rows = read_step(run_dir, step, _COLUMNS).to_pylist()
        rows.sort(key=lambda row: -row["reward"])
        chosen = rows[:SAMPLES_A_SIDE] + rows[max(SAMPLES_A_SIDE, len(rows) - SAMPLES_A_SIDE) :]
        found += [_sample(step, row) for row in chosen]
    return found


def _sample(step: int, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "step": step,
        "source": row["source"],
        "reward": f"{row['reward']:g}",
        "reason": row["reason"],
        "value": _fraction(row["value"]),
        "advantage": f"{row['advantage']:+.2f}",
        "tokens": len(row["response_ids"]),
        "ended": row["finish_reason"],
        "truth": _shown(row["ground_truth"]),
        "prompt": _shown(row["prompt_text"]),
        "response": _shown(row["response_text"]),
        "turns": [_turn(turn) for turn in turns_of(row)],
    }


def _turn(turn: RecordedTurn) -> dict[str, str]:
    part = f", {turn.reward:+g}" if turn.reward else ""
    what = "action" if turn.is_action else "observation"
    return {"kind": what, "what": f"{what}, {turn.tokens} tokens{part}", "text": _shown(turn.text)}


def _clean(value: Any) -> Any:
    """Write control characters as escapes: HTML cannot hold some, and others reorder a text."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in value)


def _shown(text: str) -> str:
    """Cut a long text in the middle."""
    if len(text) > SHOWN_CHARACTERS:
        half = SHOWN_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
    return redact(text)


def _times_by_role(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, float]]]:
    """What the workers of each role did: (label, share of the steps' time), largest first."""
    seconds = math.fsum(row["seconds/step"] for row in rows if row.get("seconds/step"))
    shares: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        for name, share in row.items():
            if name.startswith("time/") and share is not None:
                _, role, label = name.split("/", 2)
                shares[role][label] += share * row["seconds/step"] / seconds
    return {
        role: sorted(of_role.items(), key=lambda item: -item[1]) for role, of_role in sorted(shares.items())
    }


def _memory(run_dir: Path) -> dict[str, str]:
    summary = Summary.read(RunFile(run_dir, SUMMARY))
    peaks = summary.peak_memory if summary is not None else {}
    return {worker: f"{size / 2**30:.2f} GiB" for worker, size in sorted(peaks.items())}


def _fraction(value: float | None) -> str:
    return format_fraction(math.nan if value is None else value)


def _picture(png: bytes | None) -> str | None:
    return None if png is None else f"data:image/png;base64,{base64.b64encode(png).decode()}"
