"""The models that a server has, by name and version: every protocol looks them up, loads and unloads them here.

Source: the protocol's model repository extension as Triton states it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from edge_sdk.bundle import BUNDLE_KEY, PARTY_KEY
from edge_sdk.errors import CollusionError, ForbiddenError, UnknownModelError

from .memory import release_freed
from .model_folder import ModelFolder
from .models import Model
from .statistics import AllStatistics

__all__ = ["IndexEntry", "Repository", "check_shares"]


_log = logging.getLogger("edgesdk.cloud")


class IndexEntry(NamedTuple):
    """A version of a model in the repository's index; ``state`` is READY or UNAVAILABLE, for ``reason``."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """Models by name and version; all methods belong to one event loop.

    Args:
        folder: that versions may be loaded from and unloaded; None allows neither.
    """

    def __init__(self, folder: ModelFolder | None = None) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        self._folder = folder
        self._failures: dict[tuple[str, str], str] = {}
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()
        self.on_change: Callable[[], None] = lambda: None
        """Called whenever a model has come or gone."""
        self.refused: Callable[[], dict[int, int]] = dict
        """Gives the requests that this process has not let in, by status."""
        self.siblings: Callable[[], Iterable[AllStatistics]] = tuple
        """Gives the statistics of this server's other processes."""

    def add(self, model: Model) -> None:
        """Serve a model, of another name or version than those here.

        Raises:
            CollusionError: another part of its bundle is served here.
        """
        check_shares(each.properties for each in (*self, model))
        self._put(model.name, {**self._models.get(model.name, {}), model.version: model})

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for model in versions.values())

    def find(self, name: str, version: str = "") -> Model:
        """The model of that name and version; the highest version where none is named.

        Raises:
            UnknownModelError: there is none.
        """
        versions = self._models.get(name)
        if not versions:
            raise UnknownModelError(
                f"no model {name[:100]!r} here; it serves {', '.join(sorted(self._models)) or 'none'}"
            )
        found = versions.get(version or max(versions, key=int))
        if found is None:
            raise UnknownModelError(f"model {name!r} has no version {version[:40]!r}, only {', '.join(versions)}")
        return found

    def versions(self, name: str) -> list[str]:
        """Those of a model that are loaded, the highest last."""
        return sorted(self._models.get(name, {}), key=int)

    def statistics(self) -> AllStatistics:
        """Of this process and the other ones of this server."""
        found = self.own_statistics()
        for others in self.siblings():
            found = found.joined(others)
        return found

    def own_statistics(self) -> AllStatistics:
        """Of this process."""
        return AllStatistics({(model.name, model.version): model.statistics for model in self}, self.refused())

    def statistics_json(self, model: Model | None = None) -> list[dict[str, Any]]:
        """``model_stats`` of the statistics extension: of one model, or of all."""
        found = self.statistics().models
        asked = found if model is None else [(model.name, model.version)]
        return [found[key].as_json(*key) for key in asked]

    def index(self, *, ready: bool = False) -> list[IndexEntry]:
        """What is loaded, and what could be.

        Args:
            ready: only what is loaded.
        """
        loaded = [IndexEntry(model.name, model.version, "READY", "") for model in self]
        if ready or self._folder is None:
            return loaded
        here = {(entry.name, entry.version) for entry in loaded}
        others = [each for each in self._folder.index() if each not in here]
        return [*loaded, *(IndexEntry(*each, "UNAVAILABLE", self._failures.get(each, "unloaded")) for each in others)]

    async def load(self, name: str, parameters: Collection[str] = ()) -> None:
        """Make the loaded versions of a model those of its folder: what is new or changed there is opened.

        Nothing changes unless all of them can be served. Requests go on meanwhile, and those accepted by a version
        that leaves are finished.

        Args:
            name: of the model.
            parameters: the extension's, by which a client would bring a model of its own; none are taken.

        Raises:
            ForbiddenError: nothing is loaded on request here, or not with parameters.
            UnknownModelError: the folder has no such model.
            CollusionError: a version is a part of a bundle of which another part is served.
            BundleError, BackendError, DeviceError: a version cannot be served.
        """
        folder = self._controlled()
        if parameters:
            raise ForbiddenError("a model is loaded as it stands in the repository; no parameters are taken")
        await self._to_the_end(self._load(folder, name))

    async def unload(self, name: str) -> None:
        """Serve no version of a model any more; the requests that it accepted are finished.

        Raises:
            ForbiddenError: nothing is unloaded on request here.
            UnknownModelError: it is not loaded.
        """
        self._controlled()
        await self._to_the_end(self._unload(name))

    async def _to_the_end(self, change: Coroutine[Any, Any, None]) -> None:
        """Whoever asked for it may leave: half a change would lose models that are neither served nor closed."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _load(self, folder: ModelFolder, name: str) -> None:
        async with self._changing:
            opened: dict[str, Model] = {}
            try:
                bundles = await asyncio.to_thread(folder.bundles, name)
                others = [model.properties for model in self if model.name != name]
                check_shares([*others, *(bundle.manifest.identity for bundle in bundles.values())])
                here = self._models.get(name, {})
                kept = {
                    version: here[version]
                    for version, bundle in bundles.items()
                    if version in here and here[version].properties.items() >= bundle.manifest.identity.items()
                }
                for version in bundles.keys() - kept.keys():
                    opened[version] = await asyncio.to_thread(folder.open_model, bundles[version], version)
            except Exception as error:
                for key in folder.index():
                    if key[0] == name:
                        self._failures[key] = str(error)
                for model in opened.values():
                    await asyncio.to_thread(model.close)
                raise
            now = {version: kept.get(version) or opened[version] for version in bundles}
            gone = [model for version, model in here.items() if now.get(version) is not model]
            self._put(name, now)
            _log.info("loaded", extra={"model": name, "versions": list(now)})
            await _retire(gone)

    async def _unload(self, name: str) -> None:
        async with self._changing:
            self.find(name)
            gone = list(self._models[name].values())
            self._put(name, {})
            _log.info("unloaded", extra={"model": name})
            await _retire(gone)

    def close(self) -> None:
        """Free all models."""
        for model in self:
            model.close()

    def _controlled(self) -> ModelFolder:
        if self._folder is None:
            raise ForbiddenError("this server neither loads nor unloads models on request")
        return self._folder

    def _put(self, name: str, versions: Mapping[str, Model]) -> None:
        self._models.pop(name, None)
        if versions:
            self._models[name] = dict(versions)
        for key in [key for key in self._failures if key[0] == name]:
            del self._failures[key]
        self.on_change()


async def _retire(models: Iterable[Model]) -> None:
    for model in models:
        await model.drain()
        await asyncio.to_thread(model.close)
    await asyncio.to_thread(release_freed)


def check_shares(identities: Iterable[Mapping[str, str]]) -> None:
    """Whoever serves two parts of one bundle sees two shares of each image.

    Args:
        identities: of what one server is to serve, as a bundle's manifest has them.

    Raises:
        CollusionError: two are different parts of one bundle.
    """
    parties: dict[str, str] = {}
    for identity in identities:
        bundle, party = identity.get(BUNDLE_KEY), identity.get(PARTY_KEY, "")
        if bundle is not None and parties.setdefault(bundle, party) != party:
            raise CollusionError(
                f"{parties[bundle]} and {party} of bundle {bundle[:12]} on one server: it could join what they are "
                "sent; serve each by a server of its own, that another operator runs"
            )
