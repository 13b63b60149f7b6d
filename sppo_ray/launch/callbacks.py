"""Functions of the user's that are called after each step, in the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sppo_ray.trainer.recorder import Recorder

Callback = Callable[[Mapping[str, float]], object]


class StopTraining(Exception):
    """Raised by a callback, it ends the run after the step, as `sppo-ray stop` does."""


class Callbacks:
    """The callbacks of a run. `error`: what one of them raised, which has stopped the run."""

    def __init__(self, functions: Sequence[Callback]) -> None:
        self._functions = tuple(functions)
        self.error: Exception | None = None

    def of_run(
        self, recorder: Recorder, *, stop: Callable[[], None]
    ) -> Callable[[Mapping[str, float]], None] | None:
        """Return the function to call with each step's row of metrics; None without callbacks. It
        never raises: an error is recorded and calls `stop`.
        """

        def after_step(row: Mapping[str, float]) -> None:
            for function in self._functions:
                try:
                    function(row)
                except StopTraining as request:
                    recorder.event("callback", f"a callback ends the run: {request}", show=True)
                    stop()
                except Exception as error:  # boundary: a function of the user's may raise anything
                    self.error = error
                    what = f"{type(error).__name__}: {error}"
                    recorder.event("callback", f"a callback failed, the run stops: {what}", show=True)
                    stop()

        return after_step if self._functions else None
