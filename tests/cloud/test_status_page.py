"""The page at /, in a real browser and in real time."""

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import numpy as np
import pytest
import requests

from edge_sdk.client import Client

from ..conftest import lacking, meanwhile, serving, wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DOCUMENT = "document.documentElement?.outerHTML ?? ''"
SECTIONS = """[...document.querySelectorAll("section")].map((section) => {
  const found = (kind, entry) => Object.fromEntries([...section.querySelectorAll(kind)].map(entry));
  return {
    tiles: found("[data-tile]", (tile) => [tile.dataset.tile, tile.textContent]),
    lines: found("path.line", (path) => [path.classList[1], path.getAttribute("d")]),
    labels: found("svg", (plot) => [plot.dataset.plot, plot.ariaLabel]),
  };
})"""


class _Page:
    """A page of Chromium, over the two pipes of its own protocol, DevTools': JSON objects, each ended by a nought."""

    def __init__(self, commands, answers, url):
        self._commands, self._answers = commands, answers
        self._told, self._count = b"", 0
        target = self._ask("Target.createTarget", url=url)["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def _ask(self, method, session=None, **parameters):
        self._count += 1
        asked = {
            "id": self._count,
            "method": method,
            "params": parameters,
            **({"sessionId": session} if session else {}),
        }
        self._commands.write(json.dumps(asked).encode() + b"\0")
        while True:  # events come between
            while b"\0" not in self._told:
                more = self._answers.read(2**16)
                assert more, "Chromium has ended"
                self._told += more
            answer, _, self._told = self._told.partition(b"\0")
            if json.loads(answer).get("id") == self._count:
                return json.loads(answer)["result"]

    def value(self, expression):
        """Of JavaScript, now."""
        return self._ask("Runtime.evaluate", self._session, expression=expression, returnByValue=True)["result"][
            "value"
        ]

    def once(self, expression, is_so):
        """The value, once it is so."""
        found = []

        def look():
            found[:] = [self.value(expression)]
            return is_so(*found)

        wait_until(look)
        return found[0]


@contextmanager
def _opened(url, profile):
    if CHROMIUM is None:
        lacking("chromium", "Chromium")
    (its_commands, commands), (answers, its_answers) = os.pipe(), os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    started = ["sh", "-c", f'exec "$0" "$@" 3</dev/fd/{its_commands} 4>/dev/fd/{its_answers}', CHROMIUM, *options]
    process = subprocess.Popen(started, pass_fds=(its_commands, its_answers), stderr=subprocess.DEVNULL)
    os.close(its_commands)
    os.close(its_answers)
    try:
        with os.fdopen(commands, "wb", 0) as writes, os.fdopen(answers, "rb", 0) as reads:
            yield _Page(writes, reads, url)
    finally:  # without its pipes it ends
        process.wait(60)


def test_it_shows_the_models_and_how_they_do(bundle, other_bundle, tmp_path):
    features = np.random.default_rng(1).random((3, 12, 8, 8), np.float32)
    with serving(bundle / "server0", str(other_bundle / "server0")) as (url, _):
        with Client(url) as client:
            for _ in range(4):
                client.infer("tail", {"features": features}, version="1")
        for body in (b"no", b"nor this"):
            requests.post(f"{url}/v2/models/tail/versions/1/infer", data=body)
        with _opened(url, tmp_path) as page:
            dom = page.once(DOCUMENT, lambda dom: 'class="ok">ready, 2 models<' in dom)
    first, second = re.split("<section", dom)[1:3]
    assert "tail, version 1" in first
    assert "features FP32 [-1, 12, 8, 8] → logits FP32 [-1, 10]" in first
    assert '<b data-tile="failed">2</b>' in first
    assert '<b data-tile="waiting">0</b>' in first
    assert 'aria-label="Batches by rows: up to 1: 0, up to 2: 0, up to 4: 4"' in first
    assert "tail, version 2" in second
    assert '<b data-tile="failed">0</b>' in second
    assert first.count('class="line') == 3


def _points(path):
    return np.array([[float(each) for each in point.split()] for point in re.findall(r"[ML]([\d.]+ [\d.]+)", path)])


def _number(tile):
    found = re.fullmatch(r"([\d.]+)( ms)?", tile)
    return float(found[1]) if found else None


def test_while_requests_come_it_shows_their_rate_and_their_times(bundle, tmp_path):
    """Compared with what their client measures, who waits for its answers a little longer than the server takes."""
    features = np.random.default_rng(1).random((1, 12, 8, 8), np.float32)
    ends, took = [], []
    with serving(bundle / "server0") as (url, _), Client(url) as client:

        def ask():
            began = time.perf_counter()
            client.infer("tail", {"features": features})
            ends.append(time.perf_counter())
            took.append((ends[-1] - began) * 1e3)
            time.sleep(0.005)

        ask()
        with meanwhile(ask), _opened(url, tmp_path) as page:

            def is_plausible(sections):
                """In one of the times between two looks: this machine may stand still in another."""
                if not sections:
                    return False
                rate, p50, p99, compute = (
                    _number(sections[0]["tiles"][name]) for name in ("rate", "p50", "p99", "compute")
                )
                if None in (rate, p50, p99, compute):
                    return False
                real = len(ends) / (ends[-1] - ends[0])
                median, most = np.median(took), max(took)
                return (
                    real / 2 < rate < 2 * real
                    and median / 50 < p50 < 2 * median
                    and p50 <= p99 < 2 * most
                    and 0.001 < compute < median
                )

            page.once(SECTIONS, is_plausible)
            (section,) = page.once(SECTIONS, lambda sections: sections[0]["lines"]["rate"].count("L") >= 3)
    assert section["lines"].keys() == {"p50", "p99", "rate"}
    for name, path in section["lines"].items():
        points = _points(path)
        assert np.diff(points[:, 0]) == pytest.approx(318 / 60, abs=0.11), name  # a look is a sixtieth of the width
        assert points[-1, 0] == 360
        assert ((points[:, 1] >= 10) & (points[:, 1] < 132)).sum() >= 3, name  # above the axis, which is nought
    tiles = section["tiles"]
    p50, p99 = (tiles[name].removesuffix(" ms") for name in ("p50", "p99"))
    assert section["labels"]["latency"] == f"Request duration in ms; now p50 {p50}, p99 {p99}"
    assert section["labels"]["rate"] == f"Answered requests a second; now rate {tiles['rate']}"


def test_where_a_token_is_needed_it_asks_for_one_and_shows_nothing(bundle, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret")
    with serving(bundle / "server0", "--token-file", str(tokens)) as (url, _):
        assert requests.get(f"{url}/metrics").status_code == 401
        with _opened(url, tmp_path / "profile") as page:
            dom = page.once(DOCUMENT, lambda dom: "a token is needed" in dom)
    assert '<form id="login">' in dom
    assert "tail" not in dom


def test_its_files_may_run_nothing_but_themselves(server):
    for path, kind in (("", "text/html"), ("status/status.js", "text/javascript"), ("status/page.css", "text/css")):
        response = requests.get(f"{server}/{path}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
