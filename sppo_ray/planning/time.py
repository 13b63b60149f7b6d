"""Seconds of a step by stage: pure functions of shapes, devices and stated utilisations.

None of the GPU figures was measured by this project. The defaults come from the published
throughputs of other systems and from data sheets; `sppo-ray plan --assume NAME=VALUE` changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from sppo_ray.config.transport import Transport
from sppo_ray.errors import UserError
from sppo_ray.planning.devices import Device
from sppo_ray.planning.shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the seconds are computed from. Rates are in bytes/s unless the name says otherwise."""

    response_share: float = 0.55  # mean response / rollout.max_response_tokens
    prompt_share: float = 0.25  # mean prompt / data.max_prompt_tokens
    training_utilisation: float = 0.35  # of a GPU's FLOP/s: 350 of 989 TFLOP/s
    forward_utilisation: float = 0.40
    decode_bandwidth: float = 0.80  # share of the memory bandwidth that decoding reaches
    decode_step_s: float = 0.008  # host time of an engine's step beside the GPU
    lockstep: float = 1.2  # slowest rank / mean rank, and what is left of padding
    device_to_host: float = 4e9  # pageable
    host_to_device: float = 6e9  # pageable
    object_store: float = 4e9
    digest: float = 10e9
    network: float = 3e9  # between nodes
    device_digest: float = 400e9  # on a GPU
    nccl: float = 50e9  # broadcast between the GPUs of a node
    disk: float = 1e9
    host_adam: float = 40e9  # memory traffic of an offloaded optimizer step
    cpu_decode_step_s: float = 0.002
    cpu_decode_token_s: float = 3e-5
    cpu_train_token_s: float = 4e-6
    cpu_update_s: float = 0.02
    cpu_factor: float = 1.0  # of all seconds on a CPU: the machine's slowness


def assume(given: Sequence[str]) -> Assumptions:
    """Return the defaults changed by "name=value". Raises UserError for another form or name."""
    names = [field.name for field in fields(Assumptions)]
    changes = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in names:
            raise UserError(f"--assume {text}: there is no {name!r}; known: {', '.join(names)}")
        try:
            changes[name] = float(value)
        except ValueError:
            raise UserError(f"--assume {text}: write it as {name}=NUMBER") from None
        if changes[name] <= 0:
            raise UserError(f"--assume {text}: {name} is above 0")
    return replace(Assumptions(), **changes)


def forward_flops(shape: ModelShape, tokens: float, length: float, *, head: bool) -> float:
    """Return the floating-point operations of a forward pass over rows of `length` tokens.

    Two for each parameter of a matrix product and token (Kaplan et al., arXiv 2001.08361, section
    2.1), and for causal attention half of 4 x layers x query width x length a token.
    """
    parameters = shape.body_parameters + (shape.vocabulary * shape.hidden if head else 0)
    return tokens * (2 * parameters + 2 * shape.layers * shape.query * length)


def training_flops(
    shape: ModelShape, tokens: float, length: float, *, head: bool, recompute: bool, frozen: bool = False
) -> float:
    """Return the operations of forward and backward pass: three times the forward pass, four times
    with recomputation. `frozen` weights (LoRA) need no gradients of their own, which are as many
    operations as their forward pass; those of the adapters are not counted.
    """
    whole = (4 if recompute else 3) * forward_flops(shape, tokens, length, head=head)
    return whole - frozen * forward_flops(shape, tokens, 0.0, head=head)


@dataclass(frozen=True, slots=True)
class Generation:
    """The work of one engine in a step."""

    shape: ModelShape
    samples: float
    prompt: float  # mean tokens
    response: float  # mean tokens
    longest: int  # tokens
    concurrent: float  # responses at the same time at most
    weight_bytes: int  # of each GPU of the engine
    kv_bytes: int  # a token, of each GPU
    devices: float  # GPUs, or cores


def generation_seconds(work: Generation, device: Device, assumed: Assumptions) -> float:
    """Return the seconds of one engine. Each decoding step reads the weights and the KV cache of
    all running responses once, and takes the host its time. The number of steps is that of full
    batches, and at least that of the longest response, whose last part runs nearly alone.
    """
    batch = max(1.0, min(work.concurrent, work.samples))
    full = work.samples * work.response / batch
    tail = max(0.0, work.longest - full) if work.samples <= batch else work.longest - work.response
    prefill = forward_flops(work.shape, work.samples * work.prompt, work.prompt, head=False)
    if device.kind == "cpu":
        tokens = work.samples * work.response
        flops = prefill + forward_flops(work.shape, tokens, work.prompt + work.response / 2, head=True)
        each = tokens * assumed.cpu_decode_token_s + (full + tail) * assumed.cpu_decode_step_s
        return assumed.cpu_factor * (flops / (device.flops * work.devices) + each)
    bandwidth = device.bandwidth * assumed.decode_bandwidth
    cached = work.kv_bytes * (work.prompt + work.response / 2)

    def step(responses: float) -> float:
        flops = forward_flops(work.shape, responses, work.prompt + work.response / 2, head=True)
        compute = flops / (device.flops * work.devices * assumed.forward_utilisation)
        return assumed.decode_step_s + max((work.weight_bytes + responses * cached) / bandwidth, compute)

    prefilling = prefill / (device.flops * work.devices * assumed.forward_utilisation)
    return prefilling + full * step(batch) + tail * step(max(1.0, batch / 8))


def compute_seconds(
    flops: float,
    tokens: float,
    ranks: int,
    device: Device,
    assumed: Assumptions,
    *,
    cores: float,
    train: bool,
) -> float:
    """Return the seconds of `flops` over `ranks`, with the slowest rank's share."""
    if device.kind == "cpu":
        busy = flops / (device.flops * cores) + tokens * assumed.cpu_train_token_s
        return assumed.cpu_factor * busy / ranks
    reached = assumed.training_utilisation if train else assumed.forward_utilisation
    return assumed.lockstep * flops / (ranks * device.flops * reached)


def optimizer_seconds(
    parameters: int, ranks: int, device: Device, assumed: Assumptions, *, offload: bool
) -> float:
    """Return the seconds of one AdamW step: it reads and writes 30 bytes a parameter of the
    partition (master 8, moments 16, gradient 4, new weights 2), on the device or in host memory.
    """
    if device.kind == "cpu":
        return assumed.cpu_factor * (assumed.cpu_update_s + 30 * parameters / ranks / device.bandwidth)
    rate = assumed.host_adam if offload else device.bandwidth * assumed.decode_bandwidth
    transfer = 6 * parameters / ranks / device.host_link if offload else 0.0
    return 30 * parameters / ranks / rate + transfer


def sync_seconds(
    size: int, device: Device, assumed: Assumptions, *, other_nodes: int, transport: Transport = "flat"
) -> float:
    """Return the seconds of a weight sync of `size` bytes.

    flat: copy to the host, digest, object store, network (one engine's node after the other), copy
    to the device, digest of the loaded bytes. nccl and ipc: digest by the learner, broadcast (the
    network once for all nodes) or copy on the device, digest by the engine. On a GPU the engine
    also compares its memory with what it received: two digests, after one more copy by flat.
    """
    if transport == "flat" or device.kind == "cpu":
        rates = [assumed.digest, assumed.object_store, assumed.digest]
        if device.kind == "cuda":
            rates += [assumed.device_to_host, *[assumed.host_to_device, assumed.device_digest] * 2]
        return sum(size / rate for rate in rates) + other_nodes * size / assumed.network
    copy = device.bandwidth / 2 if transport == "ipc" else assumed.nccl
    return 4 * size / assumed.device_digest + size / (assumed.network if other_nodes else copy)
