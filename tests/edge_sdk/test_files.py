import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge_sdk.files import aside, folder_aside, write_aside


@pytest.mark.parametrize("context", [aside, folder_aside])
def test_a_full_disk_names_what_could_not_be_written_and_leaves_nothing(tmp_path, context):
    """The system's own error names no file, and would end in a traceback."""
    with pytest.raises(OSError, match="No space left") as caught, context(tmp_path / "there"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("context", "name"), [(aside, "no/x"), (aside, "x" * 250), (folder_aside, "x" * 250)])
def test_an_error_names_what_was_to_be_written_and_not_its_stand_in(tmp_path, context, name):
    with pytest.raises(OSError, match=f"{name}'$") as caught, context(tmp_path / name) as other:
        other.write_bytes(b"")
    assert caught.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_keeps_what_was_there(tmp_path):
    write_aside(tmp_path / "file", b"old")
    with pytest.raises(TypeError), aside(tmp_path / "file") as partial:
        partial.write_bytes(b"half" + None)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pipe_stays_a_pipe_and_a_link_a_link(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    got: list[bytes] = []
    read = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    read.start()
    write_aside(pipe, b"whole")
    read.join(10)
    assert got == [b"whole"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_aside(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    contents = [bytes([i]) * 1000 for i in range(2)]

    def write(content):
        for _ in range(200):
            write_aside(tmp_path / "file", content)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, contents))
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
