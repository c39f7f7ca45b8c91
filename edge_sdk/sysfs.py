"""Small files of the kernel's, which may be missing, empty or refuse to be read."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_number", "read_text"]


def read_number(path: Path) -> int | None:
    """The file's whole number; None where it has none, or cannot be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def read_text(path: Path) -> str:
    """The file's text without space around it; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
