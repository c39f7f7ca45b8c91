"""A part that another party runs: who is there is asked first, then shares are sent, and the answers are checked."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

from .bundle import BUNDLE_KEY, PARTY_KEY, Part
from .client import Client, RemoteTiming
from .credentials import NO_CREDENTIALS, Credentials
from .errors import RemoteError, TensorError
from .tensors import Array, check_feeds
from .transport import BeforeConnect, ConnectionEnded

__all__ = ["RemotePart"]

LONGEST_REST_S = 30.0
CONNECTIONS_A_CALL = 3


class RemotePart:
    """One remote part of a bundle at its server's address.

    Args:
        part: as the edge's manifest describes it.
        url: of its server.
        bundle_id: that the server must hold.
        timeout_s: for one call, the question who is there included.
        credentials: for its server.
        before_connect: called with each address and port before connecting.

    Raises:
        RemoteError: the URL is not one of HTTP.
        ConfigError: the credentials cannot be used with it.
    """

    def __init__(
        self,
        part: Part,
        url: str,
        bundle_id: str,
        *,
        timeout_s: float,
        credentials: Credentials = NO_CREDENTIALS,
        before_connect: BeforeConnect | None = None,
    ) -> None:
        self.part = part
        self.identified, self._version = False, ""
        self._error: RemoteError | None = None
        self._failures, self._rests_until = 0, 0.0
        self._client = Client(url, timeout_s=timeout_s, credentials=credentials, before_connect=before_connect)
        self._bundle_id = bundle_id

    @property
    def url(self) -> str:
        return self._client.url

    def ask(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], RemoteTiming]:
        """Run the part on its server; on every connection, and after any failure, it is asked first who it is.

        Args:
            feeds: arrays that fit the part's inputs.

        Raises:
            RemoteError: the server is not the one this bundle belongs to, could not be reached, or failed.
        """
        end = time.monotonic() + self._client.timeout_s
        try:
            answer = self._ask(feeds, end)
        except RemoteError as error:
            self.failed(error)
            raise
        self._failures, self._error = 0, None
        return answer

    def failed(self, error: RemoteError) -> None:
        """Note that the server could not be asked: it rests, and says who it is before it gets anything more.

        On a new connection: over the old one it would not be seen whether its address has become another server's.
        """
        self.identified = False
        self._client.close()
        self._failures += 1
        rest = min(2.0 ** min(self._failures - 1, 10), LONGEST_REST_S)
        self._error, self._rests_until = error, time.monotonic() + rest

    @property
    def resting(self) -> RemoteError | None:
        """The last failure, for 1, 2, 4, … 30 s after it: a caller that can do without this server need not wait."""
        return self._error if time.monotonic() < self._rests_until else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, feeds: Mapping[str, Array], end: float) -> tuple[dict[str, Array], RemoteTiming]:
        for _ in range(CONNECTIONS_A_CALL):
            if not self.identified:
                self._identify(end)
            try:
                return self._infer(feeds, end)
            except ConnectionEnded:
                self.identified = False
        raise RemoteError(
            f"{self.url}: ends the connection on which it says who it is, and another might answer on the next; it "
            "must keep connections open from one request to the next"
        )

    def _identify(self, end: float) -> None:
        """Nothing is sent to a server before it says that it holds this bundle's part."""
        others = []
        for version, found in self._client.identities(self.part.name, end - time.monotonic()):
            if (identity := found.get(BUNDLE_KEY)) == self._bundle_id:
                self._version = version
                break
            others.append(str(identity)[:12])
        else:
            raise RemoteError(
                f"{self.url}: serves bundle {', '.join(others) or 'none'}, this edge belongs to "
                f"{self._bundle_id[:12]}; deploy both from one export"
            )
        if (party := found.get(PARTY_KEY)) != self.part.placement:
            raise RemoteError(f"{self.url}: is {str(party)[:20]} of this bundle; {self.part.placement} is needed there")
        self.identified = True

    def _infer(self, feeds: Mapping[str, Array], end: float) -> tuple[dict[str, Array], RemoteTiming]:
        parameters: dict[str, str | int | float | bool] = {BUNDLE_KEY: self._bundle_id}
        outputs, timing = self._client.infer(
            self.part.name,
            feeds,
            uuid.uuid4().hex,
            parameters,
            self._version,
            seconds=end - time.monotonic(),
            same_connection=True,
        )
        try:
            check_feeds(self.part.outputs, outputs)
            for spec in self.part.outputs:
                spec.check_finite(outputs[spec.name])
                if len(outputs[spec.name]) != len(next(iter(feeds.values()))):
                    raise TensorError(f"tensor {spec.name!r}: batch of {len(outputs[spec.name])} answered")
        except TensorError as error:
            raise RemoteError(f"{self.url}: part {self.part.name!r} answered wrongly: {error}") from error
        return outputs, timing
