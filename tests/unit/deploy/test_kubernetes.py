"""The Kubernetes manifests, built as `kubectl apply -k` builds them: valid, and about this tree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sppo_ray.config.loading import load_config
from sppo_ray.planning.devices import parse_gpus
from sppo_ray.planning.models import models_of
from sppo_ray.planning.plan import make_plan
from sppo_ray.planning.resources import Resources, require_feasible
from tests.unit.deploy.files import (
    DEPLOY,
    OVERLAYS,
    REPOSITORY,
    SHARED,
    Manifest,
    build,
    check_ray_start,
    of_kind,
    parse_ours,
    pod_templates,
    ray_cluster,
    text_of,
    training_run,
    words_of_training,
)
from tests.unit.deploy.kuberay_schema import KUBERNETES, faults

NAMES = sorted(path.name for path in OVERLAYS.iterdir())
JOBS = [name for name in NAMES if name.endswith("-job")]
PART = ("app.kubernetes.io/part-of", "sppo-ray")

every_overlay = pytest.mark.parametrize("overlay", NAMES)


def test_there_is_an_overlay_for_each_way_to_run() -> None:
    assert NAMES == ["cpu", "cpu-job", "cpu-service", "gpu", "gpu-job"]


# -------------------------------------------------------------------------- schemas and field names


@every_overlay
def test_manifests_are_valid(overlay: str) -> None:
    for manifest in build(overlay):
        if manifest["apiVersion"] == "ray.io/v1":
            assert not list(faults(manifest["kind"], manifest["spec"]))
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for name, template in pod_templates(build(overlay)).items():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": name},
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


MISTAKES = {  # what a person may write -> where KubeRay says no
    "a name": (("workerGroupSpecs", 0, "replica"), 1, "$.workerGroupSpecs[0]: "),
    "text for a number": (("workerGroupSpecs", 0, "replicas"), "2", "$.workerGroupSpecs[0].replicas: "),
    "a number for text": (
        ("headGroupSpec", "rayStartParams", "num-cpus"),
        0,
        "$.headGroupSpec.rayStartParams['num-cpus']: ",
    ),
    "text for a flag": (("enableInTreeAutoscaling",), "true", "$.enableInTreeAutoscaling: "),
    "an unknown value": (("authOptions", "mode"), "tokens", "$.authOptions.mode: "),
    "a mapping for a list": (("workerGroupSpecs",), {}, "$.workerGroupSpecs: "),
    "a pod's field": (
        ("headGroupSpec", "template", "spec", "container"),
        [],
        "$.headGroupSpec.template.spec: ",
    ),
}


@pytest.mark.parametrize(("path", "value", "where"), MISTAKES.values(), ids=MISTAKES)
def test_the_check_of_kuberay_s_fields_finds_a_mistake(
    path: tuple[str | int, ...], value: Any, where: str
) -> None:
    cluster = ray_cluster(build("cpu"))
    assert not list(faults("RayCluster", cluster))
    place: Any = cluster
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (fault,) = faults("RayCluster", cluster)
    assert fault.startswith(where)


@pytest.mark.parametrize(("component", "adds"), [("autoscaling", 1), ("monitoring", 4), ("rdma", 0)])
def test_optional_components_fit_on_an_overlay(component: str, adds: int, tmp_path: Path) -> None:
    tree = tmp_path / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", tree)
    overlay = tree / "overlays/cpu/kustomization.yaml"
    overlay.write_text(
        overlay.read_text().replace(
            "[../../components/cpu]", f"[../../components/cpu, ../../components/{component}]"
        )
    )
    manifests = build(overlay.parent)
    assert not list(faults("RayCluster", ray_cluster(manifests)))
    assert len(manifests) == len(build("cpu")) + adds


def in_bytes(quantity: str) -> int:
    return int(quantity.removesuffix("Gi")) * 2**30


def test_the_gpu_worker_has_the_host_memory_of_the_largest_recipe() -> None:
    config = load_config("paper-7b")
    plan = make_plan(config, parse_gpus("4xH100"), models_of(config))
    (group,) = ray_cluster(build("gpu"))["workerGroupSpecs"]
    spec = group["template"]["spec"]
    resources = spec["containers"][0]["resources"]
    for quantities in (resources["requests"], resources["limits"]):
        assert in_bytes(quantities["memory"]) >= plan.host_bytes[0]  # /dev/shm included
    (shm,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
    assert shm["medium"] == "Memory" and in_bytes(shm["sizeLimit"]) >= plan.shared_memory


@every_overlay
def test_the_cluster_starts_this_ray(overlay: str) -> None:
    cluster = ray_cluster(build(overlay))
    assert f"ray=={cluster['rayVersion']}" in text_of("requirements/cpu.lock").splitlines()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        words = [
            f"--{name}" if value == "true" else f"--{name}={value}"
            for name, value in group["rayStartParams"].items()
        ]
        check_ray_start(["ray", "start", "--address=head:6379", *words])
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "the head runs no actors"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "sppo-ray-token"}


# -------------------------------------------------------------------------------- what runs in them


@pytest.mark.parametrize("overlay", JOBS)
def test_a_job_trains_a_recipe_that_fits_on_its_cluster(overlay: str) -> None:
    (job,) = of_kind(build(overlay), "RayJob")
    words = words_of_training(job["spec"]["entrypoint"])
    options, _ = parse_ours(words)
    assert options.run_dir.is_relative_to(f"{SHARED}/runs") and options.resume
    assert f"[ -e {options.run_dir}/config.yaml ]" in job["spec"]["entrypoint"], (
        "resumes the run that it writes"
    )
    require_feasible(training_run(words), nodes_of(ray_cluster(build(overlay))))
    subprocess.run(["sh", "-n", "-c", job["spec"]["entrypoint"]], check=True, timeout=10)


def test_every_recipe_of_the_paper_fits_on_the_gpu_cluster() -> None:
    nodes = nodes_of(ray_cluster(build("gpu")))
    for recipe in ("paper-1.5b", "paper-7b", "paper-7b-small-critic"):
        require_feasible(training_run(["train", recipe]), nodes)


def nodes_of(cluster: Manifest) -> list[Resources]:
    """What Ray sees of the workers: KubeRay hands each pod's limits to `ray start`."""
    found = []
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        found += group["replicas"] * [Resources(float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)))]
    return found


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_api_is_started_as_its_command_line_wants_it(overlay: str) -> None:
    manifests = build(overlay)
    (deployment,), (service,) = of_kind(manifests, "Deployment"), of_kind(manifests, "Service")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][0] == "sppo-ray"
    options, rest = parse_ours(container["args"][1:])
    assert options.command == "serve" and not rest
    assert str(options.runs) == f"{SHARED}/runs"
    (port,) = container["ports"]
    assert (options.host, options.port) == ("0.0.0.0", port["containerPort"])
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    cluster = of_kind(manifests, "RayCluster")[0]["metadata"]["name"]
    assert options.ray_address == f"http://{cluster}-head-svc:8265", "KubeRay names the head's service so"
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert str(options.tokens.parent) in mounts and "subPath" not in mounts[str(options.tokens.parent)]
    probes = {
        container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert probes == {"/healthz", "/readyz"}
    routes = (REPOSITORY / "sppo_ray/api/routes/service.py").read_text(encoding="utf-8")
    assert all(f'"{path}"' in routes for path in probes)


def test_the_service_loads_our_application() -> None:
    from sppo_ray.api.settings import ApiSettings

    (service,) = of_kind(build("cpu-service"), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert f"def {attribute}(" in (REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    settings = ApiSettings(**application["args"])
    assert str(settings.runs) == f"{SHARED}/runs"
    for template in pod_templates(build("cpu-service")).values():
        mounted = {mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert str(settings.tokens.parent) in mounted if settings.tokens else False
    assert not of_kind(build("cpu-service"), "Deployment")


def test_the_service_finds_the_job_server_from_any_node() -> None:
    """The head has no CPUs, so the replica runs on a worker; Ray's job server listens on the head
    alone.
    """
    manifests = build("cpu-service")
    (service,) = of_kind(manifests, "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["deployments"][0]["ray_actor_options"]["num_cpus"] > 0
    name = service["metadata"]["name"]
    assert application["args"]["ray_address"] == f"http://{name}-head-svc:8265", (
        "KubeRay names a RayService's head service so"
    )


def test_the_service_listens_where_its_pods_and_the_policy_say() -> None:
    manifests = build("cpu-service")
    (service,) = of_kind(manifests, "RayService")
    port = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]
    for name, template in pod_templates(manifests).items():
        assert {"name": "serve", "containerPort": port} in template["spec"]["containers"][0]["ports"], name
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")}
    assert policies["sppo-ray-serve"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]


# ------------------------------------------------------------- storage, users, secrets, the network


@every_overlay
def test_all_pods_share_the_runs_and_run_as_the_image_s_user(overlay: str) -> None:
    assert "useradd --uid 1000" in text_of("docker/Dockerfile")
    for name, template in pod_templates(build(overlay)).items():
        spec = template["spec"]
        claims = {
            v["name"]: v["persistentVolumeClaim"]["claimName"]
            for v in spec["volumes"]
            if "persistentVolumeClaim" in v
        }
        assert claims == {"shared": "sppo-ray"}, name
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, 1000, 1000)
        for container in spec["containers"]:
            assert {"name": "shared", "mountPath": SHARED} in container["volumeMounts"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            tag = "cuda" if overlay.startswith("gpu") else "cpu"
            assert container["image"] == f"sppo-ray:{tag}"
            assert f" AS {tag}\n" in text_of("docker/Dockerfile")


@pytest.mark.parametrize("overlay", [name for name in NAMES if not name.endswith("-job")])
def test_the_claim_can_be_mounted_by_all_nodes(overlay: str) -> None:
    (claim,) = of_kind(build(overlay), "PersistentVolumeClaim")
    assert (claim["metadata"]["name"], claim["spec"]["accessModes"]) == ("sppo-ray", ["ReadWriteMany"])


@pytest.mark.parametrize("overlay", JOBS)
def test_deleting_a_job_deletes_no_results(overlay: str) -> None:
    assert {manifest["kind"] for manifest in build(overlay)} == {"RayJob"}


@every_overlay
def test_no_secret_is_applied_and_the_example_has_the_named_keys(overlay: str) -> None:
    manifests = build(overlay)
    assert not of_kind(manifests, "Secret")
    examples = yaml.safe_load_all(text_of("deploy/kubernetes/secrets.example.yaml"))
    keys = {secret["metadata"]["name"]: set(secret["stringData"]) for secret in examples}
    assert keys == {"sppo-ray-token": {"auth_token"}, "sppo-ray-api-tokens": {"tokens"}}
    for reference in _secret_references(manifests):
        assert reference.get("key") in {None, *keys[reference.get("name") or reference["secretName"]]}


def _secret_references(value: Any) -> list[dict[str, Any]]:
    """Every `secretKeyRef` and `secret` volume below `value`."""
    if isinstance(value, list):
        return [found for entry in value for found in _secret_references(entry)]
    if not isinstance(value, dict):
        return []
    own = [value[name] for name in ("secretKeyRef", "secret") if isinstance(value.get(name), dict)]
    return own + [found for entry in value.values() for found in _secret_references(entry)]


def test_no_file_here_holds_a_secret() -> None:
    for path in (p for folder in (DEPLOY, REPOSITORY / "docker") for p in folder.rglob("*") if p.is_file()):
        assert not re.search(r"\b[0-9a-f]{40,}\b|sppo_[\w-]{40,}", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "cpu-service"])
def test_every_pod_is_behind_a_policy(overlay: str) -> None:
    manifests = build(overlay)
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")}
    inside = policies["sppo-ray-inside"]
    assert inside["podSelector"] == {"matchLabels": dict([PART])} and inside["policyTypes"] == [
        "Ingress",
        "Egress",
    ]
    for template in pod_templates(manifests).values():
        assert PART in template["metadata"]["labels"].items()
    open_to_all = [
        peer
        for spec in policies.values()
        for rule in spec.get("ingress", ())
        for peer in rule.get("from", [{}])
    ]
    assert {} not in open_to_all and {"namespaceSelector": {}} not in open_to_all


def monitoring() -> dict[str, Manifest]:
    """Specifications of what the Prometheus operator reads, by kind."""
    folder = DEPLOY / "kubernetes/components/monitoring"
    documents = [
        document
        for name in ("monitors.yaml", "rules.yaml")
        for document in yaml.safe_load_all((folder / name).read_text())
    ]
    return {document["kind"]: document["spec"] for document in documents}


def test_prometheus_has_one_name_for_the_server_with_and_without_the_operator() -> None:
    """The operator takes a target's label `job` from the Service: its name, or the value of the
    label that jobLabel names.
    """
    (service,) = of_kind(build("cpu"), "Service")
    by_operator = service["metadata"]["labels"][monitoring()["ServiceMonitor"]["jobLabel"]]
    by_file = yaml.safe_load(text_of("deploy/monitoring/prometheus.yml"))["scrape_configs"][0]["job_name"]
    asked = set(re.findall(r'\bup\{job="([^"]+)"', text_of("deploy/monitoring/alerts.yml")))
    assert asked == {by_operator} == {by_file}


def test_the_operator_has_the_same_alerts() -> None:
    assert monitoring()["PrometheusRule"] == yaml.safe_load(text_of("deploy/monitoring/alerts.yml"))


def test_what_prometheus_scrapes_is_there() -> None:
    monitors = monitoring()
    manifests = build("cpu")
    (service,) = of_kind(manifests, "Service")
    wanted = monitors["ServiceMonitor"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert monitors["ServiceMonitor"]["endpoints"][0]["port"] in {
        port["name"] for port in service["spec"]["ports"]
    }
    (expression,) = monitors["PodMonitor"]["selector"]["matchExpressions"]
    templates = pod_templates(manifests)
    for component in expression["values"]:
        ports = {
            port["name"]: port["containerPort"]
            for port in templates[component]["spec"]["containers"][0]["ports"]
        }
        assert ports[monitors["PodMonitor"]["podMetricsEndpoints"][0]["port"]] == 8080, (
            "KubeRay's default for Ray's metrics"
        )


def test_the_readme_makes_the_secrets_that_are_named() -> None:
    readme = text_of("deploy/README.md")
    for name, key in (("sppo-ray-token", "auth_token"), ("sppo-ray-api-tokens", "tokens")):
        assert re.search(rf"create secret generic {name} --from-\w+={key}=", readme)
