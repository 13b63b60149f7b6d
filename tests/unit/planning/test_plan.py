"""Plans of the recipes: placement, problems, the nearest change, seconds, and the refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sppo_ray.config.loading import load_config
from sppo_ray.errors import UserError
from sppo_ray.planning.changes import faster_split, nearest_change, require_memory, smallest_cluster
from sppo_ray.planning.devices import CPU, GIB, Cluster, Node, find_gpu, parse_gpus, ray_cluster
from sppo_ray.planning.engine_memory import CUDA_GRAPHS
from sppo_ray.planning.memory import CUDA_CONTEXT
from sppo_ray.planning.models import models_of
from sppo_ray.planning.placement import place
from sppo_ray.planning.plan import Plan, live_cluster, make_plan
from sppo_ray.planning.resources import Bundle, Resources
from sppo_ray.planning.shapes import KNOWN
from sppo_ray.planning.time import Assumptions, assume, forward_flops, sync_seconds
from sppo_ray.planning.transfer import DIGEST, TransferBuffers, transfer_buffers

SPACIOUS = Cluster(replace(CPU, memory=64 * GIB), (Node(4.0, 0, 64 * GIB),))


def plan_of(recipe: str, gpus: str, *overrides: str, assumed: Assumptions | None = None) -> Plan:
    config = load_config(recipe, overrides)
    return make_plan(config, parse_gpus(gpus), models_of(config), assumed)


def change_of(recipe: str, gpus: str, *overrides: str) -> tuple[str, ...] | None:
    config = load_config(recipe, overrides)
    return nearest_change(config, parse_gpus(gpus), models_of(config))


def test_described_clusters() -> None:
    assert parse_gpus("H100").num_gpus == 1
    cluster = parse_gpus("32xh100")
    assert [node.gpus for node in cluster.nodes] == [8, 8, 8, 8]
    assert [node.gpus for node in parse_gpus("12xA100-40").nodes] == [8, 4]
    assert parse_gpus("4xH100", cpus=30, host_gib=256).nodes == (Node(30, 4, 256 * GIB),)
    for text in ("8xTPU", "0xH100", "x", "8 H100"):
        with pytest.raises(UserError, match="write it as 8xH100; known devices: A100-40"):
            parse_gpus(text)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("A100-40G", "A100-40"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", None),
    ],
)
def test_names_of_gpus(name: str, device: str | None) -> None:
    found = find_gpu(name)
    assert (found.name if found else None) == device


def test_placement_fills_a_node_and_then_the_next() -> None:
    bundles = [Bundle("rollout-0", 4, 2), Bundle("learner-0", 8, 1), Bundle("critic-0", 2, 0.5)]
    bundles += [Bundle("reference-0", 2, 0.5), Bundle("reward", 1, 0)]
    places, left = place(bundles, Cluster(parse_gpus("H100").device, (Node(16, 3, 0), Node(16, 3, 0))))
    assert not left
    assert [(p.role, p.node, p.gpus) for p in places] == [
        ("rollout-0", 0, (0, 1)),
        ("learner-0", 0, (2,)),
        ("critic-0", 1, (0,)),
        ("reference-0", 1, (0,)),  # the other half of the GPU
        ("reward", 0, ()),
    ]
    _, left = place([Bundle("rollout-0", 4, 4)], parse_gpus("3xH100"))
    assert [bundle.role for bundle in left] == ["rollout-0"]


def test_paper_7b_fits_on_four_gpus_but_not_into_the_host_memory_of_a_small_pod() -> None:
    assert plan_of("paper-7b", "4xH100").fits
    config = load_config("paper-7b")
    cluster = parse_gpus("4xH100", host_gib=256)
    plan = make_plan(config, cluster, models_of(config))
    assert [problem.role for problem in plan.problems] == ["host"]
    change = nearest_change(config, cluster, models_of(config))
    assert change and any("offload_optimizer=false" in option for option in change)


@pytest.mark.parametrize(
    ("recipe", "gpus", "overrides", "role"),
    [
        ("paper-7b", "4xA100-40", ["--learner.offload_optimizer=false"], "learner"),
        ("paper-1.5b", "4xL40S", ["--critic.gradient_checkpointing=false"], "critic"),
        ("paper-1.5b", "4xH100", ["--rollout.gpu_memory_utilization=.05"], "rollout"),
        ("paper-1.5b", "4xH100", ["--rollout.workers=4"], "gpus"),
        ("paper-7b", "4xH100", ["--learner.max_tokens_per_microbatch=200000"], "learner"),
    ],
)
def test_the_nearest_change_fits(recipe: str, gpus: str, overrides: list[str], role: str) -> None:
    plan = plan_of(recipe, gpus, *overrides)
    assert role in {problem.role for problem in plan.problems}
    change = change_of(recipe, gpus, *overrides)
    assert change
    again = plan_of(recipe, gpus, *overrides, *change)
    assert again.fits and not again.warnings


def test_the_nearest_changes_by_name() -> None:
    assert change_of("paper-1.5b", "4xH100") == ()
    assert change_of("paper-1.5b", "4xH100", "--rollout.workers=4") == ("--rollout.workers=2",)
    offload = change_of("paper-7b", "4xA100-40", "--learner.offload_optimizer=false")
    assert offload == ("--learner.offload_optimizer=true",)
    assert change_of("paper-7b", "1xH100") is None


def test_the_smallest_cluster() -> None:
    config = load_config("paper-7b")
    found = smallest_cluster(config, parse_gpus("1xH100"), models_of(config))
    assert found is not None
    cluster, change = found
    assert (cluster.num_gpus, change) == (3, ("--learner.ranks=1",))


def test_idle_gpus_are_named_with_a_faster_split() -> None:
    config = load_config("paper-7b")
    models = models_of(config)
    plan = make_plan(config, parse_gpus("8xH100"), models)
    assert plan.gpus == 4
    found = faster_split(config, plan, models)
    assert found is not None
    options, split = found
    assert split.gpus <= 8 and split.step_seconds < plan.step_seconds
    assert any(option.startswith("--rollout.workers=") for option in options)
    assert faster_split(config, make_plan(config, parse_gpus("4xH100"), models), models) is None


def test_two_ranks_of_a_group_may_not_share_a_gpu() -> None:
    with pytest.raises(UserError, match="could share a GPU, which NCCL refuses"):
        plan_of("paper-1.5b", "4xH200", "--learner.ranks=2", "--learner.gpus_per_rank=.5")


def test_hours_are_those_of_the_remaining_steps() -> None:
    config = load_config("paper-7b")
    whole, half = (
        make_plan(config, parse_gpus("4xH100"), models_of(config), remaining=n) for n in (None, 100)
    )
    assert (whole.steps, half.steps) == (200, 100)
    assert half.gpu_hours == pytest.approx(whole.gpu_hours / 2)
    assert whole.gpu_hours == pytest.approx(4 * 200 * whole.step_seconds / 3600)


def test_overlap_takes_the_slower_of_generation_and_update() -> None:
    synchronous = plan_of("paper-7b", "4xH100")
    overlapped = plan_of("paper-7b", "4xH100", "--loop.max_staleness=1")
    saved = synchronous.step_seconds - overlapped.step_seconds
    assert saved == pytest.approx(min(synchronous.stages["generation"], synchronous.stages["update"]))


def test_seconds_follow_the_stated_rates() -> None:
    # 8e9 bytes: 2 s to the host, .8 digest, 2 store, 8 / 6 to the GPU, .8 digest; 8 / 6 to the GPU
    # again, to compare, with two digests of .02 there
    assert sync_seconds(8 * 10**9, parse_gpus("H100").device, Assumptions(), other_nodes=0) == pytest.approx(
        2 + 0.8 + 2 + 8 / 6 + 0.8 + 8 / 6 + 2 * 0.02
    )
    shape = models_of(load_config("paper-7b")).policy
    # 2 x 7.07e9 a token (without the embedding), and attention 2 x 28 x 3,584 x 1,000
    matrices = 7_615_616_512 - 152_064 * 3584
    assert forward_flops(shape, 1, 1000, head=True) == 2 * matrices + 2 * 28 * 3584 * 1000
    slower = plan_of("paper-7b", "4xH100", assumed=assume(["training_utilisation=.175"]))
    assert slower.stages["update"] > 1.5 * plan_of("paper-7b", "4xH100").stages["update"]
    for wrong in ("speed=1", "disk", "disk=fast", "disk=0"):
        with pytest.raises(UserError, match=f"--assume {wrong}"):
            assume([wrong])


def test_a_broadcast_takes_the_digests_and_one_copy() -> None:
    h100 = parse_gpus("H100").device
    # four digests of 8 GB at 400 GB/s are 0.08 s; 8 GB at 50 GB/s (NCCL) 0.16 s, at 3 GB/s 2.67 s
    seconds = {
        nodes: sync_seconds(8 * 10**9, h100, Assumptions(), other_nodes=nodes, transport="nccl")
        for nodes in (0, 2)
    }
    assert seconds == pytest.approx({0: 0.24, 2: 0.08 + 8 / 3})
    # on the device each byte is read and written: 8 GB at half of 3.35 TB/s
    ipc = sync_seconds(8 * 10**9, h100, Assumptions(), other_nodes=0, transport="ipc")
    assert ipc == pytest.approx(0.08 + 16e9 / 3.35e12, rel=1e-3)


def test_a_faster_device_and_more_engines_shorten_a_step() -> None:
    assert plan_of("paper-7b", "4xH200").step_seconds < plan_of("paper-7b", "4xH100").step_seconds
    more = plan_of("paper-7b", "8xH100", "--rollout.workers=3", "--learner.ranks=4")
    assert more.step_seconds < plan_of("paper-7b", "8xH100").step_seconds


def test_the_quickstart_fits_on_a_cpu_and_a_cache_that_is_too_large_is_refused() -> None:
    config = load_config("quickstart")
    assert require_memory(config, SPACIOUS, models_of(config)) == ()
    large = load_config("quickstart", ["--rollout.kv_cache_gib=100"])
    with pytest.raises(UserError, match=r"node 0 needs .* of its 64.0 GiB .*--rollout.kv_cache_gib=2"):
        require_memory(large, SPACIOUS, models_of(large))
    tight = load_config("quickstart", ["--rollout.kv_cache_gib=56"])
    (warning,) = require_memory(tight, SPACIOUS, models_of(tight))
    assert "of its memory" in warning


def test_training_refuses_gpus_that_are_too_small() -> None:
    config = load_config("paper-1.5b", ["--critic.gradient_checkpointing=false"])
    nodes = [Resources(64, 4, "L40S")]
    cluster = live_cluster("cuda", nodes, is_local=True)
    assert cluster is not None
    with pytest.raises(UserError, match=r"critic needs .* of a L40S's 44.4 GiB.*--critic\."):
        require_memory(config, cluster, models_of(config))


def test_a_live_cluster() -> None:
    gpus = ray_cluster([Resources(8, 0), Resources(64, 8, "H200")])
    assert gpus is not None and gpus.text.startswith("8xH200 on 2 nodes")
    cpus = ray_cluster([Resources(8, 0), Resources(4, 0)])
    assert cpus is not None and cpus.text == "12 CPUs on 2 nodes"
    config = load_config("quickstart")
    assert make_plan(config, cpus, models_of(config)).fits  # the memory is not known


def test_training_leaves_placement_to_ray() -> None:
    config = load_config("paper-1.5b")
    assert require_memory(config, parse_gpus("1xH100", cpus=2), models_of(config)) == ()


def test_nothing_is_refused_where_the_memory_is_not_known() -> None:
    assert live_cluster("cuda", [Resources(64, 4, "")], is_local=True) is None
    assert live_cluster("cuda", [Resources(64, 4, "H100"), Resources(64, 4, "L40S")], is_local=False) is None
    assert live_cluster("cpu", [Resources(4, 0)], is_local=False) is None
    here = live_cluster("cpu", [Resources(4, 0)], is_local=True)
    assert here is not None and here.nodes[0].memory > GIB


def test_a_run_on_the_cpus_of_a_gpu_node_is_planned_on_cpus() -> None:
    plan = plan_of("quickstart", "1xH100")
    assert plan.cluster.device.kind == "cpu" and plan.fits and plan.gpus == 0


# ------------------------------------------------------------------------------- roles in turns


@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_the_colocated_recipes_fit(gpus: int) -> None:
    plan = plan_of(f"colocated-{gpus}gpu", f"{gpus}xH100")
    assert plan.fits and not plan.warnings
    assert plan.gpus == gpus


def test_roles_in_turns_need_the_largest_phase_and_not_the_sum() -> None:
    plan = plan_of("colocated-1gpu", "1xH100")
    peak = {role.role: role.memory.peak for role in plan.roles}
    engine_at_rest = CUDA_CONTEXT + CUDA_GRAPHS
    assert plan.turns["policy"] == peak["learner"] + engine_at_rest + CUDA_CONTEXT
    assert plan.turns["critic"] == peak["critic"] + engine_at_rest + CUDA_CONTEXT
    # the critic's weights, while it values prompts, and the contexts of learner and critic
    assert plan.turns["generate"] > peak["rollout"] + 2 * CUDA_CONTEXT + 2 * 1.3e9
    assert max(plan.turns.values()) < 80e9 < sum(peak.values())
    assert plan.step_seconds == pytest.approx(sum(plan.stages.values()))


def test_the_kv_cache_has_the_size_that_is_given() -> None:
    plan = plan_of("colocated-1gpu", "1xH100", "--rollout.kv_cache_gib=8")
    assert plan.roles[0].memory.work["KV cache"] == 8 * GIB
    # 28 layers, 2 KV heads of 128, key and value, 2 bytes: 28,672 bytes a token
    assert plan.cached_tokens == 8 * GIB // 28_672


def test_the_host_holds_the_states_of_those_that_wait() -> None:
    plan = plan_of("colocated-1gpu", "1xH100")
    learner = next(role.memory for role in plan.roles if role.role == "learner")
    # 1.78e9 parameters in bfloat16, and three times in float32; pinned, so powers of two: 4 + 3 x 8
    assert learner.host["moved states"] == (4 + 3 * 8) * GIB
    assert plan.stages["turns"] > 0
    separate = plan_of("paper-1.5b", "4xH100")
    assert not separate.turns and "turns" not in separate.stages


def test_a_phase_that_does_not_fit_is_named_with_the_nearest_change() -> None:
    plan = plan_of("colocated-1gpu", "1xH100", "--rollout.kv_cache_gib=70")
    assert [problem.text for problem in plan.problems] == [
        "the phase generate needs 83.4 GiB of a H100's 79.1 GiB"
    ]
    change = change_of("colocated-1gpu", "1xH100", "--rollout.kv_cache_gib=70")
    assert change == ("--rollout.kv_cache_gib=48.0",)


def test_idle_gpus_are_shared_by_all_roles() -> None:
    config = load_config("colocated-4gpu")
    plan = plan_of("colocated-4gpu", "8xH100")
    options, faster = faster_split(config, plan, models_of(config)) or ((), plan)
    assert options == ("--rollout.workers=8", "--learner.ranks=8", "--critic.ranks=8")
    assert faster.gpus == 8


def test_one_gpu_for_all_roles_in_turns_is_a_change() -> None:
    change = change_of("paper-1.5b", "1xH100")
    assert change is not None and "--cluster.layout=colocated" in change
    assert plan_of("paper-1.5b", "1xH100", *change).fits


def test_hours_of_a_run_without_room_are_those_of_the_gpus_that_it_needs() -> None:
    plan = plan_of("paper-1.5b", "1xH100")
    assert plan.gpus == 4 and plan.gpu_hours == 4 * plan.hours


def test_a_critic_of_the_policys_shape_has_a_head_of_one_output_in_its_checkpoint() -> None:
    config = load_config("paper-1.5b")
    models = models_of(config)
    assert models.critic is models.policy
    policy, critic = models.policy.parameters, models.policy.critic_parameters
    assert policy - critic == (151_936 - 1) * 1536
    checkpoint = 14 * (policy + critic)  # bfloat16 weights, float32 masters and moments
    expected = checkpoint * (config.checkpoint.keep + 1) + 2 * (policy + critic)
    assert plan_of("paper-1.5b", "4xH100").disk == expected


def test_buffers_of_a_weight_sync() -> None:
    embedding = 151_936 * 1536 * 2  # larger than a chunk of 256 MiB
    shape, arguments = KNOWN["qwen2.5-1.5b"], {"chunk_bytes": 2**28, "tensor_parallel": 1}
    assert transfer_buffers("flat", shape, 2, **arguments) == TransferBuffers(0, embedding)
    assert transfer_buffers("nccl", shape, 2, **arguments) == TransferBuffers(
        embedding + DIGEST, 3 * embedding + DIGEST
    )
    assert transfer_buffers("ipc", shape, 2, **arguments).sender == 2 * embedding + DIGEST
    small = transfer_buffers("nccl", KNOWN["smollm2-135m"], 2, chunk_bytes=2**26, tensor_parallel=2)
    assert small == TransferBuffers(2**26 + DIGEST, 2**27 + 49_152 * 576 + DIGEST)


def test_weights_that_are_sent_in_turns_are_on_the_gpu_twice() -> None:
    flat, ipc = (
        plan_of("colocated-1gpu", "1xH100", f"--weight_sync.transport={name}") for name in ("flat", "ipc")
    )
    assert "sync" not in flat.turns and ipc.turns["generate"] == flat.turns["generate"]
    weights = 2 * weight_bytes("colocated-1gpu")
    assert weights < ipc.turns["sync"] < ipc.turns["generate"]
    assert ipc.stages["turns"] > flat.stages["turns"]


def weight_bytes(recipe: str) -> int:
    return 2 * models_of(load_config(recipe)).policy.parameters
def test_a_reward_model_is_counted() -> None:
    model = "{type: model, model: Qwen2.5-7B, transform: {type: sigmoid}, gpus_per_replica: 1, replicas: 2}"
    plan = plan_of("paper-7b", "8xH100", f"--reward.function={model}")
    role = next(role for role in plan.roles if role.role == "reward-model-0")
    # layers and last norm, 152064 * 3584 of the embedding, 3584 of the head: 2 bytes each
    assert role.memory.phases["forward"]["weights"] == 2 * (6_525_621_760 + 152_064 * 3584 + 3584)
    assert role.count == 2 and sum(place.role.startswith("reward-model") for place in plan.places) == 2
    unknown = plan_of("paper-7b", "8xH100", f"--reward.function={model.replace('Qwen2.5-7B', 'other')}")
    assert unknown.roles[-1].memory.phases["forward"]["weights"] == 0
    on_cpu = plan_of("paper-7b", "8xH100", f"--reward.function={model.replace('_replica: 1', '_replica: 0')}")
    assert on_cpu.roles[-1].memory.peak == 0 and on_cpu.roles[-1].memory.host["weights"] > 0
