"""Real images, real bundles and real server processes for the tests."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from edge_sdk.engine.library import TensorRT, load_library
from edge_sdk.errors import MissingExtra

settings.register_profile("tests", deadline=None)  # a machine may stand still for a moment
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT.parent / "shared" / "data" / "cifar10.tar.xz"
EDGESDK = [sys.executable, "-c", "from edge_sdk.cli import main; main()"]


def edgesdk(*arguments: str | Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    done = subprocess.run(
        [*EDGESDK, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=110,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def edgesdk_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, where what it imports is imported already: for the many cases of bad input."""
    from edge_sdk.cli import main

    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    status: object = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["edgesdk", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # which main replaces
        try:
            main()
        except SystemExit as end:
            status = end.code
    if isinstance(status, str):  # as Python ends with a message
        err.write(f"{status}\n")
        status = 1
    out.seek(0)
    assert isinstance(status, int)
    return subprocess.CompletedProcess(["edgesdk", *map(str, arguments)], status, out.read(), err.getvalue())


def assert_one_line_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 1, nothing on standard output, and one line that names what is wrong."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("edgesdk: ")
    assert done.stdout == ""
    for word in words:
        assert word in lines[0]


def lacking(engine: Literal["chromium", "ray", "rtx", "triton"], needed: str) -> NoReturn:
    """Skip a test whose engine is not here; fail it where EDGESDK_REQUIRE_ENGINES asks for it, or for ``all``."""
    if {engine, "all"} & set(os.environ.get("EDGESDK_REQUIRE_ENGINES", "").split(",")):
        pytest.fail(f"needs {needed}; EDGESDK_REQUIRE_ENGINES asks for it, so that this is no reason to skip")
    pytest.skip(f"needs {needed}", allow_module_level=True)


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    """TensorRT for RTX, which builds engines without a GPU."""
    try:
        return load_library("tensorrt_rtx")
    except MissingExtra as error:
        lacking("rtx", str(error))


@pytest.fixture(scope="session")
def cifar_archive() -> Path:
    """The CIFAR-10 images as an archive of a folder."""
    if not ARCHIVE.exists():
        pytest.skip(f"needs the CIFAR-10 images at {ARCHIVE.relative_to(ROOT.parent)}")
    return ARCHIVE


@pytest.fixture(scope="session")
def cifar_sample(cifar_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CIFAR-10 images: 40 train and some 30 test of each class."""
    target = tmp_path_factory.mktemp("sample")
    with tarfile.open(cifar_archive) as tar:
        for member in tar:
            number = re.search(r"(\d+)\.jpg$", member.name)
            if number and int(number.group(1)) < 40:
                tar.extract(member, target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return target / "cifar10"


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder of real images: 40 train and 10 test of each class; of CIFAR-10, or cut from photographs elsewhere."""
    target = tmp_path_factory.mktemp("images")
    if ARCHIVE.exists():
        sample = request.getfixturevalue("cifar_sample")
        shutil.copytree(sample / "train", target / "cifar10" / "train")
        for folder in (sample / "test").iterdir():
            (target / "cifar10" / "test" / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:10]:
                shutil.copy(image, target / "cifar10" / "test" / folder.name)
        return target / "cifar10"
    import skimage.data

    random = np.random.default_rng(0)
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photograph = getattr(skimage.data, name)()
        for part, count in (("train", 40), ("test", 10)):
            folder = target / "photographs" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                y, x = (random.integers(0, size - 64) for size in photograph.shape[:2])
                Image.fromarray(photograph[y : y + 64, x : x + 64]).save(folder / f"{i:04}.png")
    return target / "photographs"


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., object]:
    """Builds a checkpoint of an untrained model: seeded weights, batch statistics of noise."""

    def make(defense: str, backbone: str = "cnn", *, size: int = 32, **settings: object) -> object:
        import torch

        from export.checkpoint import Checkpoint, build_defense
        from export.defenses import model_config

        torch.manual_seed(0)
        config = model_config(defense, backbone=backbone, **settings)
        model = build_defense(defense, config).train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.rand(8, 3, size, size))
            features = model.eval().features(torch.rand(8, 3, size, size))
        names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        return Checkpoint(
            defense=defense,
            config=config,
            weights=model.state_dict(),
            image_size=size,
            class_names=names[: config.num_classes],
            data={"name": "noise"},
            training={"seed": 0},
            accuracy={"test": 0.1},
            feature_ranges=tuple((z.min().item(), z.max().item()) for z in features),
        )

    return make


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., object]) -> Path:
    """A bundle of an untrained SiftFunnel, in every precision; features travel as float32."""
    return _export(tmp_path_factory, make_checkpoint("siftfunnel"), "fp16", "int8")


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., object]) -> Path:
    """A float32 bundle of another model, whose tail takes other features."""
    return _export(tmp_path_factory, make_checkpoint("none"))


@pytest.fixture(scope="session")
def shares_checkpoint(make_checkpoint: Callable[..., object]) -> object:
    """An untrained model whose features go to four servers; its shares are of the default size."""
    return make_checkpoint("privdfs", blocks=1, branch_width=0.25)


@pytest.fixture(scope="session")
def shares_bundle(tmp_path_factory: pytest.TempPathFactory, shares_checkpoint: object) -> Path:
    """Its float32 bundle."""
    return _export(tmp_path_factory, shares_checkpoint)


def _export(tmp_path_factory: pytest.TempPathFactory, checkpoint: object, *precisions: str) -> Path:
    from export.parity import parity_images
    from export.write_bundle import export_bundle

    out = tmp_path_factory.mktemp("bundle") / "b"
    images = parity_images(None, 32)
    export_bundle(checkpoint, out, images=images, precisions=precisions, calibration=images.pixels)  # type: ignore[arg-type]
    return out


def read_request(connection: socket.socket) -> bytes:
    """One whole HTTP request; empty where the client has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return b""
        data += more
    head, end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    while length and len(body) < int(length.group(1)):
        body += connection.recv(65536)
    return head + end + body


class QuietHandler(BaseHTTPRequestHandler):
    """Of a server that keeps connections open and writes no log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, content: bytes, headers: Iterable[tuple[str, str]] = (), *, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def answering_by(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of an HTTP server in threads of this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def uvicorn_here(application: Any, protocol: Any, **settings: Any) -> Iterator[tuple[Callable[[], socket.socket], Any]]:
    """An ASGI application on uvicorn in a thread of this process: what connects to it, and the server."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = uvicorn.Config(application, http=protocol, loop="uvloop", lifespan="off", log_config=None, **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield lambda: socket.create_connection(address, 5), server
    finally:
        server.should_exit = True
        thread.join()


def again_and_again(call: Callable[[], object]) -> None:
    """Until it raises, ten seconds at most."""
    for _ in range(500):
        call()
        time.sleep(0.02)


@contextmanager
def meanwhile(*works: Callable[[], object]) -> Iterator[None]:
    """Does each again and again, in a thread of its own, until the body has ended, however it ends."""
    ended = threading.Event()

    def repeat(work: Callable[[], object]) -> None:
        while not ended.is_set():
            work()

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@contextmanager
def held_port() -> Iterator[int]:
    """A port that nobody else is given while the body runs, and that a server which asks for it can have."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Until it is so; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)


@contextmanager
def at_work(pid: int, seconds: float = 0.05) -> Iterator[None]:
    """Waits at the end until the process has computed this long: reading a request takes less, so it runs a model."""

    def spent() -> float:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    until = spent() + seconds
    yield
    wait_until(lambda: spent() >= until)


@contextmanager
def serving(folder: Path | None, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server process on a free port of this machine: its address and the process."""
    process = subprocess.Popen(
        [*EDGESDK, "serve", *([str(folder)] if folder else []), "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"https?://[^\s\"]+", line)
        if not found:
            process.kill()
            pytest.fail(line + process.stderr.read())
        yield found.group(), process
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[str]:
    """The address of a server of ``bundle``'s tail."""
    with serving(bundle / "server0") as (url, _):
        yield url
