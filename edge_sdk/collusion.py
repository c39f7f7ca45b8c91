"""Keeps the shares of one image from meeting on one server by a mistaken address.

Servers that do not collude are what share-splitting defenses promise privacy against; the same server under two names
is the collusion that a configuration can cause.
"""

from __future__ import annotations

import ipaddress
import socket
import warnings
from urllib.parse import urlsplit

from .errors import CollusionError, RemoteError

__all__ = ["ColocationWarning", "Origins"]

Endpoint = tuple[str, int]
_PORTS = {"http": 80, "https": 443}


class ColocationWarning(UserWarning):
    """Servers that must not collude are at one address."""


class Origins:
    """The resolved addresses of a bundle's servers, none of which may be another's.

    Args:
        allow_colocated: warn, in place of refusing, where two servers are one: for demonstrations.
    """

    def __init__(self, *, allow_colocated: bool = False) -> None:
        self._allow = allow_colocated
        self._known: dict[str, tuple[str, set[Endpoint]]] = {}
        self._warned: set[tuple[str, str]] = set()

    def admit(self, placement: str, url: str) -> None:
        """Resolve a server's address, and compare it with all that were admitted before.

        Args:
            placement: the party; admitted again, it replaces its former addresses.
            url: ``http://HOST:PORT`` or https.

        Raises:
            CollusionError: another party's server is at the same address and port.
            RemoteError: the name has no address.
        """
        endpoints = _resolve(url)
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
        self._known[placement] = (url, endpoints)

    def _warn(self, placement: str, other: str, message: str) -> None:
        pair = (min(placement, other), max(placement, other))
        if pair not in self._warned:
            self._warned.add(pair)
            warnings.warn(message, ColocationWarning, stacklevel=2)


def _resolve(url: str) -> set[Endpoint]:
    """Every address and port that a connection to ``url`` may use."""
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
    return "this machine" if address.is_loopback or address.is_unspecified else str(address)
