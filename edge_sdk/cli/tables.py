"""Tables on standard output, as wide as they need to be where that is no terminal."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # whose brackets are no markup: an address or a path may have some

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def check_json_target(path: str | None) -> None:
    """Refuse a JSON file's path before the work that would fill it.

    Raises:
        DataError: its folder does not exist.
    """
    from pathlib import Path

    from ..errors import DataError

    if path is None or path == "-":
        return
    target = Path(path)
    if not target.name or target.is_dir() or not target.parent.is_dir():
        raise DataError(f"{path or repr(path)}: cannot be written; expected a file in a folder that exists")


def write_json(path: str, content: object) -> None:
    """JSON to a file, written aside, then renamed; ``-`` is standard output.

    Raises:
        DataError: the file cannot be written.
    """
    import sys
    from pathlib import Path

    import msgspec

    from ..errors import DataError
    from ..files import write_aside

    data = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    if path == "-":
        sys.stdout.write(data.decode())
        return
    try:
        write_aside(Path(path), data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
