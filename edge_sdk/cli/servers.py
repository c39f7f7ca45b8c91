"""Where a bundle's servers are, as ``run`` and ``measure`` take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..credentials import Credentials

Server = Annotated[list[str] | None, typer.Option(help="http://HOST:PORT; once per server of the bundle, in order.")]
ServersFile = Annotated[Path | None, typer.Option(help="Instead of --server: a file with one address a line.")]
TokenFile = Annotated[
    list[Path] | None,
    typer.Option(help="File with a server's bearer token; once per server, in order: no server may see another's."),
]
CaFile = Annotated[Path | None, typer.Option(help="PEM: the authority of the servers' certificates, if a private one.")]
Certificate = Annotated[Path | None, typer.Option(help="PEM: this device's certificate, for servers that ask for one.")]
Key = Annotated[Path | None, typer.Option(help="PEM: the key of --certificate, where that file does not hold it.")]
Timeout = Annotated[
    float, typer.Option(min=0.001, help="Seconds for one call of a server, once its name is looked up.")
]
Missing = Annotated[
    Literal["fail", "degrade"], typer.Option(help="Where a server gives no right answer: end, or do without it.")
]
Colocated = Annotated[
    bool, typer.Option("--allow-colocated", help="Let one server get several shares: a demo WITHOUT PRIVACY.")
]


def credentials(
    count: int, token_file: list[Path] | None, ca_file: Path | None, certificate: Path | None, key: Path | None
) -> list[Credentials]:
    """For each server, in their order.

    Raises:
        ConfigError: the number of tokens is neither none nor that of the servers.
    """
    from ..credentials import Credentials

    tokens: list[Path | None] = [*token_file] if token_file else [None] * count
    if len(tokens) != count:
        raise ConfigError(f"{count} server(s) and {len(tokens)} --token-file; give one for each server, in order")
    return [Credentials(token, ca_file, certificate, key) for token in tokens]


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
