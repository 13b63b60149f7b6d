"""The driver of a colocated run that kills its own engine, once in each phase.

    python -m tests.ray.killing_driver RUN_DIR STEP:PLACE,... ARGUMENT ...

It is `sppo-ray train quickstart` with a hook at each border of a phase. At place `generate` the
requests of step STEP (from 0) have just been handed out; at the others the phase has just begun.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sppo_ray.cli.main import main
from sppo_ray.rollout.pipeline import SamplePipeline
from sppo_ray.trainer.phases import Phase
from sppo_ray.trainer.turns import Colocated

PLACES = {Phase.POLICY: "policy", Phase.CRITIC: "critic", Phase.PUBLISH: "publish", Phase.GENERATE: "sync"}


class Killer:
    def __init__(self, run_dir: Path, planned: set[str]) -> None:
        self.status = run_dir / "status.json"
        self.planned = planned
        self.killed: set[int] = set()
        self.step = 0
        self.task: asyncio.Future[None] | None = None

    def install(self) -> None:
        enter, dispatch = Colocated.enter, SamplePipeline.dispatch

        async def entering(turns: Colocated, phase: Phase) -> None:
            is_new = phase is not turns.phase
            await enter(turns, phase)
            if is_new and phase in PLACES:
                await self.at(PLACES[phase])

        def dispatching(pipeline: SamplePipeline, step: int, *rest: Any, **named: Any) -> Any:
            self.step = step
            batch = dispatch(pipeline, step, *rest, **named)
            self.task = asyncio.ensure_future(self.at("generate"))
            return batch

        Colocated.enter, SamplePipeline.dispatch = entering, dispatching  # type: ignore[method-assign]

    async def at(self, place: str) -> None:
        if (key := f"{self.step}:{place}") not in self.planned:
            return
        self.planned.remove(key)
        while (engine := self.engine()) in {None, *self.killed}:
            await asyncio.sleep(0.01)  # status.json is written by a thread
        self.killed.add(engine)
        os.kill(engine, signal.SIGKILL)

    def engine(self) -> Any:
        """The process id of the engine; None while it starts."""
        rows = json.loads(self.status.read_text()).get("actors", [])
        return next((row["pid"] for row in rows if row["name"] == "rollout-0"), None)


if __name__ == "__main__":
    run_dir, planned, *arguments = sys.argv[1:]
    Killer(Path(run_dir), set(planned.split(","))).install()
    sys.argv = ["sppo-ray", "train", "quickstart", "--run-dir", run_dir, *arguments]
    sys.exit(main())
