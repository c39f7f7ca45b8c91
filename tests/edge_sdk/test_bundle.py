import hashlib
import json
import shutil

import msgspec
import pytest

from edge_sdk.bundle import Manifest, bundle_id, open_party, parties, write_bundle
from edge_sdk.errors import BundleError


@pytest.fixture
def edge(bundle, tmp_path):
    return shutil.copytree(bundle / "edge", tmp_path / "edge")


def _rewrite(folder, change):
    """Change the manifest and make the sums fit again: only the check of its content is left to refuse it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(names)]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_each_party_has_its_own_parts_and_nothing_of_the_others(bundle):
    edge, server = open_party(bundle / "edge", "edge"), open_party(bundle / "server0", "server")
    files = {party: {p.name for p in (bundle / party).iterdir()} for party in ("edge", "server0")}
    own = {party: {each for each in names if each.endswith(".onnx")} for party, names in files.items()}
    endings = ("onnx", "fp16.onnx", "int8.onnx")
    assert own["edge"] == {f"{part}.{ending}" for part in ("encoder", "reference") for ending in endings}
    assert own["server0"] == {f"tail.{ending}" for ending in endings}
    assert all(names - own[party] == {"SHA256SUMS", "manifest.json"} for party, names in files.items())
    assert edge.manifest.bundle_id == server.manifest.bundle_id
    assert edge.manifest.part("tail").file is None
    assert edge.manifest.part("tail").cost is None
    assert [part.name for part in server.manifest.parts] == ["tail"]
    text = (bundle / "server0" / "manifest.json").read_text()
    assert "encoder" not in text
    assert server.manifest.config == {}


def test_no_weight_of_one_party_is_in_the_other(bundle):
    import onnx
    from onnx import numpy_helper

    def weights(path):
        tensors = onnx.load(path).graph.initializer
        return {numpy_helper.to_array(t).tobytes() for t in tensors if len(t.dims) == 4}

    encoder, tail = weights(bundle / "edge" / "encoder.onnx"), weights(bundle / "server0" / "tail.onnx")
    assert len(encoder) > 10
    assert len(tail) >= 4
    assert not encoder & tail


@pytest.mark.parametrize("party", ["edge", "server0"])
def test_one_flipped_byte_anywhere_is_refused(bundle, tmp_path, party):
    folder = shutil.copytree(bundle / party, tmp_path / party)
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for position in {0, 1, len(original) // 3, len(original) // 2, len(original) - 1}:
            for flip in (0x01, 0x20, 0xFF):
                damaged = bytearray(original)
                damaged[position] ^= flip
                path.write_bytes(damaged)
                with pytest.raises(BundleError, match=r"altered|damaged|missing|not list"):
                    open_party(folder)
        path.write_bytes(original)
    open_party(folder)


def test_every_byte_of_the_sums_counts(edge):
    sums = edge / "SHA256SUMS"
    original = sums.read_bytes()
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 0x01
        sums.write_bytes(damaged)
        with pytest.raises(BundleError):
            open_party(edge)


@pytest.mark.parametrize("name", ["encoder.onnx", "manifest.json", "SHA256SUMS", "reference.onnx"])
def test_a_truncated_or_missing_file_is_refused(edge, name):
    path = edge / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError):
        open_party(edge)
    path.write_bytes(b"")
    with pytest.raises(BundleError):
        open_party(edge)
    path.unlink()
    with pytest.raises(BundleError):
        open_party(edge)


def _set(**fields):
    return lambda manifest: manifest.update(fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(format_version=2), "this edgesdk reads format 1"),
        (lambda m: m.pop("bundle_id"), "bundle_id"),
        (_set(surprise=1), "surprise"),
        (_set(parts=[]), "0 parts; the first must be one that edge runs"),
        (_set(parts={}), "parts"),
        (lambda m: m["parts"][0].update(file="../encoder.onnx"), "not a plain file name"),
        (lambda m: m["parts"][0].update(file="other.onnx"), "does not list other.onnx"),
        (lambda m: m["parts"][0].update(file=None), "runs on edge; its file is None"),
        (lambda m: m["parts"][0].update(placement="server1"), "the first must be one that edge runs"),
        (lambda m: m["parts"][0].update(cost=None), "a file and no cost"),
        (lambda m: m["parts"][1].update(outputs=[]), "no inputs or no outputs"),
        (lambda m: m["reference"].update(file=None), "the reference encoder has no file"),
        (lambda m: m["parts"][0]["inputs"][0].update(dtype="FP32"), "must take one UINT8 image"),
        (lambda m: m["parts"][1].update(file="tail.onnx", cost=m["parts"][0]["cost"]), "runs on server0"),
        (lambda m: m["parts"][0]["inputs"][0].update(dtype="BYTES"), "BYTES"),
        (lambda m: m["parts"][0]["inputs"][0].update(shape=[None, None, 32, 3]), "first axis only"),
        (lambda m: m["parts"][1]["inputs"][0].update(name="other"), "no part before it gives"),
        (lambda m: m["parts"][1]["outputs"][0].update(name="features"), "given twice"),
        (lambda m: m["parts"][1].update(name="encoder"), "a name of its own"),
        (_set(labels=["cat", "dog"]), "2 labels for logits"),
    ],
)
def test_a_manifest_that_is_none_is_refused(edge, change, words):
    _rewrite(edge, change)
    with pytest.raises(BundleError) as caught:
        open_party(edge)
    assert words in str(caught.value)


def test_a_manifest_nested_too_deep_is_refused(edge):
    _rewrite(edge, lambda m: None)
    text = (edge / "manifest.json").read_text().replace('"preprocessing": {', '"preprocessing": {"x": ' + "[" * 9000, 1)
    (edge / "manifest.json").write_text(text)
    sums = (edge / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256(text.encode()).hexdigest()
    lines = [f"{digest}  manifest.json" if line.endswith("manifest.json") else line for line in sums]
    (edge / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    with pytest.raises(BundleError, match="not a valid manifest"):
        open_party(edge)


def test_the_wrong_folder_says_which_is_right(bundle, tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        open_party(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"did you mean .*edge"):
        open_party(bundle)
    with pytest.raises(BundleError, match="folder of server0; a folder for edge is needed"):
        open_party(bundle / "server0", "edge")
    with pytest.raises(BundleError, match="folder of edge; a folder for server is needed"):
        open_party(bundle / "edge", "server")
    with pytest.raises(BundleError, match="no bundle here"):
        parties(tmp_path)


@pytest.mark.parametrize(
    ("given", "expected", "words"),
    [
        ("", "server", r"a whole bundle.*; did you mean \S*/server0 or \S*/server1 or"),
        ("", "edge", r"a whole bundle.*; did you mean \S*/edge\?$"),
        ("edge", "server", r"folder of edge; .*; did you mean \S*/server0 or"),
        ("server1", "edge", r"folder of server1; .*; did you mean \S*/edge\?$"),
        ("edge/manifest.json", "server", "is a file; expected .* such as BUNDLE/server0"),
        ("server7", "server", "no such folder; expected .* such as BUNDLE/server0"),
    ],
)
def test_what_was_meant_is_of_the_party_that_is_needed(shares_bundle, given, expected, words):
    with pytest.raises(BundleError, match=words):
        open_party(shares_bundle / given, expected)


def test_parties_come_edge_first(bundle):
    assert [p.name for p in parties(bundle)] == ["edge", "server0"]
    assert parties(bundle / "server0") == [bundle / "server0"]


def test_nothing_is_written_over_anything_and_nothing_half(bundle, tmp_path):
    edge = open_party(bundle / "edge")
    files = {"edge": {name: data for name, data in edge.files.items() if name.endswith(".onnx")}}
    target = tmp_path / "out"
    target.mkdir()
    (target / "precious").touch()
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(target, {"edge": edge.manifest}, files)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is not a folder that can be written to"):
        write_bundle(tmp_path / "file" / "b", {"edge": edge.manifest}, files)
    (tmp_path / "file").unlink()
    broken = msgspec.structs.replace(edge.manifest, parts=())
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "new", {"edge": broken}, files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    write_bundle(tmp_path / "new", {"edge": edge.manifest}, files)
    assert open_party(tmp_path / "new" / "edge").manifest == edge.manifest


def test_a_manifest_survives_json(bundle):
    manifest = open_party(bundle / "edge").manifest
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest


def test_the_id_depends_on_every_part_and_setting():
    one = bundle_id({"a": b"x", "b": b"y"}, {"k": 1})
    assert one == bundle_id({"b": b"y", "a": b"x"}, {"k": 1})
    assert len({one, bundle_id({"a": b"x", "b": b"z"}, {"k": 1}), bundle_id({"a": b"x", "b": b"y"}, {"k": 2})}) == 3
