"""A server of several processes that accept from one socket; one that dies is replaced."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from edge_sdk.errors import BackendError, EdgeSDKError

from .server import DRAIN_SECONDS, run
from .service import Service, Settings
from .siblings import Siblings
from .tls import TLS

__all__ = ["run_workers"]

START_SECONDS = 120.0
STEADY_SECONDS = 10.0
"""A worker that lived longer is replaced at once; others after 1, 2, 4, … 30 s."""

LONGEST_PAUSE = 30.0

_log = logging.getLogger("edgesdk.cloud")
_spawn = multiprocessing.get_context("spawn")  # a forked ONNX Runtime would have lost its threads


def run_workers(
    settings: Settings, count: int, listener: socket.socket, *, on_ready: Callable[[], None], tls: TLS | None = None
) -> None:
    """Serve until a signal, which each worker drains as a server of one process does.

    Args:
        settings: of each worker; its limits are each worker's own.
        count: of workers.
        listener: that all accept from.
        on_ready: called once all are.
        tls: None serves in the clear.

    Raises:
        BackendError: a worker does not start.
    """
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    memory = Path("/dev/shm")  # noqa: S108  (a private folder inside)
    with tempfile.TemporaryDirectory(prefix="edgesdk-", dir=memory if memory.is_dir() else None) as folder:
        workers = [_Worker(settings, listener, tls, Path(folder)) for _ in range(count)]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.wait_until_ready()
            on_ready()
            while not stop:
                # A signal interrupts no wait of Python's: it is looked for twice a second.
                wait([worker.process.sentinel for worker in workers if worker.process.is_alive()], timeout=0.5)
                for worker in workers:
                    worker.revive()
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.end()


class _Worker:
    def __init__(self, settings: Settings, listener: socket.socket, tls: TLS | None, folder: Path) -> None:
        self._given = (settings, listener, tls, folder)
        self._began = self._next = 0.0
        self._deaths = 0
        self._receiver: Connection | None = None
        self.process: SpawnProcess

    def start(self) -> None:
        self._receiver, sender = _spawn.Pipe(duplex=False)
        self.process = _spawn.Process(target=_work, args=(*self._given, sender), name="edgesdk-worker")
        self.process.start()
        sender.close()
        self._began = time.monotonic()

    def wait_until_ready(self) -> None:
        assert self._receiver is not None
        if not self._receiver.poll(START_SECONDS):
            raise BackendError(f"a worker does not start within {START_SECONDS:g} s")
        try:
            problem = self._receiver.recv_bytes().decode()
        except EOFError as error:
            self.process.join(5)
            raise BackendError(f"a worker ended with status {self.process.exitcode}") from error
        if problem:
            raise BackendError(problem)

    def revive(self) -> None:
        """Start another one in the place of one that has died."""
        now = time.monotonic()
        if self.process.is_alive() or now < self._next:
            return
        if not self._next:
            self._deaths = 0 if now - self._began > STEADY_SECONDS else self._deaths + 1
            pause = min(2.0 ** min(self._deaths - 1, 10), LONGEST_PAUSE) if self._deaths else 0.0
            self._next = now + pause
            told = {"pid": self.process.pid, "status": self.process.exitcode, "pause_s": pause}
            _log.error("a worker has died; another one takes its place", extra=told)
            if pause:
                return
        self._next = 0.0
        self.start()

    def end(self) -> None:
        """Wait for what it accepted; it has been told to stop."""
        self.process.join(DRAIN_SECONDS + 5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _end_with_parent() -> None:
    """A worker that nobody looks after would serve on, and keep the port from a new server."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except OSError:
        return False
    return True


def _work(settings: Settings, listener: socket.socket, tls: TLS | None, folder: Path, ready: Connection) -> None:
    """A worker's life."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        with closing(Service(settings)) as service:
            siblings = Siblings(folder, str(os.getpid()), service.repository.own_statistics, _lives)
            service.repository.siblings = siblings.others
            run(service.app, service.direct, listener, on_ready=lambda: ready.send_bytes(b""), tls=tls, beside=siblings)
    except EdgeSDKError as error:
        ready.send_bytes(str(error).encode())
        sys.exit(1)
