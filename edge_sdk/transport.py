"""The HTTP connections of one client: when one may be opened, to which addresses, and until when anything may take.

urllib3 opens a new connection in silence where the old one has ended. Whoever answers there need not be who answered
before, so what is meant for one server alone is sent over the connection on which that server said who it is.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context

from .deadline import Deadline, timed
from .errors import RemoteError

__all__ = ["BeforeConnect", "ConnectionEnded", "Transport"]

BeforeConnect = Callable[[str, int], None]
"""Called with an address and a port before anything is sent there; what it raises ends the call."""


class ConnectionEnded(RemoteError):
    """A request was for the connection of the call before, and that has ended; nothing of it was sent anew."""


class Transport(HTTPAdapter):
    """What a client sends its requests through.

    Args:
        deadline: that connecting, TLS, sending and receiving keep to; a look-up of a name is not covered.
        before_connect: is told each address first.

    Attributes:
        may_connect: whether a request may open a connection.
    """

    def __init__(self, deadline: Deadline, before_connect: BeforeConnect | None = None) -> None:
        self.may_connect = True
        self._deadline, self._before_connect = deadline, before_connect
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = create_urllib3_context()
        context.sslsocket_class = timed(ssl.SSLSocket, self._deadline)
        super().init_poolmanager(*args, ssl_context=context, **kwargs)
        plain, transport = timed(socket.socket, self._deadline), self

        class Connection(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                sock = transport._connect(self)
                limited: socket.socket = plain(sock.family, sock.type, sock.proto, fileno=sock.detach())
                return limited

        class SecureConnection(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return transport._connect(self)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = SecureConnection

        self.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}

    def _connect(self, connection: HTTPConnection) -> socket.socket:
        """To the first of the host's addresses that answers, all within the call's time."""
        if not self.may_connect:
            raise ConnectionEnded(f"{connection.host}:{connection.port} ended the connection")
        try:
            # As it was given: without its last dot, a name is looked for in the search domains too.
            name = connection._dns_host.strip("[]")
            found = socket.getaddrinfo(name, connection.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        problem: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in found:
            if self._before_connect is not None:
                self._before_connect(str(address[0]), int(address[1]))
            sock = None
            try:
                sock = socket.socket(family, kind, protocol)
                for option in connection.socket_options or ():
                    sock.setsockopt(*option)
                self._deadline.limit(sock)
                sock.connect(address)
                self._deadline.limit(sock)  # for TLS
            except OSError as error:
                problem = error
                if sock is not None:
                    sock.close()
            else:
                return sock
        if isinstance(problem, TimeoutError):
            raise ConnectTimeoutError(connection, f"no connection to {connection.host} in time") from problem
        raise NewConnectionError(connection, f"no connection to {connection.host}: {problem}") from problem
