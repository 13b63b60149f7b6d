"""Compares a model's own memory after loading with what was loaded into it. Knows no vLLM.

    ReadBack(model, shapes)   a dry run of the model's loaders: where does each part go?
    watch(parameters)         digest of every part, as it is handed to the loaders
    num_found()               a dry run again, digest of the memory at each place

Loaders fuse parameters (qkv_proj, gate_up_proj) and cut them for tensor parallelism; the dry run
asks them, so no table of names is needed. It gives them tensors without storage, and notes the
copies that they would make.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from actors.weights.device_digest import device_digest

LoadWeights = Callable[[Iterable[tuple[str, Tensor]]], object]


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a parameter, as a view of the whole, and the memory that the model keeps it in."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements
    memory: Tensor

    def part_of(self, parameter: Tensor) -> Tensor:
        """Return the part as it is stored: on the model's device, in its data type."""
        first = parameter.storage_offset() + self.offset
        return parameter.as_strided(self.size, self.stride, first).to(self.memory)


class ReadBack:
    """For one load. `model.load_weights` is the loader; `shapes` are those of what it is given."""

    def __init__(self, model: Any, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> None:
        self._load_weights: LoadWeights = model.load_weights
        self._shapes = shapes
        self._dtype = dtype
        self._places = find_places(self._load_weights, shapes, dtype)
        self._expected: dict[str, list[str]] = {}

    def watch(self, parameters: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass contiguous parameters on to the loaders."""
        for name, parameter in parameters:
            with _disable_current_modes():  # a ledger that counts the loaders' copies
                parts = (place.part_of(parameter) for place in self._places[name])
                self._expected[name] = [device_digest(part.contiguous()) for part in parts]
            yield name, parameter

    def num_found(self) -> int:
        """Return the number of parameters that the model holds as they were given."""
        places = find_places(self._load_weights, self._shapes, self._dtype)
        return sum(self._expected.get(name) == _digests(places[name]) for name in self._shapes)


def is_readable(model: nn.Module) -> bool:
    """Whether the parameters hold the weights that the model computes with. On a CPU, vLLM's linear
    layers hold packed copies instead, and their parameters are empty.
    """
    return all(parameter.numel() > 0 for parameter in model.parameters())


def find_places(
    load_weights: LoadWeights, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype
) -> dict[str, list[Place]]:
    """Return the places of each parameter, without changing the model."""
    given = {name: torch.empty(*shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    copies = _Copies({tensor.untyped_storage()._cdata: name for name, tensor in given.items()})
    with copies:
        load_weights(iter(given.items()))
    return copies.places


def _digests(places: Iterable[Place]) -> list[str]:
    return [device_digest(place.memory.contiguous()) for place in places]


class _Copies(TorchDispatchMode):
    """Notes copies out of tensors without storage in place of making them."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """`names`: of the parameters, by their storage."""
        super().__init__()
        self._names = names
        self.places: dict[str, list[Place]] = defaultdict(list)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.copy_.default and args[1].is_meta:
            target, source = args[0], args[1]
            name = self._names[source.untyped_storage()._cdata]
            self.places[name].append(
                Place(tuple(source.shape), source.stride(), source.storage_offset(), target.detach())
            )
            return target
        return func(*args, **(kwargs or {}))
