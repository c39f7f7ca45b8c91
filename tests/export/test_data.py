"""Archives in both published forms, written here in their documented layouts, and image folders."""

import io
import os
import pickle
import shutil
import tarfile
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from edge_sdk.errors import DataError
from export import data
from export.data import cifar, load_splits
from export.data.cifar import read_files

N = 40
RANDOM = np.random.default_rng(0)


def _batches(count):
    return [(RANDOM.integers(0, 256, (N, 3072), np.uint8), RANDOM.integers(0, 10, N)) for _ in range(count)]


BATCHES = _batches(6)
NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES100 = [f"fine{i}" for i in range(100)]


def _binary10():
    files = {
        f"data_batch_{i + 1}.bin": b"".join(bytes([y]) + x.tobytes() for x, y in zip(*batch, strict=True))
        for i, batch in enumerate(BATCHES[:5])
    }
    x, y = BATCHES[5]
    files["test_batch.bin"] = b"".join(bytes([b]) + a.tobytes() for a, b in zip(x, y, strict=True))
    return {**files, "batches.meta.txt": "\n".join(NAMES10).encode() + b"\n\n", "readme.html": b"x"}


def _python10():
    dump = {f"data_batch_{i + 1}": batch for i, batch in enumerate(BATCHES[:5])} | {"test_batch": BATCHES[5]}
    files = {name: pickle.dumps({b"data": x, b"labels": y.tolist()}, 2) for name, (x, y) in dump.items()}
    return {**files, "batches.meta": pickle.dumps({b"label_names": [n.encode() for n in NAMES10]}, 2)}


def _binary100():
    def part(x, y):
        return b"".join(bytes([7, b]) + a.tobytes() for a, b in zip(x, y, strict=True))

    return {
        "train.bin": b"".join(part(*batch) for batch in BATCHES[:5]),
        "test.bin": part(*BATCHES[5]),
        "fine_label_names.txt": "\n".join(NAMES100).encode(),
    }


def _python100():
    x, y = (np.concatenate(parts) for parts in zip(*BATCHES[:5], strict=True))
    return {
        "train": pickle.dumps({b"data": x, b"fine_labels": y.tolist()}, 2),
        "test": pickle.dumps({b"data": BATCHES[5][0], b"fine_labels": BATCHES[5][1].tolist()}, 2),
        "meta": pickle.dumps({b"fine_label_names": [n.encode() for n in NAMES100]}, 2),
    }


FORMS = {"binary10": _binary10, "python10": _python10, "binary100": _binary100, "python100": _python100}


def _tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"some-folder/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_an_archive_in_every_published_form(tmp_path, form, unpacked):
    files = FORMS[form]()
    path = tmp_path / "cifar.tar.gz"
    if unpacked:
        path = tmp_path / "cifar"
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    else:
        _tar(path, files)
    splits = load_splits(str(path), 32)
    assert splits.class_names == tuple(NAMES10 if form.endswith("10") else NAMES100)
    x, y = BATCHES[5]
    np.testing.assert_array_equal(splits.test.pixels, x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(splits.test.labels, y)
    assert len(splits.train) + len(splits.validation) + len(splits.auxiliary) == 5 * N


def test_all_forms_split_alike(tmp_path):
    records = [load_splits(str(_tar(tmp_path / f"{form}.tgz", FORMS[form]())), 32).record() for form in FORMS]
    assert all(record["parts"] == records[0]["parts"] for record in records)


def _keys(images):
    return {image.tobytes() for image in images.pixels}


def test_the_parts_are_disjoint_and_fixed(tmp_path):
    path = str(_tar(tmp_path / "c.tgz", _binary10()))
    splits = load_splits(path, 32)
    keys = [_keys(part) for part in (splits.train, splits.validation, splits.auxiliary, splits.test)]
    assert len(set.union(*keys)) == sum(map(len, keys)) == 6 * N
    assert [len(k) for k in keys] == [154, 6, 40, 40]
    assert load_splits(path, 32).record() == splits.record()
    other = load_splits(path, 32, seed=1)
    assert other.record()["parts"]["train"] != splits.record()["parts"]["train"]
    assert other.test.sha256 == splits.test.sha256


def test_copies_of_an_image_stay_on_one_side(tmp_path):
    files = _binary10()
    for i in range(2, 6):
        files[f"data_batch_{i}.bin"] = files["data_batch_1.bin"]  # every image five times
    splits = load_splits(str(_tar(tmp_path / "c.tgz", files)), 32)
    assert not _keys(splits.train) & _keys(splits.auxiliary)
    assert not _keys(splits.train) & _keys(splits.validation)


def test_a_folder_splits_alike_whatever_its_names(image_folder, tmp_path):
    splits = load_splits(str(image_folder), 32)
    assert splits.train.pixels.shape[1:] == (32, 32, 3)
    copy = tmp_path / "renamed"
    shutil.copytree(image_folder, copy)
    for path in sorted((copy / "train").rglob("*.*")):
        path.rename(path.with_name(f"x{path.name}"))
    assert load_splits(str(copy), 32).record()["parts"] == splits.record()["parts"]


def test_a_folder_without_test_images_gives_some_of_its_own(image_folder):
    splits = load_splits(str(image_folder / "train"), 16)
    assert splits.test.pixels.shape[1:] == (16, 16, 3)
    total = sum(len(part) for part in (splits.train, splits.validation, splits.auxiliary, splits.test))
    assert len(splits.test) == round(total * 0.15)


def test_a_tar_of_a_folder_is_unpacked_once(image_folder, tmp_path):
    path = tmp_path / "images.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as tar:
        tar.add(image_folder, arcname="images")
    first = load_splits(str(path), 32).record()
    assert first["parts"] == load_splits(str(image_folder), 32).record()["parts"]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    load_splits(str(path), 32)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_test_images_as_a_folder(tmp_path):
    folder = data.image_folder(str(_tar(tmp_path / "c.tgz", _binary10())))
    files = sorted(folder.rglob("*.png"))
    assert len(files) == N
    row = int(files[0].stem)
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])).transpose(2, 0, 1).ravel(), BATCHES[5][0][row])
    assert files[0].parent.name == NAMES10[BATCHES[5][1][row]]


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path, monkeypatch, filtered, kind):
    if not filtered:  # as Debian 12's Python, which has no filter
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("../escaped/a/1.png" if kind == tarfile.REGTYPE else "a/1.png")
        info.type, info.linkname = kind, "" if kind == tarfile.REGTYPE else "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match="cannot be unpacked"):
        load_splits(str(path), 32)
    assert not (tmp_path / "escaped").exists()


class _Evil:
    def __reduce__(self):
        return (eval, ("1 + 1",))


class _ForgedType:
    """A dtype whose state says that its eight bytes are a pointer to an object, and its flags that it holds none."""

    def __reduce__(self):
        fields = {"f": (np.dtype("O"), 0)}
        return (np.dtype, ("V8", False, True), (3, "|", None, ("f",), fields, 8, 1, 0))


class _Forged:
    def __reduce__(self):
        rebuild, arguments, _ = np.zeros(0, np.uint8).__reduce__()
        return (rebuild, arguments, (1, (6144,), _ForgedType(), False, bytes(8 * 6144)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop("test_batch.bin"), "'test_batch.bin' is missing"),
        (lambda f: f.update({"data_batch_3.bin": b"x" * 100}), "malformed"),
        (lambda f: f.update({"data_batch_3.bin": bytes([11]) + bytes(3072)}), "a label outside 0 to 9"),
        (lambda f: f.update({"batches.meta.txt": b"\xff"}), "malformed"),
        (lambda f: f.update({"batches.meta.txt": b"../../a /b " + b" ".join(b"%d" % i for i in range(8))}), "plain"),
        (lambda f: f.update({"batches.meta.txt": b"a " * 10}), "plain"),
    ],
)
def test_a_damaged_binary_archive_is_refused(tmp_path, change, words):
    files = _binary10()
    change(files)
    with pytest.raises(DataError, match=words):
        load_splits(str(_tar(tmp_path / "c.tgz", files)), 32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "malformed"),
        (pickle.dumps([1]), "a dict was expected"),
        (pickle.dumps({b"data": _Evil(), b"labels": []}), "builtins.eval, which no CIFAR file has"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}), "5 labels for 10 images"),
        (pickle.dumps({b"data": _Forged(), b"labels": [1, 2]}), "an array of 'V8', not of integers"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}), "an array of 'f8', not of integers"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1.5, "a"]}), "nor a list|neither an array"),
    ],
)
def test_a_damaged_or_hostile_pickle_is_refused(tmp_path, content, words):
    files = {name: data for name, data in _python10().items() if "data_batch" not in name}
    files.update({f"data_batch_{i}": content for i in range(1, 6)})
    with pytest.raises(DataError, match=words):
        load_splits(str(_tar(tmp_path / "c.tgz", files)), 32)


def test_a_pickle_with_any_byte_changed_is_read_or_refused(tmp_path):
    """By one line: opcodes raise nearly anything."""
    good = _python10()
    batch = good["data_batch_1"]
    for position in range(250):  # before the pixels
        for value in (0x00, 0x52, 0x62):
            changed = batch[:position] + bytes([value]) + batch[position + 1 :]
            with suppress(DataError):
                read_files({**good, "data_batch_1": changed}, "archive")


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_damaged_compression_is_refused(tmp_path, kind):
    path = tmp_path / f"c.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as tar:
        info = tarfile.TarInfo("a/b.png")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(RANDOM.bytes(100_000)))
    content = path.read_bytes()
    for position in range(20, len(content), 9001):
        path.write_bytes(content[:position] + b"\xff\x00\xff" + content[position + 3 :])
        with pytest.raises(DataError):
            load_splits(str(path), 32)


def test_what_is_no_data_set_is_refused(tmp_path):
    cases = {
        "missing": "no such file or folder; expected a path or one of cifar10, cifar100",
        "empty": "0 class folders found",
        "text": "not a readable tar archive",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    for name, words in cases.items():
        with pytest.raises(DataError, match=words):
            load_splits(str(tmp_path / name), 32)


def test_too_few_images_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "few" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (name == "a" and "red") or "blue").save(tmp_path / "few" / "train" / name / "1.png")
    with pytest.raises(DataError, match="too few to split"):
        load_splits(str(tmp_path / "few"), 32)


def test_test_images_are_not_trained_on(image_folder, tmp_path):
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    first = sorted((copy / "test").iterdir())[0]
    for image in first.iterdir():
        shutil.copy(image, copy / "train" / first.name / f"copy-of-{image.name}")
    plain = load_splits(str(image_folder), 32)
    with pytest.warns(UserWarning, match="10 training images left out: they are test images"):
        assert load_splits(str(copy), 32).record()["parts"] == plain.record()["parts"]


@pytest.mark.parametrize("parts", [("Training", "Testing"), ("training set", "held out")])
def test_parts_by_other_names_are_not_taken_for_classes(image_folder, tmp_path, parts):
    for part, name in zip(("train", "test"), parts, strict=True):
        shutil.copytree(image_folder / part, tmp_path / "data" / name)
    with pytest.raises(DataError, match="if those are the classes, expected are train/CLASS"):
        load_splits(str(tmp_path / "data"), 32)


def test_images_one_folder_further_down_are_their_classes(image_folder, tmp_path):
    """As Tiny ImageNet has them: train/CLASS/images/*."""
    for name in (path.name for path in (image_folder / "train").iterdir()):
        shutil.copytree(image_folder / "train" / name, tmp_path / "data" / "train" / name / "images")
    shutil.copytree(image_folder / "test", tmp_path / "data" / "test")
    found = load_splits(str(tmp_path / "data"), 32)
    assert found.record()["parts"] == load_splits(str(image_folder), 32).record()["parts"]


def test_a_class_without_images_is_named_and_links_are_followed(image_folder, tmp_path):
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    first = sorted((copy / "train").iterdir())[0]
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (copy / "train" / first.name / "back").symlink_to(copy / "train", target_is_directory=True)
    (copy / "train" / ".cache").mkdir()
    (copy / "train" / ".cache" / "thumb.png").write_bytes(b"x")
    assert load_splits(str(copy), 32).record()["parts"] == load_splits(str(image_folder), 32).record()["parts"]
    (copy / "train" / "nothing").mkdir()
    with pytest.raises(DataError, match="no training image of nothing; remove such folders"):
        load_splits(str(copy), 32)


def test_a_class_that_no_manifest_can_name_is_refused(image_folder, tmp_path):
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    os.rename(copy / "train" / sorted((copy / "train").iterdir())[0].name, os.fsencode(copy / "train") + b"/caf\xe9")
    with pytest.raises(DataError, match="is no class name"):
        load_splits(str(copy), 32)


def test_a_tar_that_does_not_fit_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "big.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("train/a/1.png")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(bytes(100_000)))
    monkeypatch.setattr(shutil, "disk_usage", lambda where: shutil._ntuple_diskusage(10**6, 10**6, 5000))
    with pytest.raises(DataError, match="100000 bytes unpacked, and 5000 are free"):
        load_splits(str(path), 32)
    assert not [each for each in (tmp_path / "cache").iterdir() if each.is_dir()]


def test_a_test_class_without_training_images_is_refused(image_folder, tmp_path):
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    first = sorted((copy / "test").iterdir())[0]
    first.rename(copy / "test" / "stranger")
    with pytest.raises(DataError, match="stranger"):
        load_splits(str(copy), 32)


def test_a_fetched_archive_with_another_md5_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cifar-10-binary.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(DataError, match="is not the published c32a1d4ab5d03f1284b67883e8d87530"):
        load_splits("cifar10", 32)


def test_fetching_checks_the_hash_and_leaves_nothing_half(tmp_path, monkeypatch):
    import hashlib
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    site = tmp_path / "site"
    site.mkdir()
    archive = _tar(site / "cifar-10-binary.tar.gz", _binary10())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar, "SITE", f"http://127.0.0.1:{http.server_port}/")
        with pytest.raises(DataError, match="is not the published"):
            load_splits("cifar10", 32)
        assert list((tmp_path / "cache").iterdir()) == []
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(cifar.ARCHIVES, "cifar10", cifar.Archive("cifar-10-binary.tar.gz", md5))
        assert len(load_splits("cifar10", 32).test) == N
        http.shutdown()
    assert len(load_splits("cifar10", 32).test) == N  # from the cache
    (tmp_path / "cache" / "cifar-10-binary.tar.gz").unlink()
    with pytest.raises(DataError, match="could not be fetched"):
        load_splits("cifar10", 32)
