"""Replicas on a real Ray of this machine."""

import importlib.util
import os
import signal
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import requests

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.client import Client
from edge_sdk.credentials import Credentials
from edge_sdk.errors import RemoteError

from ..conftest import edgesdk_here, lacking, meanwhile, serving, wait_until

FEATURES = np.random.default_rng(1).random((16, 12, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "ray", "--grpc-port", "0"], "not for --engine ray"),
        (["--engine", "ray", "--tls-cert", "c", "--tls-client-ca", "a"], "not for --engine ray"),
        (["--engine", "ray", "--replicas", "3", "--max-replicas", "2"], "less than --replicas"),
        (["--replicas", "2"], "are for --engine ray"),
    ],
)
def test_wrong_usage(bundle, options, words):
    done = edgesdk_here("serve", bundle / "server0", *options)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


def _needs_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        lacking("ray", "Ray: pip install 'edgesdk[ray]'")


def _replicas() -> set[int]:
    """Their processes."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if folder.joinpath("cmdline").read_bytes().startswith(b"ray::ServeReplica:edgesdk"):
                found.add(int(folder.name))
    return found


def _ask(client: Client, rows: slice, expected: np.ndarray) -> str:
    """One request: what became of it."""
    try:
        outputs, _ = client.infer("tail", {"features": FEATURES[rows]})
    except RemoteError as error:
        return str(error)
    return "right" if np.allclose(outputs["logits"], expected[rows], atol=1e-4) else "wrong"


@pytest.mark.slow
def test_a_killed_replica_loses_no_answer_and_is_replaced(bundle, tmp_path):
    _needs_ray()
    with OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes()) as backend:
        expected = backend.run({"features": FEATURES})["logits"]
    token = tmp_path / "token"
    token.write_text("secret")
    options = ("--engine", "ray", "--replicas", "2", "--threads", "1", "--token-file", str(token))
    answers: list[str] = []

    def ask(client: Client, rows: slice) -> None:
        answers.append(_ask(client, rows, expected))

    with serving(bundle / "server0", *options) as (url, process):
        before = _replicas()
        assert len(before) == 2
        assert requests.get(f"{url}/v2/models/tail").status_code == 401
        with ExitStack() as stack:
            asking = []
            for row in range(6):
                client = stack.enter_context(Client(url, timeout_s=30, credentials=Credentials(token_file=token)))
                asking.append(partial(ask, client, slice(row, row + 1)))
            stack.enter_context(meanwhile(*asking))
            wait_until(lambda: answers.count("right") > 100)
            killed = before.pop()
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: killed not in _replicas() and len(_replicas()) == 2)
            right = answers.count("right")
            wait_until(lambda: answers.count("right") > right + 100)
        assert len(_replicas()) == 2
        assert "wrong" not in answers
        # Those that the killed one was working on were told so; nobody waited in vain.
        assert len(answers) - answers.count("right") <= len(asking)
        process.terminate()
        assert process.wait(60) == 0
    assert not _replicas()


def _answered(url: str) -> set[int]:
    """Rows that each of the replicas has answered: whichever is asked tells of itself alone."""
    found = set()
    for _ in range(40):
        stats = requests.get(f"{url}/v2/models/tail/stats", timeout=60).json()
        found.add(stats["model_stats"][0]["inference_count"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_replica_comes_with_the_load(bundle):
    """Ray looks at the last half minute, and starts one when that has asked for one half a minute long."""
    _needs_ray()
    with OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes()) as backend:
        expected = backend.run({"features": FEATURES})["logits"]
    # A replica is to have half of what may wait there: with 14 that ask without a pause one has too much, two do not.
    options = ("--replicas", "1", "--max-replicas", "2", "--threads", "1", "--max-waiting", "16")
    answers: list[str] = []

    def ask(client: Client, rows: slice) -> None:
        answers.append(_ask(client, rows, expected))

    with serving(bundle / "server0", "--engine", "ray", *options) as (url, process):
        assert len(_replicas()) == 1
        with ExitStack() as stack:
            asking = []
            for row in range(14):
                client, rows = stack.enter_context(Client(url, timeout_s=60)), slice(row % 8, row % 8 + 8)
                asking.append(partial(ask, client, rows))
            stack.enter_context(meanwhile(*asking))
            wait_until(lambda: len(_replicas()) == 2, seconds=300)
            # The new one, which has answered less, tells of itself as well.
            wait_until(lambda: max(answered := _answered(url)) >= 2 * min(answered))
            time.sleep(5)
        assert len(_replicas()) == 2
        answered = _answered(url)
        assert len(answered) == 2
        assert min(answered) > 0
        assert set(answers) == {"right"}
        assert sum(answered) == 8 * len(answers)
        process.terminate()
        assert process.wait(60) == 0
    assert not _replicas()
