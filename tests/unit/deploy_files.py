"""What the tests of deploy/ and docker/ read them with: Kustomize, our own command line, Ray's, and KubeRay's list of fields."""

from __future__ import annotations

import argparse
import copy
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sppo_ray import cli
from sppo_ray.config import RunConfig
from sppo_ray.config_loading import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
OVERLAYS = DEPLOY / "kubernetes/overlays"
SHARED = "/srv/sppo-ray"
Manifest = dict[str, Any]

# Fields of KubeRay 1.6 as its API reference lists them (docs.ray.io, "KubeRay CRD API reference"); None = any value, "pod" = a
# PodTemplateSpec, a dict = an object with these fields, [x] = a list of x.
_GROUP = {
    "rayStartParams": None, "template": "pod", "resources": None, "labels": None,
}  # fmt: skip
_CLUSTER: dict[str, Any] = {
    "rayVersion": None, "suspend": None, "managedBy": None, "headServiceAnnotations": None, "enableInTreeAutoscaling": None,
    "gcsFaultToleranceOptions": None, "upgradeStrategy": {"type": None},
    "authOptions": {"mode": None, "secretName": None, "enableK8sTokenAuth": None},
    "autoscalerOptions": {
        "resources": None, "image": None, "imagePullPolicy": None, "securityContext": None, "idleTimeoutSeconds": None,
        "upscalingMode": None, "version": None, "env": None, "envFrom": None, "volumeMounts": None,
    },
    "headGroupSpec": {**_GROUP, "headService": None, "enableIngress": None, "serviceType": None},
    "workerGroupSpecs": [{
        **_GROUP, "groupName": None, "replicas": None, "minReplicas": None, "maxReplicas": None, "idleTimeoutSeconds": None,
        "numOfHosts": None, "scaleStrategy": None, "suspend": None,
    }],
}  # fmt: skip
KUBERAY: dict[str, Any] = {
    "RayCluster": _CLUSTER,
    "RayJob": {
        "activeDeadlineSeconds": None, "backoffLimit": None, "rayClusterSpec": _CLUSTER, "submitterPodTemplate": "pod",
        "metadata": None, "clusterSelector": None, "submitterConfig": None, "managedBy": None, "deletionStrategy": None,
        "entrypoint": None, "runtimeEnvYAML": None, "jobId": None, "submissionMode": None, "entrypointResources": None,
        "entrypointNumCpus": None, "entrypointNumGpus": None, "ttlSecondsAfterFinished": None, "preRunningDeadlineSeconds": None,
        "shutdownAfterJobFinishes": None, "suspend": None,
    },
    "RayService": {
        "rayClusterDeletionDelaySeconds": None, "serveService": None, "upgradeStrategy": {"type": None}, "managedBy": None,
        "serveConfigV2": None, "rayClusterConfig": _CLUSTER, "excludeHeadPodFromServeSvc": None,
    },
}  # fmt: skip


@cache
def _built(folder: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, and `kubectl kustomize` builds the overlays")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(overlay: str | Path) -> list[Manifest]:
    """The manifests that `kubectl apply -k` applies: of an overlay by its name, or of a folder."""
    return list(yaml.safe_load_all(_built(OVERLAYS / overlay)))


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def ray_cluster(manifests: Sequence[Manifest]) -> Manifest:
    """The one Ray cluster's specification, wherever it stands."""
    places = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
    found = []
    for manifest in manifests:
        if manifest["kind"] in places:
            spec = manifest["spec"]
            for key in places[manifest["kind"]]:
                spec = spec[key]
            found.append(spec)
    (spec,) = found
    return spec


def pod_templates(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """Every pod that an overlay starts, by its component."""
    templates = [manifest["spec"]["template"] for manifest in of_kind(manifests, "Deployment")]
    cluster = ray_cluster(manifests)
    templates += [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


def unknown_fields(value: Any, known: Any, path: str) -> Iterator[str]:
    """Paths in `value` that KubeRay does not know."""
    if known is None or known == "pod":
        return
    if isinstance(known, list):
        for number, entry in enumerate(value):
            yield from unknown_fields(entry, known[0], f"{path}.{number}")
        return
    for name, child in value.items():
        if name not in known:
            yield f"{path}.{name}"
        else:
            yield from unknown_fields(child, known[name], f"{path}.{name}")


# ------------------------------------------------------------------------------------------------ commands of ours and of Ray


def parse_ours(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(options, settings) of a command line of ours, as the program itself reads it. `words` begins after the program's name."""
    return cli._parser().parse_known_args(list(words))


def command_names() -> set[str]:
    """The subcommands of our program."""
    (action,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return set(action.choices)


def training_run(words: Sequence[str]) -> RunConfig:
    """The configuration that `train ...` would run with. Raises UserError for what it would refuse."""
    options, settings = parse_ours(words)
    assert options.command == "train"
    return load_config(options.recipe, [text for text in settings if text not in ("...", "DIR")])


def check_ray_start(words: Sequence[str]) -> dict[str, Any]:
    """Options of a `ray start` command line as Ray itself parses them; nothing is started."""
    from ray.scripts.scripts import cli as ray_cli

    assert list(words[:2]) == ["ray", "start"], words
    context = ray_cli.commands["start"].make_context("start", copy.copy(list(words[2:])))
    return context.params


def words_of_training(entrypoint: str) -> list[str]:
    """The words after `python -m sppo_ray` of a job's entrypoint, which is a line for a shell."""
    command = entrypoint[entrypoint.index("python -m sppo_ray") :]
    return shlex.split(re.sub(r"\$\{RESUME:-\}", "--resume", command))[3:]


def text_of(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")
