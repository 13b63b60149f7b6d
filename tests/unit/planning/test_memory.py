"""Bytes of a plan: hand-checked sums, and properties that hold for every setting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_ray.config import LoraSettings
from sppo_ray.planning.engine_memory import Engine, engine_memory, kv_bytes_a_token
from sppo_ray.planning.lora import Adapters, adapters_of
from sppo_ray.planning.memory import (
    Training,
    activations,
    checkpoint_bytes,
    head_memory,
    largest_gradients,
    layer_activations,
    pinned_bytes,
    shared_memory_bytes,
    training_memory,
)
from sppo_ray.planning.shapes import KNOWN
from sppo_ray.planning.time import training_flops

SEVEN = KNOWN["qwen2.5-math-7b"]
P = 7_615_616_512
MIB, GIB = 2**20, 2**30


def training(**changes: object) -> Training:
    return replace(
        Training(
            shape=SEVEN,
            parameters=P,
            item_bytes=2,
            stage=2,
            ranks=4,
            offload=False,
            gradient_checkpointing=True,
            tokens=10_240,
            head_rows=10_240,
            head_width=SEVEN.vocabulary,
            on_cuda=True,
        ),
        **changes,
    )


def test_seven_billion_parameters_at_zero_2_in_bfloat16_on_four_ranks() -> None:
    backward = training_memory(training()).phases["backward"]
    assert backward["weights"] == 15_231_233_024  # 2 P
    assert backward["optimizer"] == 22_846_849_536  # (4 master + 8 moments) P / 4
    assert backward["gradients"] == 7_615_616_512  # 4 P / 4 in float32
    # at its end a bfloat16 gradient of the largest weight, 152,064 x 3,584, is beside them
    reduce = training_memory(training()).phases["reduce"]
    assert reduce["gradients"] - backward["gradients"] == 1_089_994_752
    # a tied embedding has two, a critic has no head
    tied = replace(SEVEN, tied=True)
    gradients = [largest_gradients(training(shape=tied, head_width=width)) for width in (152_064, 1)]
    assert gradients == [2 * 1_089_994_752, 1_089_994_752]
    assert backward["buffers"] == 200_000_000  # two buckets of 50,000,000 bfloat16 numbers


def test_the_other_stages() -> None:
    part = P // 4
    one, three = (training_memory(training(stage=stage)).phases["backward"] for stage in (1, 3))
    # stage 1 keeps all gradients, in float32, and has one bucket, as nothing overlaps
    assert one["buffers"] == 100_000_000
    steps = [training_memory(training(stage=stage)).phases["step"]["gradients"] for stage in (1, 2)]
    assert steps == [4 * P + 4 * part, 4 * part]
    assert one["gradients"] == 4 * P and one["optimizer"] == 12 * part
    # stage 3: 2 P / 4, and at most 1e9 gathered parameters of 2 bytes
    assert three["weights"] == 2 * part + 2_000_000_000
    assert (three["gradients"], three["optimizer"]) == (4 * part, 12 * part)
    # its bucket is copied to be scattered: 2 x 50,000,000 numbers of 2 bytes, and a gathered weight
    assert three["buffers"] == 200_000_000 + 1_089_994_752
    # float32 without ZeRO: 4 weights + 4 gradients + 8 moments
    plain = training_memory(training(stage=0, item_bytes=4, ranks=1)).phases["backward"]
    assert plain["weights"] + plain["gradients"] + plain["optimizer"] == 16 * P


def test_zero_3_loads_one_parameter_at_a_time() -> None:
    largest = 2 * 152_064 * 3_584
    assert training_memory(training(stage=3)).phases["load"]["weights"] == 2 * P // 4 + 2 * largest


def test_offload_keeps_20_bytes_a_parameter_on_the_host() -> None:
    # master 4 + gradient 4 + moments 8 + staging 2 + accumulated gradients 2, for a quarter of them
    plan = training_memory(training(offload=True, on_cuda=False))
    assert plan.phases["backward"]["offloaded optimizer"] == 20 * P // 4
    # pinned buffers are rounded up: 7.6 GB to 8 GiB twice, 3.8 GB to 4 GiB
    pinned = training_memory(training(offload=True)).host["offloaded optimizer"]
    assert pinned == 8 * P // 4 + 2 * 8 * GIB + 4 * GIB + 2 * P // 4
    assert training_memory(training(offload=True)).phases["backward"]["optimizer"] == 0


def test_pinned_buffers_are_powers_of_two() -> None:
    assert [pinned_bytes(size) for size in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]


def test_a_layer_saves_what_autograd_saved() -> None:
    # Counted with saved_tensors_hooks on the quickstart's model, width 64, 2 heads of 32, MLP 128,
    # float32. A layer: 6 x 64 (norms) + 4 x 64 (q, k, v, output) + 4 x 128 (MLP) = 1,152 numbers,
    # and 4 x (1 + 1) bytes of the norms' and 4 x 2 of the attention's float32 numbers.
    shape = replace(
        SEVEN, hidden=64, intermediate=128, layers=3, heads=2, kv_heads=2, head_dim=32, vocabulary=45
    )
    assert layer_activations(shape, 4) == 4 * 1152 + 8 + 8
    # SmolLM2's layer in bfloat16: the norms' float32 copies 2 x (4 + 2 + 2) x 576, the rest 2 bytes
    smol = KNOWN["smollm2-135m"]
    expected = 16 * 576 + 2 * (2 * 576 + 2 * 192) + 8 * 1536 + 4 * 9 + 8
    assert layer_activations(smol, 2) == expected


def test_recomputation_keeps_the_inputs_of_the_layers_and_one_layer() -> None:
    shape, tokens = SEVEN, 1000
    common = {"tokens": tokens, "item_bytes": 2, "head": 0}
    layer = tokens * layer_activations(shape, 2)
    saved = activations(shape, gradient_checkpointing=False, **common)
    kept = activations(shape, gradient_checkpointing=True, **common)
    assert saved - kept == 27 * layer - 28 * tokens * 3584 * 2


def test_the_head_holds_a_chunk_of_logits() -> None:
    # 2^26 logits of 16 bytes are 1 GiB: 441 of the 10,240 rows of 152,064 words
    chunk = 441 * 152_064 * 16
    assert head_memory(training()) == chunk + 10_240 * 3584 * 2
    assert chunk < GIB < 10_240 * 152_064 * 4  # 5.8 GiB if it were not chunked
    assert head_memory(training(head_rows=100)) == 100 * (152_064 * 16 + 3584 * 2)


def test_kv_cache() -> None:
    # 2 (key and value) x 28 layers x 4 heads x 128 x 2 bytes
    assert kv_bytes_a_token(SEVEN, 2) == 57_344
    assert kv_bytes_a_token(SEVEN, 2, tensor_parallel=4) == 14_336
    assert kv_bytes_a_token(SEVEN, 2, tensor_parallel=8) == 14_336  # heads are copied


def test_an_engine_fills_its_share_of_the_gpu() -> None:
    engine = Engine(SEVEN, 2, 1, 256, 10_240, int(0.9 * 80 * GIB), 0, True, True)
    found = engine_memory(engine)
    parts = found.memory.phases["generation"]
    # all but 1 GiB of graphs, which lies beside the share
    assert sum(parts.values()) == int(0.9 * 80 * GIB) + GIB
    assert found.cached_tokens == parts["KV cache"] // 57_344
    small = engine_memory(replace(engine, budget=15 * GIB))
    assert small.cached_tokens < 0 and small.memory.phases["generation"]["KV cache"] == 0


def test_checkpoints_and_shared_memory() -> None:
    assert checkpoint_bytes(10, 2, 2) == 140  # 2 weights + 4 master + 8 moments
    assert checkpoint_bytes(10, 4, 0) == 120  # 4 + 8
    assert checkpoint_bytes(10, 2, 3) == 120
    # three versions, and a file for each of two engines of several GPUs
    assert shared_memory_bytes(15, 2) == 75


@given(
    stage=st.sampled_from([1, 2, 3]),
    ranks=st.sampled_from([1, 2, 4, 8, 16]),
    item=st.sampled_from([2, 4]),
    offload=st.booleans(),
    recompute=st.booleans(),
    cuda=st.booleans(),
    tokens=st.integers(1, 100_000),
)
def test_what_never_needs_more_memory(
    stage: int, ranks: int, item: int, offload: bool, recompute: bool, cuda: bool, tokens: int
) -> None:
    own = training(
        stage=stage,
        ranks=ranks,
        item_bytes=item,
        offload=offload,
        gradient_checkpointing=recompute,
        on_cuda=cuda,
        tokens=tokens,
        head_rows=tokens,
    )
    peak = training_memory(own).peak
    # One rank alone needs no copy of the gradients to scatter them.
    assert training_memory(replace(own, ranks=2 * ranks)).peak <= peak + (ranks == 1) * 400_000_000
    assert training_memory(replace(own, tokens=tokens + 100, head_rows=tokens + 100)).peak >= peak
    assert training_memory(replace(own, entropy_gradient=True)).peak >= peak
    if cuda:
        assert training_memory(replace(own, offload=True)).peak <= peak + 2 * GIB
        assert training_memory(own).host_peak >= training_memory(replace(own, offload=False)).host_peak


@pytest.mark.parametrize("item", [2, 4])
def test_a_higher_stage_needs_no_more_on_many_ranks(item: int) -> None:
    peaks = [training_memory(training(stage=stage, ranks=16, item_bytes=item)).peak for stage in (1, 2, 3)]
    assert peaks == sorted(peaks, reverse=True)


def test_adapters_are_counted_by_their_widths() -> None:
    # Qwen2.5-7B: q, o 3584 + 3584; k, v 3584 + 512; gate, up, down 3584 + 18944, in 28 layers
    layer = 2 * 7168 + 2 * 4096 + 3 * 22_528
    found = adapters_of(LoraSettings(rank=16), SEVEN, is_critic=False)
    assert found == Adapters(28 * 16 * layer, 16 * 18_944, 16 * 7)
    assert found.parameters == 40_370_176
    some = LoraSettings(rank=8, target_modules=("q_proj", "v_proj"))
    critic = adapters_of(some, SEVEN, is_critic=True)
    assert critic == Adapters(28 * 8 * (7168 + 4096) + 3584, 8 * 3584, 8 * 2)
    assert adapters_of(None, SEVEN, is_critic=False) is None


def test_adapters_need_gradients_and_optimizer_of_their_own_size_only() -> None:
    adapters = adapters_of(LoraSettings(rank=16), SEVEN, is_critic=False)
    count = adapters.parameters
    part = count // 4
    backward = training_memory(training(adapters=adapters)).phases["backward"]
    assert backward["weights"] == 2 * (P + count)
    assert (backward["optimizer"], backward["gradients"]) == (12 * part, 4 * part)
    assert backward["buffers"] == 2 * 2 * count  # two buckets of all adapters
    plain = training_memory(training(stage=0, item_bytes=4, ranks=1, adapters=adapters)).phases["step"]
    assert plain["weights"] + plain["optimizer"] == 4 * P + 12 * count
    offloaded = training_memory(training(offload=True, on_cuda=False, adapters=adapters))
    assert offloaded.phases["backward"]["offloaded optimizer"] == 20 * part
    three = training_memory(training(stage=3, adapters=adapters)).phases["backward"]
    assert three["weights"] == 2 * (P + count) // 4 + 2_000_000_000


def test_what_a_layer_with_adapters_saves() -> None:
    # Counted with saved_tensors_hooks on the quickstart's model and rank 4: 4,624 bytes without
    # adapters, of which the norms do not save 2 x 64 numbers, and 7 adapters save 4 numbers each.
    shape = replace(
        SEVEN, hidden=64, intermediate=128, layers=3, heads=2, kv_heads=2, head_dim=32, vocabulary=45
    )
    adapters = adapters_of(LoraSettings(rank=4), shape, is_critic=False)
    assert layer_activations(shape, 4) == 4624
    assert layer_activations(shape, 4, adapters) == 4624 - 4 * 128 + 4 * 28 == 4224
    assert layer_activations(shape, 2, adapters) == 2376


def test_frozen_weights_need_no_gradients() -> None:
    # 2 operations a parameter and token forward, 4 backward; without their own gradients 2
    count = SEVEN.body_parameters
    steps = {
        (recompute, frozen): training_flops(
            SEVEN, 10, 0, head=False, recompute=recompute, frozen=frozen
        ) / (10 * count)
        for recompute in (False, True)
        for frozen in (False, True)
    }
    assert steps == {(False, False): 6, (True, False): 8, (False, True): 4, (True, True): 6}
    # attention has no weights: its backward pass costs the same
    with_attention = training_flops(SEVEN, 10, 100, head=False, recompute=False, frozen=True)
    assert with_attention - 40 * count == 3 * 10 * 2 * 28 * 3584 * 100
