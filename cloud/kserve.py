"""Manifests for KServe: one InferenceService for each server's folder, on Triton or on our own image.

Source: KServe's v1beta1 API and its Triton runtime (docs: model serving runtimes, custom predictors).
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import yaml

from edge_sdk.bundle import PartyBundle
from edge_sdk.errors import ConfigError

__all__ = ["KServeOptions", "Runtime", "inference_service", "to_yaml"]

Runtime = Literal["triton", "edgesdk"]
MODELS = "/mnt/models"
"""Where KServe puts what it fetched."""

HTTP_PORT = 8080
START_SECONDS, LOOK_SECONDS = 1800, 5
"""That the first start may take, in which TensorRT's engines are built before the server answers; and between looks."""

LEAVE_SECONDS, DRAIN_SECONDS = 5, 30
"""For routers to learn that a pod goes, in which it still accepts; then for it to answer what it has accepted."""

CACHE = "/cache"
WRITABLE = {"tmp": "/tmp", "cache": CACHE}  # noqa: S108  (a volume of the pod's own)
"""Volumes of each pod, gone with it: engines are built by way of the one and kept in the other."""

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


LABEL = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A name of Kubernetes: a label of DNS, RFC 1123."""

URI = re.compile(r"[a-z][a-z0-9+.-]*://\S*\w\S*", re.IGNORECASE)


class KServeOptions(NamedTuple):
    """How the tail is deployed.

    Attributes:
        runtime: KServe's Triton, over a repository that ``edgesdk triton`` wrote; or an image with edgesdk.
        storage_uri: where the repository, or the server's folder, lies: ``s3://…``, ``gs://…``, ``pvc://…``.
        image: of our server; for ``edgesdk`` alone.
        namespace: None takes one of its own for each server, ``edgesdk-server0``.
        gpus: for each replica.
        min_replicas: kept running without load, 1 at least: scaling to none is Knative's, which takes no affinity.
        max_replicas: at most.
        backend: of our server.
        precision: of our server.
    """

    runtime: Runtime
    storage_uri: str
    image: str | None = None
    namespace: str | None = None
    gpus: int = 0
    min_replicas: int = 1
    max_replicas: int = 3
    backend: str = "onnxruntime"
    precision: str = "fp32"


def inference_service(bundle: PartyBundle, options: KServeOptions) -> dict[str, Any]:
    """The manifest of one server's part.

    Pods of other parties of the same bundle are kept off the node, in whichever namespace they are: the shares of an
    image must not meet on one machine. Different clusters under different owners are better.

    Raises:
        ConfigError: a name, the storage's address or the image that Kubernetes or KServe would refuse.
    """
    manifest = bundle.manifest
    part, party, identity = manifest.parts[0], manifest.party, manifest.bundle_id[:16]
    name, namespace = f"{part.name}-{identity[:8]}", options.namespace or f"edgesdk-{party}"
    _check(name, namespace, options)
    resources = {"limits": {"nvidia.com/gpu": str(options.gpus)}} if options.gpus else {}
    labels = {"edgesdk/bundle": identity, "edgesdk/party": party}
    predictor: dict[str, Any] = {
        "minReplicas": options.min_replicas,
        "maxReplicas": options.max_replicas,
        "affinity": {"podAntiAffinity": {REQUIRED: [_away_from_others(labels)]}},
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        # The default, 30, counts the hook too, and kills. Triton answers for 30 s as well.
        "terminationGracePeriodSeconds": LEAVE_SECONDS + DRAIN_SECONDS + 10,
    }
    if options.runtime == "triton":
        predictor["model"] = {
            "modelFormat": {"name": "triton"},
            "protocolVersion": "v2",
            "runtime": "kserve-tritonserver",
            "storageUri": options.storage_uri,
            **({"resources": resources} if resources else {}),
        }
    else:
        predictor["containers"] = [_container(options, resources)]
        predictor["volumes"] = [{"name": name, "emptyDir": {}} for name in WRITABLE]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            # Knative's webhook refuses affinity unless a feature flag of the cluster allows it.
            "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
        },
        "spec": {"predictor": predictor},
    }


def _check(name: str, namespace: str, options: KServeOptions) -> None:
    for what, value in (("the service's name", name), ("namespace", namespace)):
        if not LABEL.fullmatch(value):
            raise ConfigError(
                f"{what} {value!r}: Kubernetes takes small letters, digits and '-', 63 at most, the first and the last "
                "no '-'"
            )
    if not name[0].isalpha():
        raise ConfigError(f"the service's name {name!r}: KServe takes one that begins with a letter")
    if not URI.fullmatch(options.storage_uri):
        raise ConfigError(
            f"storage URI {options.storage_uri!r}: expected one such as s3://BUCKET/PATH or pvc://CLAIM/PATH"
        )
    if options.image is not None and not re.fullmatch(r"\S+", options.image):
        raise ConfigError(f"image {options.image!r}: expected one such as REGISTRY/NAME:TAG")


def to_yaml(manifest: dict[str, Any]) -> str:
    """The manifest as kubectl reads it."""
    text: str = yaml.safe_dump(manifest, sort_keys=False)
    return text


def _container(options: KServeOptions, resources: dict[str, Any]) -> dict[str, Any]:
    # Istio or the ingress before it ends TLS and asks for the token.
    command = f"serve {MODELS} --host 0.0.0.0 --port {HTTP_PORT} --insecure --drain-seconds {DRAIN_SECONDS}"
    return {
        "name": "kserve-container",  # KServe asks for this name
        "image": options.image,
        "args": [*command.split(), "--backend", options.backend, "--precision", options.precision],
        "env": [
            {"name": "STORAGE_URI", "value": options.storage_uri},
            {"name": "EDGESDK_CACHE", "value": CACHE},
        ],
        "ports": [{"containerPort": HTTP_PORT, "protocol": "TCP"}],
        # Until it succeeds the others wait: alone, the liveness probe kills after 30 s whoever builds engines.
        "startupProbe": {
            **_probe("ready"),
            "periodSeconds": LOOK_SECONDS,
            "failureThreshold": START_SECONDS // LOOK_SECONDS,
        },
        "readinessProbe": _probe("ready"),
        "livenessProbe": _probe("live"),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LEAVE_SECONDS)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in WRITABLE.items()],
        **({"resources": resources} if resources else {}),
    }


def _probe(what: str) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{what}", "port": HTTP_PORT}}


def _away_from_others(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "labelSelector": {
            "matchLabels": {"edgesdk/bundle": labels["edgesdk/bundle"]},
            "matchExpressions": [{"key": "edgesdk/party", "operator": "NotIn", "values": [labels["edgesdk/party"]]}],
        },
        "namespaceSelector": {},
        "topologyKey": "kubernetes.io/hostname",
    }
