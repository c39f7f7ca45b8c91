"""Where the parties of a bundle lie: a folder each, side by side; and which one a user may have meant."""

from __future__ import annotations

from pathlib import Path

from .errors import BundleError

__all__ = ["EDGE", "MANIFEST_FILE", "did_you_mean", "parties", "why_no_party"]

EDGE = "edge"
MANIFEST_FILE = "manifest.json"


def parties(path: Path) -> list[Path]:
    """The parties' folders of a bundle, the edge first; a party's own folder stands for itself alone.

    Raises:
        BundleError: none there.
    """
    if (path / MANIFEST_FILE).is_file():
        return [path]
    found = _folders(path)
    if not found:
        raise BundleError(f"{path}: no bundle here; expected a folder with {EDGE}/ and server0/, as export writes it")
    return found


def why_no_party(path: Path, expected: str | None) -> str:
    """Why a path without a manifest is not what was asked for, and what may have been meant.

    Args:
        path: as it was given.
        expected: ``edge`` or ``server``; None for either.
    """
    wanted = "BUNDLE/server0" if expected == "server" else f"BUNDLE/{EDGE}"
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        return f"{what}; expected the folder of a party of a bundle, such as {wanted}"
    if meant := did_you_mean(path, expected):
        return f"a whole bundle, and the folder of one party of it is needed here{meant}"
    return f"no {MANIFEST_FILE} in this folder; expected the folder of a party of a bundle, such as {wanted}"


def did_you_mean(bundle: Path, expected: str | None) -> str:
    """The end of a message: the folders in a bundle's that were expected; empty where there is none."""
    found = [each for each in _folders(bundle) if expected is None or (each.name == EDGE) == (expected == EDGE)]
    return f"; did you mean {' or '.join(map(str, found))}?" if found else ""


def _folders(bundle: Path) -> list[Path]:
    found = [each.parent for each in bundle.glob(f"*/{MANIFEST_FILE}")] if bundle.is_dir() else []
    return sorted(found, key=lambda each: (each.name != EDGE, len(each.name), each.name))
