"""Counts what a model takes out of the buffers that hold received weights. Imports only torch."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LoadLedger(TorchDispatchMode):
    """Counts the elements of each parameter that are copied from received buffers into real memory.

    The names that `load_weights` returns are not sufficient: a loader may skip a tensor and still
    report its fused parameter, and layerwise reload first copies into tensors without storage.
    """

    def __init__(self, item_bytes: int) -> None:
        super().__init__()
        self._item_bytes = item_bytes
        # by the address of a buffer: (end of a parameter in it, its name), sorted
        self._ends: dict[tuple[torch.device, int], list[tuple[int, str]]] = {}
        self._sizes: dict[str, int] = {}
        self._copied: dict[str, int] = {}

    def watch(self, buffer: torch.Tensor, layout: Mapping[str, tuple[int, int]]) -> None:
        """Count copies out of `buffer`, too. `layout` has the bytes [start, end) of each parameter
        in the buffer's storage.
        """
        # An address that was in use before belongs to a buffer that nothing refers to any more.
        ends = sorted((end, name) for name, (_, end) in layout.items())
        self._ends[buffer.device, buffer.untyped_storage().data_ptr()] = ends
        self._sizes |= {name: (end - start) // self._item_bytes for name, (start, end) in layout.items()}
        self._copied |= dict.fromkeys(layout, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default and not args[0].is_meta:
            self._note(args[1])
        elif func in (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default) and not result.is_meta:
            self._note(args[0])
        return result

    def _note(self, source: torch.Tensor) -> None:
        if source.device.type == "meta":
            return
        ends = self._ends.get((source.device, source.untyped_storage().data_ptr()))
        if ends is None:
            return
        first_byte = source.storage_offset() * source.element_size()
        name = ends[bisect.bisect_right(ends, first_byte, key=lambda entry: entry[0])][1]
        self._copied[name] += source.numel()

    def num_loaded(self, shards: int) -> int:
        """Return the number of loaded parameters. With one shard a parameter must be complete, with
        several shards a part of it is enough.
        """
        return sum(
            copied >= (self._sizes[name] if shards == 1 else 1) for name, copied in self._copied.items()
        )
