"""The driver of a run that kills its own engine rollout-0 where the arguments say.

    python -m tests.ray.killing_driver RUN_DIR STEP:PLACE,... ARGUMENT ...

It is `sppo-ray train quickstart` with hooks, which kill in step STEP (from 0):

    generate                        the requests have just been handed out
    policy, critic, publish, sync   the phase of layout colocated has just begun
    broadcast                       the engine receives weights in chunks, and waits for one

STEP:return kills nothing: after step STEP the run waits until the killed engine is back.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from actors.handles import RayRolloutWorker
from sppo_ray.cli.main import main
from sppo_ray.protocols import PublishedWeights
from sppo_ray.rollout.pipeline import SamplePipeline
from sppo_ray.rundir.metrics import read_events
from sppo_ray.trainer.phases import Phase
from sppo_ray.trainer.recorder import Recorder
from sppo_ray.trainer.turns import Colocated

RETURN_S = 300.0  # an engine starts in 10 to 20 s
PLACES = {Phase.POLICY: "policy", Phase.CRITIC: "critic", Phase.PUBLISH: "publish", Phase.GENERATE: "sync"}


class Killer:
    def __init__(self, run_dir: Path, planned: set[str]) -> None:
        self.run_dir = run_dir
        self.status = run_dir / "status.json"
        self.planned = planned
        self.killed: set[int] = set()
        self.step = 0
        self.task: asyncio.Future[None] | None = None

    def install(self) -> None:
        enter, dispatch = Colocated.enter, SamplePipeline.dispatch
        receive = RayRolloutWorker.receive_weights

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

        async def receiving(worker: RayRolloutWorker, published: PublishedWeights, epoch: int) -> None:
            received = asyncio.ensure_future(receive(worker, published, epoch))
            if worker.name == "rollout-0" and f"{self.step}:broadcast" in self.planned:
                await asyncio.sleep(0.01)
                learner = self.pid("learner-0")
                os.kill(learner, signal.SIGSTOP)  # no further chunk
                await asyncio.sleep(0.5)
                await self.at("broadcast")
                os.kill(learner, signal.SIGCONT)
            await received

        async def stepped(recorder: Recorder, step: int, figures: Any) -> None:
            if f"{self.step}:return" in self.planned:
                async with asyncio.timeout(RETURN_S):
                    while not any(row["kind"] == "worker-revived" for row in read_events(self.run_dir)):
                        await asyncio.sleep(0.1)

        Recorder.call_back = stepped  # type: ignore[method-assign]
        Colocated.enter, SamplePipeline.dispatch = entering, dispatching  # type: ignore[method-assign]
        RayRolloutWorker.receive_weights = receiving  # type: ignore[method-assign]

    async def at(self, place: str) -> None:
        if (key := f"{self.step}:{place}") not in self.planned:
            return
        self.planned.remove(key)
        while (engine := self.pid("rollout-0")) in {None, *self.killed}:
            await asyncio.sleep(0.01)  # status.json is written by a thread
        self.killed.add(engine)
        os.kill(engine, signal.SIGKILL)

    def pid(self, name: str) -> Any:
        """None while the process starts."""
        rows = json.loads(self.status.read_text()).get("actors", [])
        return next((row["pid"] for row in rows if row["name"] == name), None)


if __name__ == "__main__":
    run_dir, planned, *arguments = sys.argv[1:]
    Killer(Path(run_dir), set(planned.split(","))).install()
    sys.argv = ["sppo-ray", "train", "quickstart", "--run-dir", run_dir, *arguments]
    sys.exit(main())
