"""Manifests for KServe: their shape, and that the parts of a bundle are kept apart."""

import pytest
from msgspec.structs import replace

from edge_sdk.bundle import open_party
from edge_sdk.errors import ConfigError

from ..conftest import assert_one_line_error, edgesdk_here

yaml = pytest.importorskip("yaml")
TRITON = ("--storage-uri", "s3://bucket/repo")
OURS = ("--runtime", "edgesdk", "--image", "registry/edgesdk:1", "--storage-uri", "pvc://models/server0")


def _manifest(folder, *options):
    done = edgesdk_here("kserve", folder, *options)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_triton_over_a_repository(bundle):
    found = _manifest(bundle / "server0", *TRITON, "--gpus", "1")
    assert (found["apiVersion"], found["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert found["metadata"]["namespace"] == "edgesdk-server0"
    assert found["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "RawDeployment"}
    assert found["metadata"]["name"].startswith("tail-")
    assert len(found["metadata"]["name"]) <= 63
    assert found["spec"]["predictor"]["model"] == {
        "modelFormat": {"name": "triton"},
        "protocolVersion": "v2",
        "runtime": "kserve-tritonserver",
        "storageUri": "s3://bucket/repo",
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }


def test_our_own_image(bundle):
    found = _manifest(bundle / "server0", *OURS, "--namespace", "clinic", "--min-replicas", "2", "--max-replicas", "9")
    assert found["metadata"]["namespace"] == "clinic"
    predictor = found["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 9)
    (container,) = predictor["containers"]
    assert (container["name"], container["image"]) == ("kserve-container", "registry/edgesdk:1")
    assert container["args"][:2] == ["serve", "/mnt/models"]
    assert container["env"] == [
        {"name": "STORAGE_URI", "value": "pvc://models/server0"},
        {"name": "EDGESDK_CACHE", "value": "/cache"},
    ]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert predictor["securityContext"]["runAsNonRoot"] is True


def test_engines_may_take_half_an_hour_to_build_and_have_where_to(bundle):
    """A liveness probe without one for the start kills after 30 s; the root of the file system is read-only."""
    predictor = _manifest(bundle / "server0", *OURS, "--gpus", "1", "--backend", "tensorrt")["spec"]["predictor"]
    (container,) = predictor["containers"]
    start = container["startupProbe"]
    assert start["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert start["failureThreshold"] * start["periodSeconds"] == 1800
    assert container["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": 8080}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    writable = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume["emptyDir"] for volume in predictor["volumes"]}
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert set(writable) == {"/tmp", variables["EDGESDK_CACHE"]}
    assert [volumes[name] for name in writable.values()] == [{}, {}]


@pytest.mark.parametrize("options", [TRITON, OURS])
def test_a_pod_is_not_killed_before_it_has_answered(bundle, options):
    """The grace period runs from the start of the hook; the server stops accepting when the hook has ended."""
    predictor = _manifest(bundle / "server0", *options)["spec"]["predictor"]
    needed = 30.0  # Triton's default too
    if options is OURS:
        (container,) = predictor["containers"]
        needed = float(container["args"][container["args"].index("--drain-seconds") + 1])
        command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (command, float(seconds) > 0) == ("sleep", True)
        needed += float(seconds)
    assert predictor["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("options", [(), ("--gpus", "1", "--backend", "tensorrt", "--precision", "fp16")])
def test_the_arguments_are_the_servers(bundle, options):
    """What the container is told to run is a command that this version has."""
    (container,) = _manifest(bundle / "server0", *OURS, *options)["spec"]["predictor"]["containers"]
    arguments = [str(bundle / "edge") if each == "/mnt/models" else each for each in container["args"]]
    assert_one_line_error(edgesdk_here(*arguments), "folder of edge")  # all was understood but the folder
    if options:
        assert container["args"][-4:] == list(options[2:])
        assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}


def test_no_two_parties_share_a_node(shares_bundle):
    manifests = [_manifest(shares_bundle / f"server{k}", *TRITON) for k in (0, 1)]
    assert len({found["metadata"]["namespace"] for found in manifests}) == 2
    for k, found in enumerate(manifests):
        (rule,) = found["spec"]["predictor"]["affinity"]["podAntiAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        other = manifests[1 - k]["metadata"]["labels"]
        assert other["edgesdk/bundle"] == rule["labelSelector"]["matchLabels"]["edgesdk/bundle"]
        (expression,) = rule["labelSelector"]["matchExpressions"]
        assert expression["operator"] == "NotIn"
        assert other["edgesdk/party"] not in expression["values"]
        assert found["metadata"]["labels"]["edgesdk/party"] in expression["values"]  # replicas may meet
        assert rule["namespaceSelector"] == {}


@pytest.mark.parametrize(
    "options",
    [
        (*TRITON, "--image", "x"),
        (*OURS[:2], *TRITON),
        (*TRITON, "--min-replicas", "5"),
        (*TRITON, "--min-replicas", "0"),
        (*TRITON, "--precision", "fp16"),
        (*OURS, "--gpus", "1"),
        (*OURS, "--backend", "tensorrt"),
        (),
    ],
)
def test_wrong_usage(bundle, options):
    assert edgesdk_here("kserve", bundle / "server0", *options).returncode == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--storage-uri", "models/server0"), "storage URI 'models/server0': expected one such as s3://"),
        (("--storage-uri", "s3://"), "storage URI 's3://'"),
        (("--storage-uri", "s3://bucket/a b"), "storage URI"),
        ((*TRITON, "--namespace", "Clinic_1"), "namespace 'Clinic_1': Kubernetes takes small letters"),
        ((*TRITON, "--namespace", "-a"), "namespace '-a'"),
        ((*TRITON, "--namespace", "a" * 64), "63 at most"),
        ((*OURS, "--image", ""), "image ''"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(bundle, options, words):
    assert_one_line_error(edgesdk_here("kserve", bundle / "server0", *options), words)


def test_a_part_whose_name_is_none_of_kubernetes_is_refused(bundle):
    from cloud.kserve import KServeOptions, inference_service

    server = open_party(bundle / "server0")
    for name in ("Tail", "3tail", "t" * 60):
        part = replace(server.manifest.parts[0], name=name)
        other = replace(server, manifest=replace(server.manifest, parts=(part,)))
        with pytest.raises(ConfigError, match="the service's name"):
            inference_service(other, KServeOptions("triton", "s3://bucket/repo"))


def test_a_file_is_not_written_over(bundle, tmp_path):
    out = tmp_path / "service.yaml"
    assert edgesdk_here("kserve", bundle / "server0", *TRITON, "--out", out).returncode == 0
    assert yaml.safe_load(out.read_text())["kind"] == "InferenceService"
    assert_one_line_error(edgesdk_here("kserve", bundle / "server0", *TRITON, "--out", out), "exists already")
    assert_one_line_error(edgesdk_here("kserve", bundle / "edge", *TRITON), "folder of edge")
    nowhere = tmp_path / "no" / "service.yaml"
    done = edgesdk_here("kserve", bundle / "server0", *TRITON, "--out", nowhere)
    assert_one_line_error(done, f"edgesdk: {nowhere}: No such file or directory")
