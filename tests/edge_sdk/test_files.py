import errno

import pytest

from edge_sdk.files import aside, folder_aside, write_aside


@pytest.mark.parametrize("context", [aside, folder_aside])
def test_a_full_disk_names_what_could_not_be_written_and_leaves_nothing(tmp_path, context):
    """The system's own error names no file, and would end in a traceback."""
    with pytest.raises(OSError, match="No space left") as caught, context(tmp_path / "there"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_keeps_what_was_there(tmp_path):
    write_aside(tmp_path / "file", b"old")
    with pytest.raises(TypeError), aside(tmp_path / "file") as partial:
        partial.write_bytes(b"half" + None)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
