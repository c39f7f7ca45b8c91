"""Tables on standard output, as wide as they need to be where that is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right; row by row where a terminal is too narrow for columns.

    No word or number is broken: what is left of it would be read as another.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # whose brackets are no markup: an address or a path may have some

    columns = [*zip(header, *rows, strict=True)]
    widths = [max(map(cell_len, column)) for column in columns]
    least = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(200, sum(least) + 3 * len(least) + 1))
    for padding in (1, 0):
        room = console.width - len(columns) * (1 + 2 * padding) - 1
        if sum(least) <= room:
            table = Table(title=Text(title, style="table.title"), title_justify="left", padding=(0, padding))
            for index, width in enumerate(_narrowed(widths, least, room)):
                table.add_column(Text(header[index]), justify="left" if index == 0 else "right", width=width)
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
            return
    _print_rows(console, title, header, rows)


def _narrowed(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths that fit into the room, which the least ones do: taken from what has most to spare."""
    found = list(widths)
    while sum(found) > room:
        found[max(range(len(found)), key=lambda i: found[i] - least[i])] -= 1
    return found


def _print_rows(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(title, style="table.title"))
    for row in rows:
        console.print(Text(row[0]))
        named = zip(header[1:], row[1:], strict=True)
        told = "; ".join(f"{name}: {cell}" if name else cell for name, cell in named if cell)
        console.print(Padding(Text(told), (0, 0, 0, 2)))


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
