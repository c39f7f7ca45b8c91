"""A right request to a server of a bundle's tail, and its answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edge_sdk import oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.client import Client
from edge_sdk.profile.feeds import random_feeds


class Right:
    """The request that all others are made from, and its answer."""

    def __init__(self, folder: Path) -> None:
        party = open_party(folder, "server")
        part = party.manifest.parts[0]
        feeds = random_feeds(part.inputs, 2)
        self.feeds, self.model = feeds, part.name
        with OnnxRuntimeBackend(party.onnx(part)) as backend:
            self.answer = backend.run(feeds)
        _, chunks = oip.encode_request(feeds, "id", {"timeout": 10_000_000})
        self.json, self.tensors = json.loads(chunks[0]), b"".join(chunks[1:])

    def check(self, url: str) -> None:
        """Ask it, of a server that must still be right."""
        with Client(url) as client:
            outputs, _ = client.infer(self.model, self.feeds)
        for name, expected in self.answer.items():
            np.testing.assert_allclose(outputs[name], expected, atol=1e-4)
