"""Moves the states of a training rank between its device and host memory, for the colocated layout.

    ALL  --hold(WEIGHTS)-->  optimizer in host memory  --hold(NOTHING)-->  weights too
    reading calls (values, publish, export) bring the weights for their duration: `with_resident`

On a GPU all states of ZeRO stages 1 and 2 move with DeepSpeed's `offload_states`. Stage 0 has no
ZeRO optimizer; its states move by `PlainStates`. Stage 3 is refused when settings are parsed,
because DeepSpeed moves its optimizer only for an AdamW that it compiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sppo_ray.protocols import Holds

M = TypeVar("M", bound=Callable[..., Any])


class Mover(Protocol):
    """Moves one kind of state; each is called only in a state in which it has something to do."""

    def offload(self, part: Holds) -> None: ...

    def reload(self, part: Holds) -> None: ...


class ZeroStates:
    """DeepSpeed's `offload_states` and `reload_states`. On a CPU they run as well, and copy within
    host memory.
    """

    def __init__(self, engine: Any) -> None:
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

        self._engine = engine
        self._states = {
            Holds.WEIGHTS: {State.lp_params},
            Holds.ALL: {State.optim_states, State.hp_params, State.lp_grads},
        }

    def offload(self, part: Holds) -> None:
        self._engine.offload_states(include=self._states[part])

    def reload(self, part: Holds) -> None:
        # `reload_states` takes no choice: it reloads what is marked as offloaded.
        marked = self._engine.optimizer.offloaded_states
        others = marked - self._states[part]
        marked -= others
        self._engine.reload_states()
        marked |= others


class PlainStates:
    """States without ZeRO: the parameters, and the tensors of AdamW.

    On a CPU it is a STAND-IN: states move to another buffer, and the buffer that they leave is
    filled with NaN, so that a use of it shows.
    """

    def __init__(self, engine: Any, device: str) -> None:
        self._engine = engine
        self._device = device

    def offload(self, part: Holds) -> None:
        for tensor in self._tensors(part):
            tensor.data = self._to_host(tensor.data)
        if self._device == "cuda":
            torch.cuda.empty_cache()  # for the other processes on the GPU

    def reload(self, part: Holds) -> None:
        for tensor in self._tensors(part):
            moved = _copied(tensor.data) if self._device == "cpu" else tensor.data.to(self._device)
            tensor.data = moved

    def _tensors(self, part: Holds) -> Iterator[Tensor]:
        if part is Holds.WEIGHTS:
            yield from self._engine.module.parameters()
            return
        for parameter in self._engine.module.parameters():
            parameter.grad = None  # between two updates it holds nothing that counts
        for state in self._engine.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def _to_host(self, tensor: Tensor) -> Tensor:
        if self._device == "cpu":
            return _copied(tensor)
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def _copied(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
    return copy


class Residency:
    """What a rank holds on its device. A new rank holds ALL."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover
        self.held = Holds.ALL

    def hold(self, wanted: Holds) -> None:
        """Move states until `wanted` is held. The optimizer leaves first and returns last."""
        while self.held > wanted:
            self._mover.offload(self.held)
            self.held = Holds(self.held - 1)
        while self.held < wanted:
            self._mover.reload(Holds(self.held + 1))
            self.held = Holds(self.held + 1)

    @contextmanager
    def at_least(self, wanted: Holds) -> Iterator[None]:
        """Hold `wanted` for the block, and what was held before after it."""
        before = self.held
        self.hold(max(before, wanted))
        try:
            yield
        finally:
            self.hold(before)

    def require(self, wanted: Holds, what: str) -> None:
        """Raise RuntimeError when the rank holds less. It is a bug of the caller."""
        if self.held < wanted:
            raise RuntimeError(
                f"{what} needs {wanted.name} on the device, and the rank holds {self.held.name}"
            )


def with_resident(wanted: Holds) -> Callable[[M], M]:
    """Decorate a method of a rank that reads its states: they are on the device for the call."""

    def decorate(method: M) -> M:
        @functools.wraps(method)
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            with self.engine.residency.at_least(wanted):
                return method(self, *arguments, **keywords)

        return call  # type: ignore[return-value]

    return decorate
