"""Lets a busy actor answer pings, and locates its process.

Pings have their own concurrency group. Ray then runs all other methods on one thread, in the order
of the calls.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable
from typing import Any

import ray

GROUP = "vital"
VITAL = {GROUP: 1}
"""`ray.remote(concurrency_groups=VITAL)`"""


def ask_beside(handle: Any) -> Awaitable[dict[str, Any]]:
    """Call `handle.ping()`; the actor answers also while another method runs."""
    return handle.ping.options(concurrency_group=GROUP).remote()


def whereabouts(actor: Any) -> dict[str, Any]:
    """Return {"pid", "node_ip", "node_id"} of the actor's process.

    Call it as `handle.__ray_call__.remote(whereabouts)`.
    """
    return {
        "pid": os.getpid(),
        "node_ip": ray.util.get_node_ip_address(),
        "node_id": ray.get_runtime_context().get_node_id(),
    }
