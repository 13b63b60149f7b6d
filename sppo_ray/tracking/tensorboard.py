"""Write TensorBoard scalars with the tensorboard package (without torch or TensorFlow)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from sppo_ray.errors import UserError


class TensorBoard:
    """Writes event files into a directory; implements `Tracker`."""

    def __init__(self, directory: Path) -> None:
        try:
            # Imported here because it takes half a second, and a run may not use it.
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise UserError(
                f"logging.tensorboard is on but {error.name} is not installed: pip install tensorboard, or "
                "set "
                "--logging.tensorboard=false"
            ) from None
        self._event, self._session, self._summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        self._writer = EventFileWriter(str(directory), flush_secs=10)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        event = self._event(step=step, wall_time=time.time(), summary=self._summary(value=values))
        self._writer.add_event(event)
        self._writer.flush()

    def forget_from(self, step: int) -> None:
        """Write TensorBoard's restart mark, which hides points at `step` and later from earlier
        event files.
        """
        mark = self._session(status=self._session.START)
        self._writer.add_event(self._event(step=step, wall_time=time.time(), session_log=mark))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
