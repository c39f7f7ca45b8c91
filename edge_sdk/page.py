"""HTML pages that need nothing but themselves: a Jinja2 template, one style, matplotlib's figures as SVG inside."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import needs_extra
from .files import write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_installed", "new_figure", "svg", "write_page"]

STYLE = Path(__file__).with_name("page.css")
WIDTH, HEIGHT = 6.4, 3.2  # inches; the page scales them


def check_installed() -> None:
    """Before the work that a page would show.

    Raises:
        MissingExtra: Jinja2 or matplotlib is not installed.
    """
    with needs_extra("report", "an HTML page"):
        import matplotlib  # noqa: F401


def write_page(template: Path, path: Path, **values: Any) -> None:
    """Fill a template, with ``style`` besides these values, and write it aside.

    Raises:
        MissingExtra: Jinja2 is not installed.
        OSError: the page cannot be written.
    """
    with needs_extra("report", "an HTML page"):
        import jinja2
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(template.read_text()).render(style=STYLE.read_text(), **values)
    write_aside(path, page.encode())


def new_figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure with one set of axes.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    with needs_extra("report", "a figure"):
        from matplotlib.figure import Figure

    figure = Figure((WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "edgesdk", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
