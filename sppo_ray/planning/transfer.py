"""Device memory of a weight sync: the buffers of a learner that sends and of an engine that
receives (`actors/weights/`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo_ray.config.transport import Transport
from sppo_ray.planning.shapes import ModelShape

DIGEST = 150_000_000
"""Temporary tensors of a digest on a device (`actors/weights/device_digest.py`)."""


@dataclass(frozen=True, slots=True)
class TransferBuffers:
    """Bytes of the learner's rank 0, and of each device of an engine."""

    sender: int
    receiver: int


def transfer_buffers(
    transport: Transport, shape: ModelShape, item_bytes: int, *, chunk_bytes: int, tensor_parallel: int
) -> TransferBuffers:
    """Return the buffers of one version.

    A layer that an engine has received completely is made beside its old weights, and copied into
    them. In chunks (nccl, ipc) the sender has one chunk, by ipc one more that the engines map; an
    engine receives a chunk while it still has the one before; both take digests.
    """
    largest = shape.largest_parameter * item_bytes
    layer = largest // tensor_parallel
    if transport == "flat":
        return TransferBuffers(0, layer)
    chunk = max(largest, min(chunk_bytes, shape.parameters * item_bytes))
    chunks_sent = 2 if transport == "ipc" else 1
    return TransferBuffers(chunks_sent * chunk + DIGEST, 2 * chunk + layer + DIGEST)
