"""A table of README.md that a script writes: it stands between a comment that names the script and a blank line."""

from __future__ import annotations

import re
from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as a Markdown table, without a line's end."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def replaced(text: str, marker: str, table: str) -> str:
    """``text`` with the table after ``<!-- marker -->`` replaced.

    Raises:
        ValueError: there is not one such place.
    """
    place = re.compile(rf"(?<=<!-- {re.escape(marker)} -->\n).*?(?=\n\n)", re.DOTALL)
    if len(place.findall(text)) != 1:
        raise ValueError(f"not one table after <!-- {marker} -->")
    return place.sub(lambda _: table, text)
