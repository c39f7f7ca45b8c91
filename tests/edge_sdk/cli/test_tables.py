from edge_sdk.cli.tables import print_table


def test_brackets_are_printed_as_they_are(capsys):
    print_table("images of [/y]", ["at", "[b]ms"], [["http://[fe80::1]:8000", "1"]])
    printed = capsys.readouterr().out
    for text in ("images of [/y]", "[b]ms", "http://[fe80::1]:8000"):
        assert text in printed
