import re

import pytest

from edge_sdk.cli.tables import print_table

HEADER = ["layer", "output", "MFLOP", "parameters", "interval, ms"]
ROW = ["node_Conv_274", "64x16x16", "18.8744", "36,928", "0.158 to 0.192"]


@pytest.mark.parametrize(("width", "as_table"), [(200, True), (63, True), (53, True), (52, False), (14, False)])
def test_nothing_is_cut_off_in_a_narrow_terminal(monkeypatch, capsys, width, as_table):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    print_table("a title of several words", HEADER, [ROW])
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= width
    assert ("│" in printed) == as_table
    shown = {word.rstrip(";:") for word in re.split(r"[\s│┃]+", printed)}
    assert {word for cell in ROW + HEADER[1:] for word in cell.split()} <= shown


def test_a_table_that_goes_to_a_file_is_as_wide_as_its_words(capsys):
    print_table("", ["report", "p50, ms"], [["x" * 300, "1.013"]])
    assert "x" * 300 in capsys.readouterr().out


def test_brackets_are_printed_as_they_are(capsys):
    print_table("images of [/y]", ["at", "[b]ms"], [["http://[fe80::1]:8000", "1"]])
    printed = capsys.readouterr().out
    for text in ("images of [/y]", "[b]ms", "http://[fe80::1]:8000"):
        assert text in printed
