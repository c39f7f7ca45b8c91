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
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from edge_sdk.errors import BackendError, EdgeSDKError
from edge_sdk.tracing import exporting

from .server import run
from .service import SPAN_SERVICE, Service, Settings
from .siblings import Siblings
from .tls import TLS

__all__ = ["run_workers"]

LOOK_SECONDS = 0.5
"""Between looks for a signal, which interrupts no wait of Python's."""

STEADY_SECONDS = 10.0
"""A worker that lived longer is replaced at once; others after 1, 2, 4, … 30 s."""

LONGEST_PAUSE = 30.0

END_SECONDS = 15.0
"""For a worker to end in once it has drained: a batch may run, and the last spans are sent."""

_log = logging.getLogger("edgesdk.cloud")
_spawn = multiprocessing.get_context("spawn")  # a forked ONNX Runtime would have lost its threads


def run_workers(
    settings: Settings, count: int, listener: socket.socket, *, on_ready: Callable[[], None], tls: TLS | None = None
) -> bool:
    """Serve until a signal, on which each worker drains as a server of one process does.

    Args:
        settings: of each worker; its limits are each worker's own.
        count: of workers.
        listener: that all accept from; closed when they are told to stop, or connections would go on piling up in it.
        on_ready: called once all are.
        tls: None serves in the clear.

    Raises:
        BackendError: a worker does not start.

    Returns:
        Whether all that was accepted was answered; the workers' logs say how much was not.
    """
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    memory = Path("/dev/shm")  # noqa: S108  (a private folder inside)
    with tempfile.TemporaryDirectory(prefix="edgesdk-", dir=memory if memory.is_dir() else None) as folder:
        workers = [_Worker(settings, listener, tls, Path(folder)) for _ in range(count)]
        try:
            # The first one builds the engines, where there are any to build; the others find them.
            first = workers[:1] if settings.execution.builds_engines else workers
            for starting in (first, workers[len(first) :]):
                for worker in starting:
                    worker.start()
                for worker in starting:
                    worker.wait_until_ready(stop)
            if stop:
                return True  # none has accepted anything
            on_ready()
            while not stop:
                living = [worker.process for worker in workers if worker.process and worker.process.is_alive()]
                wait([process.sentinel for process in living], timeout=LOOK_SECONDS)
                for worker in workers:
                    worker.revive()
        finally:
            listener.close()
            for worker in workers:
                worker.stop()
            ended = [worker.end() for worker in workers]
    return all(ended)


class _Worker:
    def __init__(self, settings: Settings, listener: socket.socket, tls: TLS | None, folder: Path) -> None:
        self._given = (settings, listener, tls, folder)
        self._began = self._next = 0.0
        self._deaths = 0
        self._receiver: Connection
        self.process: SpawnProcess | None = None

    def start(self) -> None:
        self._receiver, sender = _spawn.Pipe(duplex=False)
        self.process = _spawn.Process(target=_work, args=(*self._given, sender), name="edgesdk-worker")
        self.process.start()
        sender.close()
        self._began = time.monotonic()

    def wait_until_ready(self, stop: Sequence[int]) -> None:
        """Until it serves, or there is something in ``stop``; an engine may take many minutes to build."""
        while not stop and not self._receiver.poll(LOOK_SECONDS):
            pass
        if not stop and (problem := self._problem()):
            raise BackendError(problem)

    def _problem(self) -> str:
        """Why it ended, or nothing from one that serves."""
        assert self.process is not None
        try:
            return self._receiver.recv_bytes().decode()
        except EOFError:
            self.process.join(5)
            return f"a worker ended with status {self.process.exitcode}"

    def revive(self) -> None:
        """Start another one in the place of one that has died."""
        now = time.monotonic()
        if self.process is None or self.process.is_alive() or now < self._next:
            return
        if not self._next:
            self._deaths = 0 if now - self._began > STEADY_SECONDS else self._deaths + 1
            pause = min(2.0 ** min(self._deaths - 1, 10), LONGEST_PAUSE) if self._deaths else 0.0
            self._next = now + pause
            told: dict[str, object] = {"pid": self.process.pid, "status": self.process.exitcode, "pause_s": pause}
            if self._receiver.poll() and (problem := self._problem()):  # one that never served
                told["problem"] = problem
            _log.error("a worker has died; another one takes its place", extra=told)
            if pause:
                return
        self._next = 0.0
        self.start()

    def stop(self) -> None:
        """Tell it to finish what it accepted."""
        if self.process is not None:
            self.process.terminate()

    def end(self) -> bool:
        """Wait for what it accepted, and whether it has answered that; it has been told to stop."""
        if self.process is None:
            return True
        self.process.join(self._given[0].drain_seconds + END_SECONDS)
        if self.process.is_alive():
            _log.error("a worker does not end, and is killed", extra={"pid": self.process.pid})
            self.process.kill()
            self.process.join()
        return self.process.exitcode in (0, -signal.SIGTERM)  # by the signal itself: before it served


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
        with exporting(settings.otlp_endpoint, SPAN_SERVICE), closing(Service(settings)) as service:
            siblings = Siblings(folder, str(os.getpid()), service.repository.own_statistics, _lives)
            service.repository.siblings = siblings.others
            lost = run(
                service.app,
                service.direct,
                listener,
                on_ready=lambda: ready.send_bytes(b""),
                tls=tls,
                beside=siblings,
                drain_seconds=settings.drain_seconds,
            )
    except EdgeSDKError as error:
        ready.send_bytes(str(error).encode())
        sys.exit(1)
    if lost:
        sys.exit(1)
