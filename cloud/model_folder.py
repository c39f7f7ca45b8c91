"""Servers' folders of bundles as a repository on disk: ``FOLDER/NAME/VERSION/``, as Triton lays its own out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from edge_sdk.bundle import PartyBundle, open_party
from edge_sdk.errors import BundleError, ConfigError, UnknownModelError, reason

from .models import Model

__all__ = ["ModelFolder", "numbered"]


class ModelFolder:
    """Every version of every model there; looked at anew each time.

    Args:
        path: of the repository.
        open_model: makes a model of a server's folder, served as a version.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, path: Path, open_model: Callable[[PartyBundle, str], Model]) -> None:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder; expected NAME/VERSION/ with a server's folder of a bundle each")
        self._path = path
        self.open_model = open_model

    def index(self) -> list[tuple[str, str]]:
        """Names and versions: folders of folders that are named by a positive integer, the highest last.

        Raises:
            ConfigError: the repository cannot be read.
        """
        try:
            names = sorted(each.name for each in self._path.iterdir() if each.is_dir())
            found = [(name, each.name) for name in names for each in (self._path / name).iterdir() if each.is_dir()]
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read ({reason(error)})") from error
        versions = [(name, each) for name, each in found if each.isdecimal() and str(int(each)) == each and each != "0"]
        return sorted(versions, key=lambda each: (each[0], int(each[1])))

    def all_bundles(self) -> list[tuple[PartyBundle, str]]:
        """Every version of every model, verified, with its number.

        Raises:
            BundleError: as ``bundles`` has it.
        """
        return [(self._open(name, version), version) for name, version in self.index()]

    def bundles(self, name: str) -> dict[str, PartyBundle]:
        """The versions of a model, verified.

        Raises:
            UnknownModelError: it has none.
            ConfigError: the repository cannot be read.
            BundleError: one is damaged, not a server's, or its part has another name.
        """
        known = self.index()  # a name is only ever compared with what is there
        found = {version: self._open(name, version) for each, version in known if each == name}
        if not found:
            names = ", ".join(dict.fromkeys(each for each, _ in known))
            raise UnknownModelError(f"the repository has no model {name[:100]!r}; it has {names}")
        return found

    def _open(self, name: str, version: str) -> PartyBundle:
        bundle = open_party(self._path / name / version, "server")
        part = bundle.manifest.parts[0].name
        if part != name:
            raise BundleError(
                f"{bundle.path}: holds part {part!r}, and devices ask for it by that name; move it to "
                f"{self._path / part}"
            )
        return bundle


def numbered(bundles: Iterable[PartyBundle]) -> list[tuple[PartyBundle, str]]:
    """Servers' folders that are named one by one, with versions: 1, 2, … for those of one name, as they come."""
    seen: Counter[str] = Counter()
    found = []
    for bundle in bundles:
        name = bundle.manifest.parts[0].name
        seen[name] += 1
        found.append((bundle, str(seen[name])))
    return found
