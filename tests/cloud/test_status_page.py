"""The page at /, in a real browser."""

import re
import shutil
import subprocess

import numpy as np
import requests

from edge_sdk.client import Client

from ..conftest import lacking, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _dom(url, tmp_path):
    """The document after some looks at the server: the browser's clock runs ahead while nothing is being fetched."""
    if CHROMIUM is None:
        lacking("chromium", "Chromium")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=7000",
    ]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", url], capture_output=True, text=True, timeout=90, check=True
    )
    return done.stdout


def test_it_shows_the_models_and_how_they_do(bundle, other_bundle, tmp_path):
    features = np.random.default_rng(1).random((3, 12, 8, 8), np.float32)
    with serving(bundle / "server0", str(other_bundle / "server0")) as (url, _):
        with Client(url) as client:
            for _ in range(4):
                client.infer("tail", {"features": features}, version="1")
        for body in (b"no", b"nor this"):
            requests.post(f"{url}/v2/models/tail/versions/1/infer", data=body)
        dom = _dom(url, tmp_path)
    assert re.search(r'class="ok">ready, 2 models<', dom)
    first, second = re.split("<section", dom)[1:3]
    assert "tail, version 1" in first
    assert "features FP32 [-1, 12, 8, 8] → logits FP32 [-1, 10]" in first
    assert '<b data-tile="failed">2</b>' in first
    assert '<b data-tile="waiting">0</b>' in first
    assert 'aria-label="Batches by rows: up to 1: 0, up to 2: 0, up to 4: 4"' in first
    assert "tail, version 2" in second
    assert '<b data-tile="failed">0</b>' in second
    assert first.count('class="line') == 3


def test_where_a_token_is_needed_it_asks_for_one_and_shows_nothing(bundle, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret")
    with serving(bundle / "server0", "--token-file", str(tokens)) as (url, _):
        assert requests.get(f"{url}/metrics").status_code == 401
        dom = _dom(url, tmp_path / "profile")
    assert "a token is needed" in dom
    assert '<form id="login">' in dom
    assert "tail" not in dom


def test_its_files_may_run_nothing_but_themselves(server):
    for path, kind in (("", "text/html"), ("status/status.js", "text/javascript"), ("status/page.css", "text/css")):
        response = requests.get(f"{server}/{path}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
