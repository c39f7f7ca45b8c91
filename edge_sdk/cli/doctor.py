"""``edgesdk doctor``: what works on this machine."""

from __future__ import annotations

import typer


def doctor(as_json: bool = typer.Option(False, "--json", help="The checks as JSON.")) -> None:
    """Look at Python, JetPack, the GPU and its libraries, and say what to install or set. Changes nothing."""
    from ..doctor import examine
    from .tables import print_table, write_json

    checks = examine()
    if as_json:
        write_json("-", checks)
        return
    print_table("", ["", "state", "found"], [[each.name, each.state, each.found] for each in checks])
    for each in checks:
        if each.advice:
            typer.echo(f"{each.name}: {each.advice}")
