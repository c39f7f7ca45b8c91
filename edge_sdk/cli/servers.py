"""Where a bundle's servers are, as ``run`` and ``measure`` take it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import ConfigError

Server = Annotated[list[str] | None, typer.Option(help="http://HOST:PORT; once per server of the bundle, in order.")]
ServersFile = Annotated[Path | None, typer.Option(help="Instead of --server: a file with one address a line.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds for one call of a server.")]
Missing = Annotated[
    Literal["fail", "degrade"], typer.Option(help="Where a server gives no right answer: end, or do without it.")
]
Colocated = Annotated[
    bool, typer.Option("--allow-colocated", help="Let one server get several shares: a demo WITHOUT PRIVACY.")
]


def addresses(server: list[str] | None, servers_file: Path | None) -> list[str]:
    """The addresses, in the order of the bundle's servers; empty lines and those after ``#`` do not count.

    Raises:
        typer.BadParameter: neither or both were given.
        ConfigError: the file holds none.
    """
    if bool(server) == (servers_file is not None):
        raise typer.BadParameter("give the servers' addresses by --server, once for each, or by --servers-file")
    if servers_file is None:
        return list(server or ())
    try:
        lines = servers_file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{servers_file}: not a text file of addresses") from error
    found = [text for line in lines if (text := line.partition("#")[0].strip())]
    if not found:
        raise ConfigError(f"{servers_file}: holds no address; expected one http://HOST:PORT a line")
    return found
