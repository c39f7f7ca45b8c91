"""Several models and versions in one server, loaded and unloaded while it runs."""

import asyncio
import re
import shutil
import threading

import numpy as np
import pytest
import requests
import tritonclient.http
from tritonclient.utils import InferenceServerException

from cloud.app import Application
from cloud.model_folder import ModelFolder, numbered
from cloud.models import Model
from cloud.repository import Repository
from edge_sdk import EdgeRuntime, oip
from edge_sdk.bundle import open_party
from edge_sdk.errors import BundleError, CollusionError, EdgeSDKError, ForbiddenError, UnknownModelError

from ..conftest import assert_one_line_error, edgesdk_here, meanwhile, serving

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)


def _open(bundle, version):
    return Model.of_bundle(bundle, version=version)


@pytest.fixture
def disk(tmp_path, bundle):
    """A repository with one version of one model."""
    shutil.copytree(bundle / "server0", tmp_path / "repository" / "tail" / "1")
    return tmp_path / "repository"


@pytest.fixture
def repository(disk):
    folder = ModelFolder(disk, _open)
    repository = Repository(folder)
    for bundle, version in folder.all_bundles():
        repository.add(_open(bundle, version))
    yield repository
    repository.close()


def _index(repository):
    return {(each.name, each.version): (each.state, each.reason) for each in repository.index()}


def test_versions_are_those_of_the_folder_after_each_load(repository, disk, bundle, other_bundle):
    first = repository.find("tail")
    shutil.copytree(other_bundle / "server0", disk / "tail" / "10")
    shutil.copytree(other_bundle / "server0", disk / "tail" / "draft")
    assert _index(repository) == {("tail", "1"): ("READY", ""), ("tail", "10"): ("UNAVAILABLE", "unloaded")}
    changes = []
    repository.on_change = lambda: changes.append(repository.versions("tail"))
    asyncio.run(repository.load("tail"))
    assert changes == [["1", "10"]]
    assert repository.find("tail", "1") is first  # unchanged, and so not opened again
    assert repository.find("tail").version == "10"
    shutil.rmtree(disk / "tail" / "1")
    asyncio.run(repository.load("tail"))
    assert repository.versions("tail") == ["10"]
    shutil.rmtree(disk / "tail" / "10")
    shutil.copytree(bundle / "server0", disk / "tail" / "10")
    asyncio.run(repository.load("tail"))
    assert repository.find("tail").properties["edgesdk_bundle_id"] == open_party(bundle / "server0").manifest.bundle_id
    asyncio.run(repository.unload("tail"))
    assert _index(repository) == {("tail", "10"): ("UNAVAILABLE", "unloaded")}
    assert repository.index(ready=True) == []
    with pytest.raises(UnknownModelError):
        repository.find("tail")


def test_what_cannot_be_served_changes_nothing_and_is_told_in_the_index(repository, disk, other_bundle):
    shutil.copytree(other_bundle / "server0", disk / "tail" / "2")
    damaged = disk / "tail" / "2" / "tail.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"tail\.onnx"):
        asyncio.run(repository.load("tail"))
    assert repository.versions("tail") == ["1"]
    state, reason = _index(repository)["tail", "2"]
    assert state == "UNAVAILABLE"
    assert "tail.onnx" in reason


def test_a_folder_of_another_name_than_its_part_is_refused(repository, disk, other_bundle):
    shutil.copytree(other_bundle / "server0", disk / "faces" / "1")
    with pytest.raises(BundleError, match="holds part 'tail'"):
        asyncio.run(repository.load("faces"))


@pytest.mark.parametrize("name", ["nothing", "..", "../repository/tail", "", "tail/1", "/etc", "a" * 300, "\0"])
def test_a_name_that_is_not_in_the_repository_is_unknown(repository, disk, name):
    shutil.copytree(disk / "tail" / "1", disk.parent / "1")  # what ".." would have
    with pytest.raises(UnknownModelError):
        asyncio.run(repository.load(name))
    with pytest.raises(UnknownModelError):
        asyncio.run(repository.unload(name))


def test_nobody_brings_a_model_of_his_own(repository):
    with pytest.raises(ForbiddenError, match="no parameters"):
        asyncio.run(repository.load("tail", {"file:1/model.onnx": ""}))


def test_without_a_folder_nothing_is_loaded_or_unloaded(bundle):
    repository = Repository()
    repository.add(_open(open_party(bundle / "server0"), "1"))
    for control in (repository.load, repository.unload):
        with pytest.raises(ForbiddenError):
            asyncio.run(control("tail"))
    repository.close()


def test_two_parts_of_one_bundle_never_meet_on_a_server(shares_bundle, tmp_path):
    parts = [open_party(shares_bundle / f"server{k}") for k in (0, 1)]
    repository = Repository()
    repository.add(_open(parts[0], "1"))
    with pytest.raises(CollusionError, match="server0 and server1"):
        repository.add(_open(parts[1], "1"))
    repository.close()
    for part in parts:
        shutil.copytree(part.path, tmp_path / part.manifest.parts[0].name / "1")
    folder = ModelFolder(tmp_path, _open)
    repository = Repository(folder)
    asyncio.run(repository.load("tail0"))
    with pytest.raises(CollusionError):
        asyncio.run(repository.load("tail1"))
    assert [model.name for model in repository] == ["tail0"]
    repository.close()


def test_a_request_to_a_version_that_leaves_is_finished_and_the_next_refused(repository, disk):
    model = repository.find("tail")
    feeds = {"features": np.zeros((512, 12, 8, 8), np.float32)}

    async def unload_meanwhile():
        asked = [model.submit(feeds) for _ in range(3)]
        await asyncio.sleep(0)
        await repository.unload("tail")
        return await asyncio.gather(*asked)

    answers = asyncio.run(unload_meanwhile())
    assert [len(each.outputs["logits"]) for each in answers] == [512] * 3
    with pytest.raises(UnknownModelError, match="unloaded"):
        model.submit(feeds)


def test_whoever_asks_for_a_change_may_leave_before_its_end(repository, disk, other_bundle, monkeypatch):
    shutil.rmtree(disk / "tail" / "1")
    shutil.copytree(other_bundle / "server0", disk / "tail" / "2")
    first = repository.find("tail")

    begun, gate = threading.Event(), threading.Event()
    folder = repository._folder
    open_model = folder.open_model

    def slowly(*arguments):
        begun.set()
        gate.wait(10)
        return open_model(*arguments)

    monkeypatch.setattr(folder, "open_model", slowly)

    async def load_and_leave():
        loading = asyncio.ensure_future(repository.load("tail"))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        loading.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await repository.load("tail")  # waits for the other

    asyncio.run(load_and_leave())
    assert repository.versions("tail") == ["2"]
    with pytest.raises(UnknownModelError, match="unloaded"):
        first.submit({"features": np.zeros((1, 12, 8, 8), np.float32)})


def test_what_was_opened_is_closed_whatever_goes_wrong(disk, bundle, other_bundle):
    shutil.copytree(other_bundle / "server0", disk / "tail" / "2")
    opened = []

    def open_or_fail(party, version):
        if opened:
            raise OSError("the disk is full")
        opened.append(_open(party, version))
        return opened[0]

    repository = Repository(ModelFolder(disk, open_or_fail))
    with pytest.raises(OSError, match="the disk is full"):
        asyncio.run(repository.load("tail"))
    assert not list(repository)
    assert not any(thread.name == "model-tail" for thread in threading.enumerate())
    assert {reason for _, reason in _index(repository).values()} == {"the disk is full"}


def test_the_same_part_twice_reveals_nothing_new(bundle):
    repository = Repository()
    for version in ("1", "3"):
        repository.add(_open(open_party(bundle / "server0"), version))
    assert repository.versions("tail") == ["1", "3"]
    repository.close()


def test_a_request_that_came_before_a_new_version_is_answered_by_it(repository, disk, bundle):
    """Its model is found by its path, and its body takes a while."""
    app = Application(repository)
    headers, chunks = oip.encode_request({"features": np.zeros((1, 12, 8, 8), np.float32)})
    sent = []

    async def ask():
        async def receive():
            shutil.move(disk / "tail" / "1", disk / "tail" / "2")
            await repository.load("tail")
            return {"type": "http.request", "body": b"".join(chunks)}

        async def send(message):
            sent.append(message)

        listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/v2/models/tail/infer", "headers": listed, "client": None}
        await app(scope, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 200
    assert b'"model_version":"2"' in sent[1]["body"]


def test_folders_named_one_by_one_are_versions_where_they_share_a_name(bundle, other_bundle, shares_bundle):
    parties = [open_party(each) for each in (bundle / "server0", shares_bundle / "server2", other_bundle / "server0")]
    found = [(party.manifest.parts[0].name, version) for party, version in numbered(parties)]
    assert found == [("tail", "1"), ("tail2", "1"), ("tail", "2")]


@pytest.fixture
def controlled(disk):
    """A server that loads on request."""
    with serving(None, "--model-repository", str(disk), "--allow-load") as (url, _):
        yield url


def test_the_official_client_loads_and_unloads(controlled, disk, other_bundle):
    http = tritonclient.http.InferenceServerClient(controlled.removeprefix("http://"))
    assert http.get_model_repository_index() == [{"name": "tail", "version": "1", "state": "READY", "reason": ""}]
    shutil.copytree(other_bundle / "server0", disk / "tail" / "2")
    http.load_model("tail")
    assert http.get_model_metadata("tail")["versions"] == ["1", "2"]
    ids = [http.get_model_metadata("tail", each)["properties"]["edgesdk_bundle_id"] for each in ("1", "2", "")]
    assert ids[0] != ids[1] == ids[2]
    http.unload_model("tail")
    assert not http.is_model_ready("tail")
    with pytest.raises(InferenceServerException, match="the repository has no model 'other'"):
        http.load_model("other")
    with pytest.raises(InferenceServerException, match="no parameters"):
        http.load_model("tail", config="{}")
    for body, status in ((b"[]", 400), (b"{", 400), (b"\xff", 400), (bytes(70_000), 413)):
        assert requests.post(f"{controlled}/v2/repository/index", data=body).status_code == status
    http.close()


def test_a_page_of_another_site_changes_nothing(controlled):
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
        load = f"{controlled}/v2/repository/models/tail/load"
        assert requests.post(load, headers={"Sec-Fetch-Site": site}).status_code == status
    # To an address without TLS a browser sends no Sec-Fetch-*, and one whose name was bound anew its own origin.
    assert requests.post(load, headers={"Origin": controlled}).status_code == 403


def test_a_device_finds_its_own_version_and_keeps_it_while_others_come(controlled, disk, bundle, other_bundle):
    url = controlled
    with EdgeRuntime(bundle / "edge", [url]) as device:
        expected = device.predict(IMAGE).logits
        shutil.copytree(other_bundle / "server0", disk / "tail" / "2")
        answers, problems = [], []

        def ask() -> None:
            try:
                answers.append(device.predict(IMAGE).logits)
            except EdgeSDKError as error:
                problems.append(error)

        with meanwhile(ask):
            for _ in range(3):
                assert requests.post(f"{url}/v2/repository/models/tail/load").status_code == 200
        assert not problems
        assert answers
        for logits in answers:
            np.testing.assert_array_equal(logits, expected)
    with EdgeRuntime(other_bundle / "edge", [url]) as device:
        assert device.predict(IMAGE).logits.shape == (1, 10)


def test_several_folders_are_served_by_one_command(bundle, other_bundle):
    with serving(bundle / "server0", str(other_bundle / "server0")) as (url, _):
        for each in (bundle, other_bundle):
            with EdgeRuntime(each / "edge", [url]) as device:
                assert device.predict(IMAGE).logits.shape == (1, 10)
        assert requests.post(f"{url}/v2/repository/models/tail/unload").status_code == 403
        names = re.findall(
            r'nv_inference_count\{model="tail",version="(\d)"\} 1\.0', requests.get(f"{url}/metrics").text
        )
        assert names == ["1", "2"]


def test_two_shares_are_refused_by_the_command(shares_bundle):
    done = edgesdk_here("serve", shares_bundle / "server0", shares_bundle / "server1", "--port", "0")
    assert_one_line_error(done, "server0 and server1", "another operator")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give servers' folders, or --model-repository"),
        (["FOLDER", "--model-repository", "x"], "one of the two"),
        (["FOLDER", "--allow-load"], "--allow-load needs"),
    ],
)
def test_wrong_usage(bundle, arguments, words):
    given = [bundle / "server0" if each == "FOLDER" else each for each in arguments]
    done = edgesdk_here("serve", *given)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_an_empty_repository_is_served_only_where_models_may_come(bundle, tmp_path):
    for folder in (tmp_path, bundle):
        assert_one_line_error(edgesdk_here("serve", "--model-repository", folder), f"{folder}: holds no model")
    with serving(None, "--model-repository", str(tmp_path), "--allow-load") as (url, _):
        assert requests.post(f"{url}/v2/repository/index").json() == []
        shutil.copytree(bundle / "server0", tmp_path / "tail" / "1")
        assert requests.post(f"{url}/v2/repository/models/tail/load").status_code == 200


def test_no_such_repository(tmp_path):
    assert_one_line_error(edgesdk_here("serve", "--model-repository", tmp_path / "no"), "no such folder")
