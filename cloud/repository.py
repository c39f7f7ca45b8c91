"""The models that a server has, by name; both protocols look them up here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge_sdk.errors import UnknownModelError

from .models import Model

__all__ = ["Repository"]


class Repository:
    """Models by name.

    Args:
        models: loaded and warm, each of another name.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def find(self, name: str, version: str = "") -> Model:
        """The model of that name, and version where one is named.

        Raises:
            UnknownModelError: there is none.
        """
        model = self._models.get(name)
        if model is None:
            raise UnknownModelError(f"no model {name[:100]!r} here; it serves {', '.join(sorted(self._models))}")
        if version not in ("", model.version):
            raise UnknownModelError(f"model {name!r} has no version {version[:40]!r}, only {model.version}")
        return model

    def close(self) -> None:
        """Free all models."""
        for model in self:
            model.close()
