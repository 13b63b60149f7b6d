"""Bytes of memory: pure functions of shapes and settings.

A rank's memory has phases, and its peak is the largest one:

    load       the model before DeepSpeed has partitioned it
    backward   weights, optimizer, accumulated gradients, activations of one micro-batch
    reduce     the same at the end of the backward pass: the micro-batch's gradients, no activations
    step       weights, optimizer, gradients as the optimizer reads them
    sync       weights, optimizer, gradients, and the buffers of weights that are sent in chunks

Sources: ZeRO (arXiv 1910.02054), and the code of DeepSpeed 0.19.8 (`runtime/zero/stage_1_and_2.py`,
`stage3.py`), Transformers 5.19 (Llama and Qwen2 layers) and vLLM 0.32. P = parameters, b = bytes of
the model's data type, N = ranks, T = tokens of a micro-batch. With LoRA all P are held as weights,
and gradients and optimizer belong to the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sppo_ray.planning.lora import Adapters
from sppo_ray.planning.shapes import ModelShape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
GIB = 2**30
MAX_LOGITS = 2**26
"""As `models/policy.py`: logits of one chunk of the head."""
REDUCE_BUCKET = 50_000_000
"""As `actors/deepspeed.py`: elements of one reduction."""
FLAT_GRADIENTS = 500_000_000
"""DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE: gradients that stage 0 reduces at once."""
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: gathered at the same time under ZeRO-3."""
LOGIT_BYTES, LOGIT_BYTES_WITH_ENTROPY = 16, 24
"""Bytes a logit at the peak of the head: logits, log-softmax and two more float32 tensors of the
entropy; its gradient needs two more.
"""
CUDA_CONTEXT = int(1.5 * GIB)
"""CUDA context, libraries' workspaces and NCCL's buffers of a process on a GPU; not measured."""
PROCESS = {"train": int(0.55 * GIB), "rollout": int(0.9 * GIB), "other": int(0.3 * GIB)}
"""Resident memory of a process that holds no model: measured on a CPU (training rank), estimated
for the others.
"""
OBJECT_STORE_VERSIONS = 3
"""Versions of the weights in the object store: published, next, and one that engines still hold."""

Components = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Training:
    """What decides the memory of one rank of learner or critic."""

    shape: ModelShape
    parameters: int
    item_bytes: int
    stage: int  # the effective ZeRO stage
    ranks: int
    offload: bool
    gradient_checkpointing: bool
    tokens: int  # of the largest micro-batch
    head_rows: int  # tokens of it whose outputs the head computes
    head_width: int  # outputs of the head: the vocabulary, or 1 for a critic
    entropy_gradient: bool = False
    on_cuda: bool = False
    sync_bytes: int = 0  # the buffer of a weight sync, in host memory
    transfer: int = 0  # buffers of a weight sync in chunks, on the device
    adapters: Adapters | None = None  # None = the whole model is trained

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return self.parameters if self.adapters is None else self.adapters.parameters

    @property
    def held(self) -> int:
        """Number of parameters with the adapters."""
        added = 0 if self.adapters is None else self.adapters.parameters
        return self.parameters + added


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one process by phase and component; `host` is beside the device."""

    phases: Mapping[str, Components]
    host: Components
    host_load: int = 0  # more host memory while the model is loaded

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def work(self) -> Components:
        """The components of the largest phase after loading."""
        later = [phase for name, phase in self.phases.items() if name != "load"]
        return max(later, key=lambda phase: sum(phase.values()))

    @property
    def peak(self) -> int:
        return sum(self.phases[self.peak_phase].values())

    @property
    def host_peak(self) -> int:
        return sum(self.host.values()) + self.host_load


def layer_activations(shape: ModelShape, item_bytes: int, adapters: Adapters | None = None) -> int:
    """Return the bytes a token that one decoder layer saves for its backward pass.

    Each of two RMS norms saves its input in float32 (its own copy in bfloat16), the normalised
    input and its output, which the projections read; attention saves q, k, v, its output and a
    float32 number a head (flash); the gated MLP saves gate, activated gate, up and their product.
    Source: the tensors that autograd saved, counted with `saved_tensors_hooks` (Transformers 5.19).
    In the 16-bit rows of Korthikanti et al. (arXiv 2205.05198) the MLP is not gated. With LoRA the
    norms are frozen and do not save the normalised input, and each adapter saves its A x.
    """
    frozen = adapters is not None
    norm = shape.hidden * (4 + (1 if frozen else 2) * item_bytes) + 4
    attention = (2 * shape.query + 2 * shape.key_value) * item_bytes + 4 * shape.heads
    saved = adapters.saved * item_bytes if adapters is not None else 0
    return 2 * norm + attention + 4 * shape.intermediate * item_bytes + saved


def activations(
    shape: ModelShape,
    tokens: int,
    item_bytes: int,
    *,
    gradient_checkpointing: bool,
    head: int,
    adapters: Adapters | None = None,
) -> int:
    """Return the peak bytes of activations of one forward and backward pass of `tokens` tokens.

    Without recomputation all layers are saved, and above them lies the larger of the head's memory
    and two gradients of the width of the MLP. With recomputation only each layer's input is saved,
    and the head's memory and that of one layer are needed one after the other (Chen et al., arXiv
    1604.06174). `head`: bytes of the head at its peak.
    """
    # The last norm. With LoRA the first norm has no gradient, and saves as much less.
    norm = shape.hidden * (item_bytes if adapters else 2 * item_bytes + 4)
    fixed = tokens * (2 * shape.head_dim * item_bytes + norm)
    layer = tokens * layer_activations(shape, item_bytes, adapters)
    gradients = tokens * 2 * shape.intermediate * item_bytes
    if not gradient_checkpointing:
        return fixed + shape.layers * layer + max(head, gradients)
    inputs = tokens * shape.layers * shape.hidden * item_bytes
    return fixed + inputs + max(head, layer + gradients)


def head_memory(training: Training) -> int:
    """Return the peak bytes of the head: chunks of at most 2^26 logits (`models/policy.py`), each
    with LOGIT_BYTES a logit, and the hidden states of its rows.
    """
    each = LOGIT_BYTES_WITH_ENTROPY if training.entropy_gradient else LOGIT_BYTES
    rows = min(training.head_rows, max(1, MAX_LOGITS // training.head_width))
    hidden = training.head_rows * training.shape.hidden * training.item_bytes
    return rows * training.head_width * each + hidden


def training_memory(training: Training) -> RankMemory:
    """Return the memory of one rank of learner or critic by phase."""
    state = _offloaded(training) if training.offload else _partitioned(training)
    weights, optimizer = state["weights"], state["optimizer"]
    head = head_memory(training)
    work = activations(
        training.shape,
        training.tokens,
        training.item_bytes,
        gradient_checkpointing=training.gradient_checkpointing,
        head=0,
        adapters=training.adapters,
    )
    context = {"context": CUDA_CONTEXT} if training.on_cuda else {}
    all_work = activations(
        training.shape,
        training.tokens,
        training.item_bytes,
        gradient_checkpointing=training.gradient_checkpointing,
        head=head,
        adapters=training.adapters,
    )
    backward = {
        "weights": weights,
        "gradients": state["gradients"],
        "optimizer": optimizer,
        "activations": min(work, all_work),
        "logits": all_work - min(work, all_work),
        "buffers": state["buffers"],
        **context,
    }
    reduce = {
        "weights": weights,
        "gradients": state["gradients"] + state["fresh gradients"],
        "optimizer": optimizer,
        "buffers": state["buffers"],
        **context,
    }
    step = {
        "weights": weights,
        "gradients": state["step gradients"],
        "optimizer": optimizer,
        "buffers": state["step buffers"],
        **context,
    }
    load = {"weights": state["load"], **context}
    phases = {"load": load, "backward": backward, "reduce": reduce, "step": step}
    if training.transfer:
        gradients = {"gradients": state["gradients"]}
        buffers = {"transfer buffers": training.transfer}
        phases["sync"] = {"weights": weights, "optimizer": optimizer, **gradients, **buffers, **context}
    host = {"offloaded optimizer": state["host"]} if state["host"] else {}
    sync = {"sync buffer": training.sync_bytes} if training.sync_bytes else {}
    if training.on_cuda:
        whole = training.parameters * training.item_bytes
        loading = _one_by_one(training) if training.stage == 3 else whole
        kept = sum(sync.values()) + sum(host.values())
        process = {"process": PROCESS["train"]}
        return RankMemory(phases, process | host | sync, max(0, loading - kept))
    return RankMemory({name: phase | sync | host for name, phase in phases.items()}, {})


def _partitioned(training: Training) -> dict[str, int]:
    """Return the model states of a rank whose optimizer is on the training device.

    AdamW in ZeRO-DP (arXiv 1910.02054, section 3.1): b P weights, 4 P float32 master weights, 8 P
    moments; DeepSpeed accumulates gradients in float32. Partitioned over the ranks are optimizer
    (stage 1), gradients (2) and weights (3). Not in the paper:

    - stage 0 has no master weights (this project uses it in float32 only).
    - float32 at stages 1 and 2 keeps master weights beside equal weights; at stage 3 they are the
      same tensor (`_create_fp32_partitions`).
    - float32 at stage 2: a micro-batch's gradients exist beside the accumulated ones, and the step
      flattens a copy (`get_flat_partition`, `flatten`). In bfloat16 the accumulated gradients are
      one flat float32 buffer, and the micro-batch's last while their bucket is reduced.
    - stages 1 and 2 flatten the weights into a copy at the start; where a GPU has no room for it,
      on the host.
    """
    count, trained, item = training.held, training.trained, training.item_bytes
    stage, part = training.stage, -(-trained // training.ranks)
    float32 = item == 4
    bucket = min(trained, REDUCE_BUCKET) * item
    flattened = 0 if training.on_cuda else trained * item
    if stage == 0:
        reduce = 4 * min(trained, FLAT_GRADIENTS)  # gradients are flattened, on one rank too
        return _states(
            weights=count * item,
            optimizer=8 * trained,
            gradients=4 * trained,
            step=4 * trained,
            step_buffers=reduce,
            load=count * item,
        )
    if stage < 3:
        # At stage 1 a micro-batch adds to all gradients in place, and only the last one is reduced.
        fresh = part * item if float32 and stage == 2 else 0
        return _states(
            weights=count * item,
            optimizer=12 * part,
            gradients=4 * (trained if stage == 1 else part),
            fresh=fresh + largest_gradients(training),
            step=4 * part + (4 * trained if stage == 1 else 4 * part if float32 else 0),
            buffers=stage * bucket,  # two at stage 2, where reduction overlaps with the backward pass
            load=count * item + flattened,
        )
    share = -(-count // training.ranks) * item
    gathered = min(count, LIVE_PARAMETERS) * item
    # `reduce_scatter_coalesced` copies the bucket, and gloo copies that once more.
    copies = (1 if training.on_cuda else 2) if training.ranks > 1 else 0
    return _states(
        weights=share + gathered,
        optimizer=(8 if float32 else 12) * part,
        gradients=4 * part,
        fresh=largest_gradients(training),
        step=4 * part + 4 * min(part, LIVE_PARAMETERS),
        buffers=(1 + copies) * bucket + training.shape.largest_parameter * item,
        step_buffers=bucket,
        load=share + _one_by_one(training),
    )


def _one_by_one(training: Training) -> int:
    """Return the bytes of a parameter that ZeRO-3 has read and is spreading over the ranks."""
    return 2 * training.shape.largest_parameter * training.item_bytes


def largest_gradients(training: Training) -> int:
    """Return the bytes of the largest weight's gradient at the end of a backward pass. A tied
    embedding has one as embedding and one as head until they are added.
    """
    if training.adapters is not None:
        return training.adapters.largest * training.item_bytes
    is_tied = training.shape.tied and training.head_width > 1
    return (1 + is_tied) * training.shape.largest_parameter * training.item_bytes


def _offloaded(training: Training) -> dict[str, int]:
    """Return the model states of a rank with `offload_optimizer` (ZeRO-Offload, arXiv 2101.06840).

    In host memory, a partition's parameter: float32 master 4, float32 gradient 4, moments 8,
    staging of the new weights b, and b to accumulate the gradients of several micro-batches
    (`initialize_optimizer_states`, `async_accumulate_grad_in_cpu_via_gpu`); at stage 3 a float32
    accumulation buffer of 4 and no staging. All but the moments are pinned, and torch rounds a
    pinned buffer up to a power of two.
    """
    count, trained, item = training.held, training.trained, training.item_bytes
    part = -(-trained // training.ranks)
    pinned = pinned_bytes if training.on_cuda else int
    if training.stage == 3:
        host = 8 * part + 4 * part + 2 * pinned(4 * part)
    else:
        host = 8 * part + 2 * pinned(4 * part) + pinned(item * part) + item * part
    bucket = min(trained, REDUCE_BUCKET) * item
    share = -(-count // training.ranks) * item
    weights, largest = count * item, training.shape.largest_parameter * item
    if training.stage == 3:
        weights = share + min(count, LIVE_PARAMETERS) * item
    elif training.adapters is not None:
        largest = training.adapters.largest * item
    return _states(
        weights=weights,
        optimizer=0,
        gradients=0,
        fresh=largest_gradients(training),
        step=0,
        buffers=2 * bucket + largest,
        step_buffers=largest,
        load=share + _one_by_one(training)
        if training.stage == 3
        else count * item + (0 if training.on_cuda else trained * item),
        host=host,
    )


def _states(
    *,
    weights: int,
    optimizer: int,
    gradients: int,
    step: int,
    load: int,
    fresh: int = 0,
    buffers: int = 0,
    step_buffers: int = 0,
    host: int = 0,
) -> dict[str, int]:
    return {
        "weights": weights,
        "optimizer": optimizer,
        "gradients": gradients,
        "fresh gradients": fresh,
        "step gradients": step,
        "buffers": buffers,
        "step buffers": step_buffers,
        "load": load,
        "host": host,
    }


def pinned_bytes(size: int) -> int:
    """Return what torch's host allocator reserves for a pinned buffer: the next power of two
    (`c10/core/CachingHostAllocator.h`).
    """
    return 1 << max(0, size - 1).bit_length()


def reference_memory(training: Training) -> RankMemory:
    """Return the memory of a frozen copy of the policy, which only does forward passes: the
    weights, one layer's tensors and a chunk of the head.
    """
    weights = training.parameters * training.item_bytes
    width = 3 * training.shape.intermediate + 4 * training.shape.hidden
    components = {
        "weights": weights,
        "activations": training.tokens * width * training.item_bytes,
        "logits": head_memory(training),
    }
    if not training.on_cuda:
        return RankMemory({"forward": components}, {})
    host = {"process": PROCESS["train"]}
    return RankMemory({"forward": components | {"context": CUDA_CONTEXT}}, host, weights)


def checkpoint_bytes(parameters: int, item_bytes: int, stage: int) -> int:
    """Return the bytes of the checkpoint of that many trained parameters: float32 master weights
    and moments, and the model's own weights where they are saved too (stages 1 and 2; stage 0 has
    no master weights; at stage 3 the model's file has no weights).
    """
    if stage == 0:
        return (item_bytes + 8) * parameters
    return (12 if stage == 3 else item_bytes + 12) * parameters


def shared_memory_bytes(sync_bytes: int, tensor_parallel_engines: int) -> int:
    """Return the bytes of a node's /dev/shm: the versions in Ray's object store, and a file for
    each engine of several GPUs while it loads them.
    """
    return (OBJECT_STORE_VERSIONS + tensor_parallel_engines) * sync_bytes
