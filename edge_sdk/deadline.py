"""One end for all that a call waits for.

The timeout of requests is for each read: a server that sends a byte now and then could hold a call for ever. Here each
send and receive waits at most until the deadline of the whole call.
"""

from __future__ import annotations

import socket
import time
from typing import Any

__all__ = ["Deadline", "timed"]


class Deadline:
    """When the current call ends; one call at a time.

    Attributes:
        seconds: that it may take in all.
    """

    def __init__(self) -> None:
        self._end = self.seconds = 0.0

    def start(self, seconds: float) -> None:
        """A call begins, and may take that long."""
        self._end, self.seconds = time.monotonic() + seconds, seconds

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


def timed(base: Any, deadline: Deadline) -> Any:
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
