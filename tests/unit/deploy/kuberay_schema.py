"""What KubeRay's custom resources may hold: names and types, as a JSON schema that is checked
offline.

KubeRay's CRDs are large, for each carries the whole PodSpec, and no package was found that has
them. This is their part without it, written by hand. Names: the API reference of KubeRay 1.6
(docs.ray.io, "KubeRay CRD API reference"). Types, enumerations and required fields: the Go types
that the CRDs are made from (ray-project/kuberay, ray-operator/apis/ray/v1/*_types.go, Apache-2.0),
RayCluster's as of about 1.7, RayService's 1.5, RayJob's 1.4. What KubeRay takes over from
Kubernetes (pod templates, Services) is checked by the schemas that Kubernetes publishes, which the
package kubernetes-validate carries. Not in it: KubeRay's rules in CEL, and what its operator
refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate import utils
from referencing import Registry, Resource

KUBERNETES = "1.32"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY: Schema = {}  # fields whose type was not read; no file here has them


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def some(entry: Schema) -> Schema:
    return {"type": "array", "items": entry}


def of_kubernetes(kind: str) -> Schema:
    return {"$ref": f"/api/_definitions.json#/$defs/io.k8s.api.core.v1.{kind}"}


def fields(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_GROUP: Schema = {
    "rayStartParams": TEXTS,
    "template": of_kubernetes("PodTemplateSpec"),
    "resources": TEXTS,
    "labels": TEXTS,
}
_SECRET = fields({"value": TEXT, "valueFrom": of_kubernetes("EnvVarSource")})
_MANAGED_BY = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")

_HEAD = fields(
    {
        **_GROUP,
        "headService": of_kubernetes("Service"),
        "enableIngress": FLAG,
        "serviceType": one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    },
    required=("template",),
)
_WORKERS = fields(
    {
        **_GROUP,
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "idleTimeoutSeconds": COUNT,
        "numOfHosts": COUNT,
        "scaleStrategy": fields({"workersToDelete": some(TEXT)}),
        "suspend": FLAG,
    },
    required=("groupName", "maxReplicas", "minReplicas", "template"),
)
_AUTOSCALER = fields(
    {
        "resources": of_kubernetes("ResourceRequirements"),
        "image": TEXT,
        "imagePullPolicy": one_of("Always", "IfNotPresent", "Never"),
        "securityContext": of_kubernetes("SecurityContext"),
        "idleTimeoutSeconds": COUNT,
        "upscalingMode": one_of("Default", "Aggressive", "Conservative"),
        "version": one_of("v1", "v2"),
        "env": some(of_kubernetes("EnvVar")),
        "envFrom": some(of_kubernetes("EnvFromSource")),
        "volumeMounts": some(of_kubernetes("VolumeMount")),
    }
)
_FAULT_TOLERANCE = fields(
    {
        "redisUsername": _SECRET,
        "redisPassword": _SECRET,
        "externalStorageNamespace": TEXT,
        "redisAddress": TEXT,
    },
    required=("redisAddress",),
)
RAY_CLUSTER = fields(
    {
        "rayVersion": TEXT,
        "suspend": FLAG,
        "managedBy": _MANAGED_BY,
        "headServiceAnnotations": TEXTS,
        "enableInTreeAutoscaling": FLAG,
        "gcsFaultToleranceOptions": _FAULT_TOLERANCE,
        "upgradeStrategy": fields({"type": one_of("Recreate", "None")}),
        "authOptions": fields(
            {"mode": one_of("disabled", "token"), "secretName": TEXT, "enableK8sTokenAuth": FLAG}
        ),
        "autoscalerOptions": _AUTOSCALER,
        "headGroupSpec": _HEAD,
        "workerGroupSpecs": some(_WORKERS),
    },
    required=("headGroupSpec",),
)
RAY_JOB = fields(
    {
        "activeDeadlineSeconds": COUNT,
        "backoffLimit": COUNT,
        "rayClusterSpec": RAY_CLUSTER,
        "submitterPodTemplate": of_kubernetes("PodTemplateSpec"),
        "metadata": TEXTS,
        "clusterSelector": TEXTS,
        "submitterConfig": fields({"backoffLimit": COUNT}),
        "managedBy": _MANAGED_BY,
        "deletionStrategy": ANY,
        "entrypoint": TEXT,
        "runtimeEnvYAML": TEXT,
        "jobId": TEXT,
        "submissionMode": one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "entrypointResources": TEXT,
        "entrypointNumCpus": NUMBER,
        "entrypointNumGpus": NUMBER,
        "ttlSecondsAfterFinished": COUNT,
        "preRunningDeadlineSeconds": ANY,
        "shutdownAfterJobFinishes": FLAG,
        "suspend": FLAG,
    }
)
RAY_SERVICE = fields(
    {
        "rayClusterDeletionDelaySeconds": COUNT,
        "serveService": of_kubernetes("Service"),
        "upgradeStrategy": fields({"type": one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None")}),
        "managedBy": _MANAGED_BY,
        "serveConfigV2": TEXT,
        "rayClusterConfig": RAY_CLUSTER,
        "excludeHeadPodFromServeSvc": FLAG,
    },
    required=("rayClusterConfig",),
)
KINDS = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB, "RayService": RAY_SERVICE}


@cache
def _validator(kind: str) -> Draft202012Validator:
    definitions = utils.schema_contents(
        f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict/_definitions.json", KUBERNETES
    )
    base = str(definitions["$id"]).removesuffix("_definitions.json")
    registry = Resource.from_contents(definitions) @ Registry()
    return Draft202012Validator({"$id": f"{base}{kind.lower()}", **KINDS[kind]}, registry=registry)


def faults(kind: str, spec: Any) -> Iterator[str]:
    """What KubeRay would refuse in the `spec` of a `kind`, as PATH: REASON."""
    for error in _validator(kind).iter_errors(spec):
        yield f"{error.json_path}: {error.message}"
