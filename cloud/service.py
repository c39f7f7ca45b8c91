"""All that a server is besides its sockets: models, application and guard, from settings that any process can take."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from starlette.types import ASGIApp

from edge_sdk.backends import DEFAULT_EXECUTION, Execution
from edge_sdk.bundle import PartyBundle, open_party
from edge_sdk.errors import ConfigError

from .app import DEFAULT_MAX_BODY, Application
from .batcher import Batching
from .direct import Direct
from .guard import Guard, Limits
from .logs import LogFormat, configure
from .memory import release_freed
from .model_folder import ModelFolder, numbered
from .models import Model
from .repository import Repository, check_shares
from .server import DRAIN_SECONDS
from .tokens import TokenFile

__all__ = ["SPAN_SERVICE", "Service", "Settings"]

SPAN_SERVICE = "edgesdk-server"
"""A server's name in its spans."""


class Settings(NamedTuple):
    """What is served, and how.

    Attributes:
        folders: servers' folders of bundles; those of one name are versions, as they come.
        model_repository: in their place, a folder with ``NAME/VERSION/``.
        allow_load: whether clients may load and unload what the repository has.
        execution: how the models are run.
        batching: how requests are joined.
        limits: of requests.
        token_file: of the tokens to accept; None asks for none.
        max_body_bytes: longer bodies are refused.
        log_format: of the lines on standard error.
        log_requests: whether each request gets a line.
        drain_seconds: in which a server that stops finishes what it accepted.
        otlp_endpoint: of the collector that each process sends its spans to; None sends none.
    """

    folders: tuple[Path, ...] = ()
    model_repository: Path | None = None
    allow_load: bool = False
    execution: Execution = DEFAULT_EXECUTION
    batching: Batching = Batching()
    limits: Limits = Limits()
    token_file: Path | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY
    log_format: LogFormat = "text"
    log_requests: bool = False
    drain_seconds: float = DRAIN_SECONDS
    otlp_endpoint: str | None = None

    def bundles(self) -> list[tuple[PartyBundle, str]]:
        """What is served, verified, with versions.

        Raises:
            BundleError: a folder is damaged, or not a server's.
            ConfigError: there is no such repository, or it is empty and nothing may be loaded later.
        """
        if self.model_repository is not None:
            found = self.folder(self.model_repository).all_bundles()
            if not found and not self.allow_load:
                raise ConfigError(
                    f"{self.model_repository}: holds no model; expected NAME/VERSION/ with a server's folder of a "
                    "bundle each, or --allow-load to load some later"
                )
            return found
        return numbered(open_party(folder, "server") for folder in self.folders)

    def check(self) -> list[str]:
        """Whether a process could serve this, as far as files say; the names of the models.

        Raises:
            BundleError, ConfigError, CollusionError: as ``Service`` says.
        """
        if self.token_file is not None:
            TokenFile(self.token_file)
        bundles = self.bundles()
        check_shares(bundle.manifest.identity for bundle, _ in bundles)
        return [bundle.manifest.parts[0].name for bundle, _ in bundles]

    def folder(self, path: Path) -> ModelFolder:
        """The repository on disk."""
        return ModelFolder(path, self.open_model)

    def open_model(self, bundle: PartyBundle, version: str) -> Model:
        """A model, loaded and warm."""
        return Model.of_bundle(bundle, self.execution, self.batching, version)


class Service:
    """Models that are loaded and warm, the application that serves them, and its way round ASGI.

    Args:
        settings: of it.

    Raises:
        BundleError, BackendError, DeviceError, MissingExtra: a model cannot be served.
        CollusionError: two of the folders are parts of one bundle.
        ConfigError: there is no such repository or token file, or nothing to serve.
    """

    def __init__(self, settings: Settings) -> None:
        configure(settings.log_format, requests=settings.log_requests)
        path = settings.model_repository if settings.allow_load else None
        self.repository = Repository(settings.folder(path) if path else None)
        self.tokens = TokenFile(settings.token_file) if settings.token_file else None
        self._load(settings)
        release_freed()
        application = Application(self.repository, max_body_bytes=settings.max_body_bytes)
        guard = Guard(application, self.tokens, settings.limits) if self.tokens or any(settings.limits) else None
        if guard is not None:
            self.repository.refused = lambda: guard.refused
        self.app: ASGIApp = guard or application
        self.direct = Direct(application.infer, guard)

    def _load(self, settings: Settings) -> None:
        for bundle, version in settings.bundles():
            self.repository.add(settings.open_model(bundle, version))

    def close(self) -> None:
        """Free the models."""
        self.repository.close()
