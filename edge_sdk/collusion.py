"""Keeps the shares of one image from meeting on one server by a mistaken address.

Servers that do not collude are what share-splitting defenses promise privacy against; the same server under two names
is the collusion that a configuration can cause.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import warnings
from collections.abc import Set
from urllib.parse import urlsplit

from .errors import CollusionError, RemoteError

__all__ = ["ColocationWarning", "Endpoint", "Origins", "resolve"]

Endpoint = tuple[str, int]
"""A machine, one text for each however it is named, and a port."""

_PORTS = {"http": 80, "https": 443}


class ColocationWarning(UserWarning):
    """Servers that must not collude are at one address."""


class Origins:
    """The addresses of a bundle's servers, none of which may be another's; for several threads.

    Args:
        allow_colocated: warn, in place of refusing, where two servers are one: for demonstrations.
    """

    def __init__(self, *, allow_colocated: bool = False) -> None:
        self._allow = allow_colocated
        self._known: dict[str, tuple[str, set[Endpoint]]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def admit(self, placement: str, url: str, endpoints: Set[Endpoint]) -> None:
        """Compare what a server's name was resolved to with the addresses of all others.

        Args:
            placement: the party; admitted again, it replaces its former addresses.
            url: of its server, for messages.
            endpoints: as ``resolve`` gives them.

        Raises:
            CollusionError: another party's server is at the same address and port.
        """
        with self._lock:
            self._compare(placement, url, endpoints)
            self._known[placement] = (url, set(endpoints))

    def meet(self, placement: str, url: str, address: str, port: int) -> None:
        """Compare the address that is about to be connected to: a name may have come to mean another since ``admit``.

        Args:
            placement: the party whose server it is taken for.
            url: of its server, for messages.
            address: IPv4 or IPv6.
            port: of TCP.

        Raises:
            CollusionError: another party's server is at the same address and port.
        """
        endpoint = (_canonical(address), port)
        with self._lock:
            self._compare(placement, url, {endpoint})
            self._known.setdefault(placement, (url, set()))[1].add(endpoint)

    def _compare(self, placement: str, url: str, endpoints: Set[Endpoint]) -> None:
        for other, (other_url, theirs) in self._known.items():
            if other == placement:
                continue
            if endpoints & theirs:
                if not self._allow:
                    raise CollusionError(
                        f"{placement} ({url}) and {other} ({other_url}) are one server: two shares of an image would "
                        "meet there. Give each party a server of its own"
                    )
                self._warn(placement, other, f"{url} gets the shares of both {other} and {placement}: PRIVACY IS VOID")
            elif shared := {address for address, _ in endpoints} & {address for address, _ in theirs}:
                self._warn(
                    placement,
                    other,
                    f"{other} ({other_url}) and {placement} ({url}) are both at {min(shared)}: whoever runs that "
                    "machine can join their shares",
                )

    def _warn(self, placement: str, other: str, message: str) -> None:
        pair = (min(placement, other), max(placement, other))
        if pair not in self._warned:
            self._warned.add(pair)
            warnings.warn(message, ColocationWarning, stacklevel=2)


def resolve(url: str) -> set[Endpoint]:
    """Every address and port that a connection to ``url``, ``http://HOST:PORT`` or https, may use.

    Raises:
        RemoteError: the name has no address.
    """
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RemoteError(f"{url}: the name has no address ({error})") from error
    return {(_canonical(str(address[0])), port) for *_, address in found}


def _canonical(text: str) -> str:
    """One text for one machine: mapped IPv4 as IPv4, and every way to say this machine alike."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    here = address.is_loopback or address.is_unspecified or _is_own(str(address), address.version)
    return "this machine" if here else str(address)


def _is_own(address: str, version: int) -> bool:
    """Whether this machine has the address: to reach it, the kernel would take it as the sender's too."""
    try:
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # of UDP: nothing is sent
            return bool(probe.getsockname()[0] == address)
    except OSError:  # no way there, or no such family here
        return False
