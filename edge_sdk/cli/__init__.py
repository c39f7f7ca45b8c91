"""The command ``edgesdk``: one module a verb, heavy imports inside the bodies, one handler for users' errors."""

from __future__ import annotations

import errno
import os
import sys
import warnings

import typer

from ..errors import EdgeSDKError
from . import audit, build, doctor, export, inspect, kserve, measure, profile, run, serve, train, triton

__all__ = ["app", "main"]

app = typer.Typer(
    name="edgesdk",
    help="Split inference with a defended encoder on the device and its tail in the cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback here is our own fault, and wanted whole
    rich_markup_mode=None,  # plain help: rich takes longer to import than the help to print
)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


# In the order of the work.
app.command("train")(train.train)
app.command("audit")(audit.audit)
app.command("export")(export.export)
app.command("inspect")(inspect.inspect)
app.command("build")(build.build)
app.command("serve")(serve.serve)
app.command("triton")(triton.triton)
app.command("kserve")(kserve.kserve)
app.command("run")(run.run)
app.command("profile")(profile.profile)
app.command("measure")(measure.measure)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line; a user's error is one line on standard error and exit status 1."""
    warnings.showwarning = _show_warning
    for name in ("stdout", "stderr"):  # None where whoever started this has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (as long as the process)
    try:
        app(prog_name="edgesdk")
    except EdgeSDKError as error:
        sys.exit(f"edgesdk: {_one_line(str(error))}")
    except OSError as error:
        if error.filename is None:
            if error.errno != errno.ENOSPC:
                raise  # no file that the user named
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to write would fail again at the very end
            sys.exit(f"edgesdk: standard output: {error.strerror}")
        sys.exit(f"edgesdk: {_one_line(str(error.filename))}: {error.strerror}")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    """One line, without the place in the code, which says nothing to a user."""
    typer.echo(f"edgesdk: warning: {_one_line(str(message))}", err=True)


def _one_line(text: str) -> str:
    """Libraries' and servers' messages have lines and control codes of their own."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
