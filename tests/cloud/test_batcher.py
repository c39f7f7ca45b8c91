"""Batching without HTTP and without a model: a function that notes what it is given."""

import asyncio
import threading
import time

import numpy as np
import pytest
import uvloop

import cloud.batcher
from cloud.batcher import Batcher, Batching
from edge_sdk.errors import BackendError, ExpiredError, OverloadError


class _Function:
    """Twice its input; slow or failing on demand."""

    def __init__(self):
        self.batches, self.threads = [], []
        self.pause = 0.0
        self.inside = self.most_inside = 0
        self.error = None
        self.held = []  # events, one for each of the next calls to wait for

    def __call__(self, feeds):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.batches.append(len(feeds["x"]))
        self.threads.append(threading.current_thread().name)
        if self.held:
            self.held.pop(0).wait(10)
        else:
            time.sleep(self.pause)
        self.inside -= 1
        if self.error is not None and (feeds["x"] < 0).any():
            raise self.error
        return {"y": feeds["x"] * 2}


@pytest.fixture
def function():
    return _Function()


@pytest.fixture
def make(function):
    made = []

    def build(**batching):
        made.append(Batcher("worker", function, Batching(**batching)))
        return made[-1]

    yield build
    for batcher in made:
        batcher.close()


def _rows(*values):
    return {"x": np.array(values, np.float32)[:, None]}


async def _submit(batcher, *values, **how):
    ran = await batcher.submit(_rows(*values), len(values), **how)
    assert ran.outputs["y"].ravel().tolist() == [2 * value for value in values]
    return ran


async def _while_busy(batcher, function, *requests, pause=0.05):
    """Let one request run for ``pause`` after these have queued behind it; errors that it was answered by are given."""
    function.pause, gate = pause, threading.Event()
    function.held = [gate]
    first = asyncio.ensure_future(_submit(batcher, 0.0))
    while not function.inside:
        assert not first.done()
        await asyncio.sleep(0.001)
    asked = [first, *map(asyncio.ensure_future, requests)]
    await asyncio.sleep(pause)
    gate.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    for each in found:
        if isinstance(each, AssertionError | pytest.fail.Exception):
            raise each
    return found


def test_what_queues_while_a_batch_runs_is_the_next_batch(make, function):
    batcher = make(max_batch=8)
    first, *others = asyncio.run(
        _while_busy(batcher, function, *(_submit(batcher, float(i), i + 0.5) for i in range(3)))
    )
    assert function.batches == [1, 6]
    assert function.most_inside == 1
    assert [ran.batch for ran in (first, *others)] == [1, 6, 6, 6]
    assert all(ran.queue_ns > 20e6 and ran.queue_ns > first.queue_ns for ran in others)
    assert all(ran.compute_ns > 40e6 for ran in others)
    assert {rows: tally.count for rows, tally in batcher.executions.items()} == {1: 1, 6: 1}


def test_a_batch_has_at_most_so_many_rows_and_keeps_the_order(make, function):
    batcher = make(max_batch=4)
    asyncio.run(_while_busy(batcher, function, *(_submit(batcher, float(i), -float(i)) for i in range(5))))
    assert function.batches == [1, 4, 4, 2]


def test_a_request_longer_than_a_batch_runs_alone_and_by_parts(make, function):
    batcher = make(max_batch=4)
    long = [float(i) for i in range(9)]
    asyncio.run(_while_busy(batcher, function, _submit(batcher, 1.0), _submit(batcher, *long), _submit(batcher, 2.0)))
    assert function.batches == [1, 1, 4, 4, 1, 1]
    assert {rows: tally.count for rows, tally in batcher.executions.items()} == {1: 4, 4: 2}


def test_requests_of_one_turn_of_the_loop_run_together(make, function):
    async def all_at_once(batcher):
        await asyncio.gather(*(_submit(batcher, float(i)) for i in range(3)))

    asyncio.run(all_at_once(make()))
    assert function.batches == [3]


def test_other_shapes_are_other_batches(make, function):
    batcher = make(max_batch=8)

    async def wide():
        ran = await batcher.submit({"x": np.ones((1, 2), np.float32)}, 1)
        assert ran.outputs["y"].shape == (1, 2)

    asyncio.run(
        _while_busy(batcher, function, _submit(batcher, 1.0), wide(), _submit(batcher, 2.0), wide(), pause=0.02)
    )
    assert function.batches == [1, 2, 2]


def test_an_idle_model_waits_a_window_for_company(make, function):
    async def apart(batcher):
        first = asyncio.ensure_future(_submit(batcher, 1.0))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, _submit(batcher, 2.0))

    asyncio.run(apart(make(window_s=0.2)))
    assert function.batches == [2]


def test_a_full_batch_does_not_wait_for_the_window(make, function):
    async def full(batcher):
        began = time.monotonic()
        first = asyncio.ensure_future(_submit(batcher, 1.0))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, _submit(batcher, 2.0))
        return time.monotonic() - began

    assert asyncio.run(full(make(window_s=5, max_batch=2))) < 2
    assert uvloop.run(full(make(window_s=5, max_batch=2))) < 2
    assert function.batches == [2, 2]


def test_what_queued_during_a_batch_waits_no_window(make, function):
    batcher = make(window_s=2, max_batch=4)

    async def queued():
        function.held = [gate := threading.Event()]
        first = asyncio.ensure_future(_submit(batcher, *range(4)))
        while not function.inside:
            await asyncio.sleep(0.001)
        began = time.monotonic()
        second = asyncio.ensure_future(_submit(batcher, 1.0))
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(first, second)
        return time.monotonic() - began

    assert asyncio.run(queued()) < 1
    assert function.batches == [4, 1]


def test_an_error_reaches_exactly_the_callers_of_its_batch(make, function):
    batcher = make(max_batch=2)
    function.error = BackendError("no")
    first, *others = asyncio.run(
        _while_busy(batcher, function, _submit(batcher, 1.0), _submit(batcher, -1.0), _submit(batcher, 3.0), pause=0.02)
    )
    assert [type(found) for found in others[:2]] == [BackendError, BackendError]
    assert others[2].batch == first.batch == 1


def test_more_than_may_wait_are_refused(make, function):
    batcher = make(max_waiting=2, max_batch=1)

    async def fill():
        accepted = [asyncio.ensure_future(_submit(batcher, float(i))) for i in range(2)]
        await asyncio.sleep(0)
        assert batcher.num_waiting == 2
        with pytest.raises(OverloadError, match="2 requests wait already"):
            batcher.submit(_rows(1.0), 1)
        await asyncio.gather(*accepted)
        await _submit(batcher, 4.0)  # there is room again

    asyncio.run(_while_busy(batcher, function, fill(), pause=0.02))
    assert function.batches == [1, 1, 1, 1]


def test_more_rows_than_full_batches_may_wait_are_refused(make, function):
    """Few requests can be many rows; one that waits for nobody may have any number."""
    batcher = make(max_waiting=3, max_batch=2)

    async def fill():
        accepted = [asyncio.ensure_future(_submit(batcher, *map(float, range(n)))) for n in (5, 1)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadError, match="2 requests wait already, 6 rows"):
            batcher.submit(_rows(1.0), 1)
        await asyncio.gather(*accepted)
        await _submit(batcher, *map(float, range(9)))

    _, found = asyncio.run(_while_busy(batcher, function, fill(), pause=0.02))
    assert found is None


def test_the_servers_own_deadline_holds_for_all(make, function):
    batcher = make(max_batch=1, max_wait_s=0.2)
    soon, late = time.monotonic() + 0.1, time.monotonic() + 60
    outcomes = asyncio.run(
        _while_busy(
            batcher, function, _submit(batcher, 1.0), _submit(batcher, 2.0, deadline=late),
            _submit(batcher, 3.0, deadline=soon), pause=0.4,
        )
    )  # fmt: skip
    assert outcomes[0].rows == 1  # which waited for nobody
    assert all(isinstance(outcome, ExpiredError) for outcome in outcomes[1:])
    assert function.batches == [1]


def test_the_dead_do_not_keep_the_living_out(make, function):
    """A full queue of requests that have expired, or whose clients have left, has room."""
    batcher = make(max_waiting=2)

    async def come():
        function.held = [gate := threading.Event()]
        first = asyncio.ensure_future(_submit(batcher, 0.0))
        while not function.inside:
            await asyncio.sleep(0.001)
        left = batcher.submit(_rows(1.0), 1)
        late = batcher.submit(_rows(2.0), 1, deadline=time.monotonic() + 0.2)
        with pytest.raises(OverloadError):
            batcher.submit(_rows(3.0), 1)
        left.cancel()
        await asyncio.sleep(0.3)
        last = asyncio.ensure_future(_submit(batcher, 4.0))
        with pytest.raises(ExpiredError):
            await late
        assert not first.done()  # told at once
        gate.set()
        await asyncio.gather(first, last)

    asyncio.run(come())
    assert function.batches == [1, 1]


def test_a_deadline_is_told_while_the_batch_before_it_still_runs(make, function):
    batcher = make()

    async def come():
        function.held = [gate := threading.Event()]
        first = asyncio.ensure_future(_submit(batcher, 0.0))
        while not function.inside:
            await asyncio.sleep(0.001)
        waits = [batcher.submit(_rows(1.0), 1, deadline=time.monotonic() + after) for after in (60, 0.1, 0.05, 0.2)]
        for soonest in (waits[2], waits[1], waits[3]):
            with pytest.raises(ExpiredError):
                await asyncio.wait_for(soonest, 5)
        assert not first.done()
        assert batcher.num_waiting == 1
        gate.set()
        await asyncio.gather(first, waits[0])

    asyncio.run(come())
    assert function.batches == [1, 1]


def test_a_request_past_its_deadline_is_not_begun(make, function):
    batcher = make(max_batch=1)
    soon, late = time.monotonic() + 0.02, time.monotonic() + 60
    _, missed, met = asyncio.run(
        _while_busy(
            batcher, function, _submit(batcher, 1.0, deadline=soon), _submit(batcher, 2.0, deadline=late), pause=0.1
        )
    )
    assert isinstance(missed, ExpiredError)
    assert met.batch == 1
    assert function.batches == [1, 1]


def test_a_cancelled_request_is_not_run(make, function):
    batcher = make(max_batch=1)

    async def give_up():
        future = batcher.submit(_rows(5.0), 1)
        future.cancel()
        await _submit(batcher, 6.0)

    asyncio.run(_while_busy(batcher, function, give_up()))
    assert function.batches == [1, 1]


def test_a_client_that_leaves_while_its_batch_runs_harms_nobody(make, function):
    batcher = make()

    async def leave():
        future = batcher.submit(_rows(5.0), 1)
        other = asyncio.ensure_future(_submit(batcher, 6.0))
        while len(function.batches) < 2:  # until both run
            await asyncio.sleep(0.001)
        future.cancel()
        await other

    first, left = asyncio.run(_while_busy(batcher, function, leave()))
    assert (first.batch, left) == (1, None)
    assert function.batches == [1, 2]


def test_cheap_batches_run_on_the_event_loop_and_others_in_the_thread(make, function, monkeypatch):
    monkeypatch.setattr(cloud.batcher, "CHEAP_SECONDS", 0.1)
    monkeypatch.setattr(cloud.batcher, "INLINE_SECONDS", 1.0)
    batcher = make()

    async def four():
        for _ in range(3):
            await _submit(batcher, 1.0)
        function.pause = 0.2
        await _submit(batcher, 1.0)  # was cheap
        await _submit(batcher, 1.0)  # is known not to be
        await _submit(batcher, 1.0, alone=True)  # too short to hand over while nobody else waits

    asyncio.run(four())
    assert function.threads == ["worker", *["MainThread"] * 3, "worker", "MainThread"]  # of the first nothing is known


def test_a_row_after_a_large_batch_is_not_taken_for_a_part_of_its_time(make, function, monkeypatch):
    """Each run takes as long, whatever is in it, as a GPU's does."""
    monkeypatch.setattr(cloud.batcher, "CHEAP_SECONDS", 0.02)
    batcher = make(max_batch=64)
    function.pause = 0.05

    async def ask():
        for count in (64, 1, 64, 1):
            await _submit(batcher, *map(float, range(count)))
        function.pause = 0.0
        for _ in range(3):
            await _submit(batcher, 1.0)

    asyncio.run(ask())
    assert function.threads == [*["worker"] * 5, *["MainThread"] * 2]


def test_a_lone_short_request_is_run_before_the_loop_turns_and_others_are_not(make, function):
    batcher, patient = make(), make(window_s=0.05)

    async def ask():
        for each in (batcher, patient):
            await _submit(each, 1.0)  # how long it takes is known from here on
        assert batcher.submit(_rows(1.0), 1, alone=True).done()
        together = [batcher.submit(_rows(1.0), 1) for _ in range(2)]
        assert not any(future.done() for future in together)
        assert [ran.batch for ran in await asyncio.gather(*together)] == [2, 2]
        waits = patient.submit(_rows(1.0), 1, alone=True)
        assert not waits.done()
        await waits

    asyncio.run(ask())


def test_the_wait_is_foretold(make, function):
    batcher = make(max_batch=1)

    async def look():
        futures = [batcher.submit(_rows(1.0), 1) for _ in range(3)]
        assert batcher.wait_seconds == float("inf")
        await asyncio.gather(*futures)
        assert batcher.wait_seconds == 0
        futures = [batcher.submit(_rows(1.0), 1) for _ in range(3)]
        assert batcher.wait_seconds == pytest.approx(0.3, rel=0.5)
        await asyncio.gather(*futures)

    asyncio.run(_while_busy(batcher, function, look(), pause=0.1))


@pytest.fixture
def beside():
    return _Function()


@pytest.fixture
def make_two(function, beside):
    made = []

    def build(**batching):
        made.append(Batcher("worker", function, Batching(**batching), run_beside=beside))
        return made[-1]

    yield build
    for batcher in made:
        batcher.close()


def test_two_batches_run_beside_each_other_and_a_lone_one_has_all_cores(make_two, function, beside):
    """A lone request; the four that queued meanwhile in two halves; one that comes while those run, after the first."""
    batcher = make_two(max_batch=8)
    first_half, second_half = threading.Event(), threading.Event()
    beside.held = [first_half, second_half]

    async def late():
        while beside.inside < 2:
            await asyncio.sleep(0.001)
        assert not function.inside
        asked = asyncio.ensure_future(_submit(batcher, 9.0))
        first_half.set()
        ran = await asked
        second_half.set()
        return ran

    found = asyncio.run(_while_busy(batcher, function, *(_submit(batcher, float(i)) for i in range(4)), late()))
    assert [ran.batch for ran in found] == [1, 2, 2, 2, 2, 1]
    assert function.batches == [1]
    assert beside.batches == [2, 2, 1]
    assert (function.most_inside, beside.most_inside) == (1, 2)


def test_while_a_batch_has_all_cores_none_runs_beside_it(make_two, function, beside):
    batcher = make_two()

    async def late():
        assert function.inside
        ran = await _submit(batcher, 1.0)
        assert not function.inside
        return ran

    asyncio.run(_while_busy(batcher, function, late()))
    assert function.batches == [1, 1]  # alone again by then
    assert beside.batches == []


def test_no_more_than_two_run_beside_each_other_and_all_are_answered(make_two, function, beside):
    batcher = make_two(max_batch=2)
    beside.pause = 0.005
    asyncio.run(_while_busy(batcher, function, *(_submit(batcher, float(i), i + 0.5) for i in range(11)), pause=0.01))
    assert sum(function.batches) + sum(beside.batches) == 23
    assert max(beside.batches) == 2
    assert beside.most_inside == 2
    assert function.most_inside == 1


def test_an_error_beside_reaches_only_its_batch(make_two, function, beside):
    batcher = make_two(max_batch=1)
    beside.error, beside.pause = BackendError("no"), 0.01
    _, bad, good = asyncio.run(_while_busy(batcher, function, _submit(batcher, -1.0), _submit(batcher, 2.0)))
    assert isinstance(bad, BackendError)
    assert good.batch == 1


def test_close_waits_for_what_runs(make_two, function, beside):
    batcher = make_two(max_batch=1)
    beside.pause = 0.2

    async def begin():
        futures = [batcher.submit(_rows(float(i)), 1) for i in range(2)]
        while beside.inside < 2:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(batcher.close)
        assert not beside.inside
        await asyncio.gather(*futures)

    asyncio.run(begin())
    assert beside.batches == [1, 1]


def test_close_waits_for_one_part_of_a_long_request_and_its_loop_may_have_ended(make, function, capfd):
    batcher = make(max_batch=2)
    held = threading.Event()
    function.held = [held]

    async def leave():
        batcher.submit(_rows(*range(10)), 10)
        while not function.inside:
            await asyncio.sleep(0.001)

    asyncio.run(leave())
    closing = threading.Thread(target=batcher.close)
    closing.start()
    time.sleep(0.1)
    assert closing.is_alive()
    held.set()
    closing.join(10)
    assert not closing.is_alive()
    assert function.batches == [2]
    assert capfd.readouterr().err == ""  # no thread's traceback
