"""HTTP connections whose every wait ends with the call that they serve.

The timeout of requests is for each read: a server that sends a byte now and then could hold a call for ever. Here each
send and receive waits at most until the deadline of the whole call.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util.ssl_ import create_urllib3_context

__all__ = ["Deadline", "DeadlineAdapter"]


class Deadline:
    """When the current call ends; one call at a time."""

    def __init__(self) -> None:
        self._end = 0.0

    def start(self, seconds: float) -> None:
        """A call begins, and may take that long."""
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; negative once it has passed."""
        return self._end - time.monotonic()

    def limit(self, sock: socket.socket) -> None:
        """Let the next operation of ``sock`` wait no longer than is left.

        Raises:
            TimeoutError: nothing is left.
        """
        left = self.left()
        if left <= 0:
            raise TimeoutError("the call's time is over")
        sock.settimeout(left)


class DeadlineAdapter(HTTPAdapter):
    """Transport of a requests session whose sockets keep to ``deadline``; a look-up of a name is not covered."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = create_urllib3_context()
        context.sslsocket_class = _timed(ssl.SSLSocket, self._deadline)
        super().init_poolmanager(*args, ssl_context=context, **kwargs)
        plain = _timed(socket.socket, self._deadline)

        class Connection(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                sock = super()._new_conn()
                timed: socket.socket = plain(sock.family, sock.type, sock.proto, fileno=sock.detach())
                return timed

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        self.poolmanager.pool_classes_by_scheme = {**self.poolmanager.pool_classes_by_scheme, "http": Pool}


def _timed(base: Any, deadline: Deadline) -> Any:
    """A subclass of a socket class: the methods that http.client calls, each limited first."""

    class Timed(base):  # type: ignore[misc]
        def recv_into(self, *args: Any) -> int:
            deadline.limit(self)
            received: int = super().recv_into(*args)
            return received

        def send(self, *args: Any) -> int:  # TLS's sendall is a loop of it
            deadline.limit(self)
            sent: int = super().send(*args)
            return sent

        def sendall(self, *args: Any) -> None:
            deadline.limit(self)
            super().sendall(*args)

    return Timed
