"""Dynamic batching: the requests that wait for a model are run together. Asyncio and threads; knows no HTTP.

While batches run, requests queue; the next batch takes those that have queued, so that batches grow with the load and a
lone request waits for nobody (the throughput-optimal rule where a batch costs little more than a row). A lone batch has
all cores. Where more wait, two batches run beside each other on a part of the cores each: they need not wait for each
other as the threads of one do, nor the cores for the event loop between two batches.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from edge_sdk.errors import BackendError, ExpiredError, OverloadError
from edge_sdk.tensors import Array

from .tally import Tally

__all__ = ["Batcher", "Batching", "Ran"]

CHEAP_SECONDS = 100e-6
"""A batch that takes less runs on the event loop: handing it to the thread and back costs 30 to 40 us."""

INLINE_SECONDS = 0.02
"""A lone client's request that takes less runs there too: nobody else waits for the loop meanwhile."""

FORGETS = 1.05
"""By which the least time that any batch took grows with each: it may have been another time's."""

LANES = 2
"""Batches that run beside each other."""

TURNS = 4
"""Of the event loop, some 100 us, that a lane waits while another runs: who was just answered asks again."""

TICK_SECONDS = 1e-3
"""Of the event loop's timers."""

Feeds = Mapping[str, Array]
Outputs = dict[str, Array]
Run = Callable[[Feeds], Outputs]


class Batching(NamedTuple):
    """How requests are joined.

    Attributes:
        max_batch: rows that run together at most; a longer request runs alone.
        window_s: that an idle model waits for more rows; 0 starts with what is there.
        max_waiting: requests that may wait; more are refused, and so are more rows than make as many full batches.
        max_wait_s: that a request waits at most, whatever its client says; None lets it wait as long as it takes.
    """

    max_batch: int = 8
    window_s: float = 0.0
    max_waiting: int = 256
    max_wait_s: float | None = None


class Ran(NamedTuple):
    """A request's outputs by name and its rows; how long it waited and its batch ran, and the rows of that batch."""

    outputs: Outputs
    rows: int
    queue_ns: int
    compute_ns: int
    batch: int


class _Waiting(NamedTuple):
    feeds: Feeds
    rows: int
    kind: tuple[tuple[int, ...], ...]
    arrived: int
    deadline: float | None
    future: asyncio.Future[Ran]


class Batcher:
    """Runs batches in threads of its own or, where that is quicker, on the event loop.

    All methods but ``close`` belong to the thread of one event loop.

    Args:
        name: of the threads.
        run: takes arrays by name and gives outputs by name, all with rows along the first axis.
        batching: how requests are joined.
        seconds_per_row: that a run takes, as far as is known.
        run_beside: the same on a part of the cores, for threads that call it together; without it, one batch runs at a
            time.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        batching: Batching,
        seconds_per_row: float = float("inf"),
        run_beside: Run | None = None,
    ) -> None:
        self._batching = batching
        self._run, self._run_beside = run, run_beside or run
        self._lanes = 1 if run_beside is None else LANES
        self._queue: deque[_Waiting] = deque()
        self._rows = 0
        self._running = 0
        self._whole = False  # the batch that runs has all cores
        self._alone = self._closed = False
        self._timer: asyncio.Handle | None = None
        self._in_window = False  # the timer waits for more rows
        self._expiry: asyncio.Handle | None = None
        self._expires = math.inf
        self._seconds_per_row = self._least_seconds = seconds_per_row
        self._jobs: SimpleQueue[tuple[asyncio.AbstractEventLoop, list[_Waiting], Run] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(self._lanes)]
        for thread in self._threads:
            thread.start()
        self.executions: dict[int, Tally] = {}
        """Of batches, by rows."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def is_busy(self) -> bool:
        """Whether a batch runs, or a request waits."""
        return bool(self._running or self._queue)

    @property
    def wait_seconds(self) -> float:
        """How long a new request would wait, about; infinite before the first run."""
        return self._seconds_per_row * self._rows

    @property
    def _is_lone(self) -> bool:
        """Whether one request is all there is: nothing runs, and nothing else waits."""
        return not self._running and len(self._queue) == 1

    @property
    def _is_short(self) -> bool:
        """Whether the next batch is so short that the event loop runs it itself.

        Half the rows may take as long: on a GPU a run costs some time whatever is in it.
        """
        if not self._queue:
            return False
        rows = max(min(self._rows, self._batching.max_batch), self._queue[0].rows)
        foretold = max(self._seconds_per_row * rows, self._least_seconds)
        return foretold < (INLINE_SECONDS if self._alone else CHEAP_SECONDS)

    @property
    def _has_room(self) -> bool:
        return self._running < self._lanes and not self._whole

    def _has_place(self, rows: int) -> bool:
        """Whether the queue takes a request more, of so many rows: an empty one takes any."""
        most = self._batching.max_waiting
        return not self._queue or (len(self._queue) < most and self._rows + rows <= most * self._batching.max_batch)

    def submit(
        self, feeds: Feeds, rows: int, *, deadline: float | None = None, alone: bool = False
    ) -> asyncio.Future[Ran]:
        """Queue a request.

        Args:
            feeds: arrays by name, each with ``rows`` rows.
            rows: at least 1.
            deadline: by ``time.monotonic``, after which it is not begun any more.
            alone: no other client is served at this time, so that a short run may hold the event loop.

        Raises:
            OverloadError: too many requests or rows wait already.

        Returns:
            A future, of the request's share of its batch's outputs. It ends in ExpiredError after the deadline, else
            in whatever ``run`` raised. Cancelling it takes the request out of the queue.
        """
        batching = self._batching
        if not self._has_place(rows):
            self._drop_dead()
            if not self._has_place(rows):
                raise OverloadError(f"{len(self._queue)} requests wait already, {self._rows} rows; try again later")
        if batching.max_wait_s is not None:
            latest = time.monotonic() + batching.max_wait_s
            deadline = latest if deadline is None else min(deadline, latest)
        loop = asyncio.get_running_loop()
        kind = tuple(array.shape[1:] for array in feeds.values())
        waiting = _Waiting(feeds, rows, kind, time.perf_counter_ns(), deadline, loop.create_future())
        self._queue.append(waiting)
        self._rows += rows
        self._alone = alone
        if self._has_room:
            if alone and self._is_lone and not batching.window_s:
                self._start(loop)  # nobody else comes in this turn of the loop
            else:
                self._schedule(loop, batching.window_s)
        if deadline is not None and self._queue:
            self._watch(loop, deadline)
        return waiting.future

    def close(self) -> None:
        """Wait for the batches that run, then end the threads; what waits, or is left of a long request, is not run."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _schedule(self, loop: asyncio.AbstractEventLoop, window_s: float = 0.0) -> None:
        """Start the next batch: never at once, so that what else arrives in this turn of the loop comes along."""
        wait = window_s if self._rows < self._batching.max_batch else 0.0
        if self._timer is not None:
            if wait or not self._in_window:
                return
            self._timer.cancel()
        self._in_window = wait > 0
        if wait:
            self._timer = loop.call_later(wait, self._start, loop)
        else:
            self._timer = loop.call_soon(self._soon, loop, TURNS if self._running else 1)

    def _soon(self, loop: asyncio.AbstractEventLoop, turns: int) -> None:
        if turns > 1:
            self._timer = loop.call_soon(self._soon, loop, turns - 1)
        else:
            self._start(loop)

    def _drop_dead(self) -> None:
        """Take out of the queue what nobody waits for any more."""
        now = time.monotonic()
        kept = deque(waiting for waiting in self._queue if not _is_dead(waiting, now))
        self._queue = kept
        self._rows = sum(waiting.rows for waiting in kept)

    def _watch(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """Look again when it has passed, and not only when the batch that runs has ended."""
        if deadline >= self._expires:
            return
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires = deadline
        self._expiry = loop.call_later(max(deadline - time.monotonic(), 0.0) + TICK_SECONDS, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._expiry, self._expires = None, math.inf
        self._drop_dead()
        deadlines = [waiting.deadline for waiting in self._queue if waiting.deadline is not None]
        if deadlines:
            self._watch(loop, min(deadlines))

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the next batches, if there are any."""
        self._timer = None
        inline = not self._running and self._is_short
        lone = inline or self._lanes == 1 or self._is_lone
        while self._has_room:
            lanes = 1 if lone else self._lanes - self._running
            batch = self._take(min(self._batching.max_batch, -(-self._rows // lanes)))
            if not batch:
                return
            self._running += 1
            self._whole = lone
            run = self._run if lone else self._run_beside
            if inline:
                self._finish(loop, batch, *self._timed(batch, run))
                return
            self._jobs.put((loop, batch, run))

    def _take(self, most: int) -> list[_Waiting]:
        """The oldest request and, in their order, those that can run with it: so many rows at most."""
        batch: list[_Waiting] = []
        rows, kept = 0, deque[_Waiting]()
        now = time.monotonic()
        while self._queue:
            waiting = self._queue.popleft()
            self._rows -= waiting.rows
            if _is_dead(waiting, now):
                continue
            if batch and waiting.kind != batch[0].kind:
                kept.append(waiting)
            elif batch and rows + waiting.rows > most:
                kept.append(waiting)
                break
            else:
                batch.append(waiting)
                rows += waiting.rows
        self._queue.extendleft(reversed(kept))
        self._rows += sum(waiting.rows for waiting in kept)
        return batch

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, batch, run = job
            done = (batch, *self._timed(batch, run))
            try:
                loop.call_soon_threadsafe(self._finish, loop, *done)
            except RuntimeError:
                if not loop.is_closed():  # by a server that did not wait for this batch
                    raise

    def _timed(self, batch: Sequence[_Waiting], run: Run) -> tuple[Outputs | Exception, int, int]:
        began = time.perf_counter_ns()
        try:
            feeds, most = batch[0].feeds, self._batching.max_batch
            if len(batch) > 1:
                feeds = {name: np.concatenate([waiting.feeds[name] for waiting in batch]) for name in feeds}
            if batch[0].rows <= most:
                found: Outputs | Exception = run(feeds)
            else:  # alone; whole, it would take as much memory as its client likes
                runs = []
                for i in range(0, batch[0].rows, most):
                    if self._closed:
                        raise BackendError("the model was closed")
                    runs.append(run({name: array[i : i + most] for name, array in feeds.items()}))
                found = {name: np.concatenate([each[name] for each in runs]) for name in runs[0]}
        except Exception as error:  # to be raised where the requests came from
            found = error
        return found, began, time.perf_counter_ns()

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[_Waiting],
        found: Outputs | Exception,
        began: int,
        ended: int,
    ) -> None:
        """Hand the answers out, and go on with what queued meanwhile."""
        beside = self._running
        self._running -= 1
        self._whole = False
        if self._queue:
            self._schedule(loop)
        rows = sum(waiting.rows for waiting in batch)
        if isinstance(found, Exception):
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(found)
            return
        took = (ended - began) / 1e9
        self._seconds_per_row = took / rows / beside
        self._least_seconds = min(took, self._least_seconds * FORGETS)
        most = self._batching.max_batch
        for size in _sizes(rows, most):
            if size not in self.executions:
                self.executions[size] = Tally()
            self.executions[size].add((ended - began) * size // rows)
        start = 0
        for waiting in batch:
            share = found
            if len(batch) > 1:
                share = {name: array[start : start + waiting.rows] for name, array in found.items()}
            start += waiting.rows
            if not waiting.future.done():
                waiting.future.set_result(
                    Ran(share, waiting.rows, began - waiting.arrived, ended - began, min(rows, most))
                )


def _is_dead(waiting: _Waiting, now: float) -> bool:
    """Whether nobody waits for it any more: its client has gone, or its deadline, of which it is told here."""
    if not waiting.future.done() and waiting.deadline is not None and waiting.deadline < now:
        waiting.future.set_exception(ExpiredError("the deadline passed while the request waited"))
    return waiting.future.done()


def _sizes(rows: int, most: int) -> list[int]:
    """Rows of the runs that a batch was run in."""
    return [min(most, rows - start) for start in range(0, rows, most)]
