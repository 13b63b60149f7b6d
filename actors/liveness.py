"""How a busy actor stays answerable: a concurrency group of its own for pings, and where its process is to be found.

With a concurrency group, Ray runs the other methods on one thread of their own, in the order in which they were asked.
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
    """`handle.ping()`, answered while another method runs."""
    return handle.ping.options(concurrency_group=GROUP).remote()


def whereabouts(actor: Any) -> dict[str, Any]:
    """{"pid", "node_ip", "node_id"} of the process that this is called in: `handle.__ray_call__.remote(whereabouts)`."""
    return {"pid": os.getpid(), "node_ip": ray.util.get_node_ip_address(), "node_id": ray.get_runtime_context().get_node_id()}
