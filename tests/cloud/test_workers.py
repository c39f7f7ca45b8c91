"""A server of several processes."""

import asyncio
import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import requests

import cloud.siblings
from cloud.siblings import Siblings
from cloud.statistics import AllStatistics, ModelStatistics
from cloud.tally import Tally
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.client import Client
from edge_sdk.errors import RemoteError

from ..conftest import edgesdk_here, meanwhile, serving, wait_until

FEATURES = np.random.default_rng(1).random((8, 12, 8, 8), np.float32)


def _children(pid: int) -> list[int]:
    """Workers: not the process that tracks Python's shared resources."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):  # it has ended meanwhile
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def _answered(url: str) -> int:
    return requests.get(f"{url}/v2/models/tail/stats").json()["model_stats"][0]["inference_count"]


def test_all_of_them_serve_count_together_and_are_replaced(bundle):
    with OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes()) as backend:
        expected = backend.run({"features": FEATURES})["logits"]
    right, problems = [0] * 8, []

    def ask(url: str, row: int) -> None:
        with Client(url) as client:  # a new connection each time: any worker may take it
            try:
                outputs, _ = client.infer("tail", {"features": FEATURES[row : row + 1]})
            except RemoteError as error:
                problems.append(error)
                return
        np.testing.assert_allclose(outputs["logits"][0], expected[row], atol=1e-4)
        right[row] += 1

    with serving(bundle / "server0", "--workers", "2") as (url, process):
        before = _children(process.pid)
        assert len(before) == 2
        with meanwhile(*(partial(ask, url, row) for row in range(8))):
            time.sleep(2)
            os.kill(before[0], signal.SIGKILL)
            wait_until(lambda: len(_children(process.pid)) == 2 and before[0] not in _children(process.pid))
            once = list(right)
            wait_until(lambda: min(now - then for now, then in zip(right, once, strict=True)) >= 3)
        # What the killed one counted in its last half second is lost; its counts before that are not.
        assert sum(right) * 0.5 < _answered(url) <= sum(right) + len(problems)
        time.sleep(1.2)  # until all have told each other of the last requests
        assert len({_answered(url) for _ in range(8)}) == 1
        process.terminate()
        assert process.wait(30) == 0
        assert "a worker has died" in process.stderr.read()
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)


def test_who_drains_takes_nobody_more(bundle):
    """A connection that nobody will accept would hang until all have ended."""
    big = np.random.default_rng(0).random((4096, 12, 8, 8), np.float32)
    options = ("--workers", "2", "--threads", "1", "--drain-seconds", "120")  # seconds of computing, on any machine
    with serving(bundle / "server0", *options) as (url, process), ThreadPoolExecutor(1) as pool:
        before = _computed(process.pid)
        with Client(url, timeout_s=120) as client:
            running = pool.submit(client.infer, "tail", {"features": big})
            wait_until(lambda: _computed(process.pid) > before + 0.1)
            process.terminate()
            wait_until(lambda: _refuses(url) or running.done())
            assert not running.done()
            outputs, _ = running.result()
            assert len(outputs["logits"]) == len(big)
        assert process.wait(30) == 0


def _computed(pid: int) -> float:
    """Seconds that its workers have computed."""
    stats = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split() for child in _children(pid)]
    return sum(int(user) + int(system) for *_, user, system in (stat[:13] for stat in stats)) / os.sysconf("SC_CLK_TCK")


def _refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_they_end_with_the_process_that_looks_after_them(bundle):
    with serving(bundle / "server0", "--workers", "2") as (url, process):
        workers = _children(process.pid)
        process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/v2/health/live")


@pytest.mark.parametrize("options", [["--grpc-port=0"], ["--engine=ray"], ["--model-repository=x", "--allow-load"]])
def test_wrong_usage(bundle, options):
    served = [] if "--allow-load" in options else [bundle / "server0"]
    done = edgesdk_here("serve", *served, "--workers", "2", *options)
    assert done.returncode == 2
    assert "--workers is not for" in " ".join(done.stderr.replace("│", " ").split())
    help_text = " ".join(edgesdk_here("serve", "--help").stdout.split())
    assert "Not for --grpc-port, --allow-load and --engine ray." in help_text


def test_counts_of_siblings_add_up(tmp_path):
    some = ModelStatistics(success=Tally(2, 30), failures={"OTHER": Tally(1, 5)}, executions={1: Tally(2, 9)})
    some.durations[3] = 2
    others = ModelStatistics(
        success=Tally(1, 4), failures={"REJECTED": Tally(1, 1)}, executions={1: Tally(1, 1), 4: Tally(1, 2)}
    )
    others.durations[3] = 1
    both = some + others
    assert both.success == Tally(3, 34)
    assert both.failures == {"OTHER": Tally(1, 5), "REJECTED": Tally(1, 1)}
    assert both.executions == {1: Tally(3, 10), 4: Tally(1, 2)}
    assert both.durations[3] == 3
    assert both.execution_count == 4
    assert some.success == Tally(2, 30)  # unchanged


def test_statistics_of_two_processes_are_joined():
    def of(count, *names):
        return AllStatistics({(name, "1"): ModelStatistics(waiting=count) for name in names}, {count: 1, 401: count})

    both = of(1, "a", "b").joined(of(2, "b", "c"))
    assert {name: found.waiting for (name, _), found in both.models.items()} == {"a": 1, "b": 3, "c": 2}
    assert both.refused == {1: 1, 2: 1, 401: 3}


def test_a_sibling_reads_all_files_but_its_own_and_none_that_is_damaged(tmp_path):
    def sibling(name, count):
        counts = ModelStatistics(inference_count=count, waiting=7)
        mine = AllStatistics({("tail", "1"): counts}, {401: count})
        return Siblings(tmp_path, name, lambda: mine, lambda other: other == "a")

    async def write(each):
        await each.start()
        await asyncio.sleep(0)
        await each.stop()

    first, second = sibling("a", 3), sibling("b", 4)
    for each in (first, second):
        asyncio.run(write(each))
    (tmp_path / "c.json").write_bytes(b"[[")
    (tmp_path / ".a.json.part").write_bytes(b"x")
    for each, count in ((first, 4), (second, 3)):
        assert [found.models["tail", "1"].inference_count for found in each.others()] == [count]
        assert [found.refused for found in each.others()] == [{401: count}]
    assert [found.models["tail", "1"].waiting for found in second.others()] == [7]
    assert [found.models["tail", "1"].waiting for found in first.others()] == [0]  # nobody waits for one that has ended


def test_counts_that_cannot_be_written_end_nothing_and_those_read_before_stay(tmp_path, monkeypatch, caplog):
    """As where /dev/shm is full, or cleaned while the server runs."""
    monkeypatch.setattr(cloud.siblings, "PERIOD_SECONDS", 0.01)
    folder, counts = tmp_path / "counts", ModelStatistics(inference_count=5)
    folder.mkdir()

    def sibling(name):
        return Siblings(folder, name, lambda: AllStatistics({("tail", "1"): counts}, {}), lambda other: True)

    def told(each):
        return [found.models["tail", "1"].inference_count for found in each.others()]

    async def go_on():
        first, second = sibling("a"), sibling("b")
        await first.start()
        await second.start()
        while told(second) != [5]:
            await asyncio.sleep(0.01)
        shutil.rmtree(folder)
        counts.inference_count = 6
        while not caplog.messages:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert told(second) == [5]
        folder.mkdir()
        while told(second) != [6]:
            await asyncio.sleep(0.01)
        shutil.rmtree(folder)
        counts.inference_count = 7
        return await first.stop(), await second.stop()

    assert asyncio.run(go_on()) == (0, 0)
    assert all("do not see this one's counts" in message for message in caplog.messages)
    assert 2 <= len(caplog.messages) <= 4  # once a worker and time, not once a period
