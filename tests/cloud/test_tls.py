"""Real certificates, real sockets: who gets an answer and who gets none."""

import datetime
import socket
import ssl
import time

import numpy as np
import pytest
import requests
import trustme

from edge_sdk.client import Client
from edge_sdk.credentials import Credentials
from edge_sdk.errors import ConfigError, RemoteError, RemoteRejected

from ..conftest import again_and_again, assert_one_line_error, edgesdk, edgesdk_here, serving, wait_until

FEATURES = {"features": np.zeros((1, 12, 8, 8), np.float32)}


class _Party:
    """A certificate of one authority, on disk."""

    def __init__(self, folder, name, authority, *identities, **how):
        issued = authority.issue_cert(*identities, **how)
        self.cert, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    authority, stranger = trustme.CA(), trustme.CA()
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "stranger.pem").write_bytes(stranger.cert_pem.bytes())
    (folder / "token").write_text("secret-1\n")
    (folder / "wrong").write_text("secret-2\n")
    return {
        "folder": folder,
        "server": _Party(folder, "server", authority, "127.0.0.1"),
        "elsewhere": _Party(folder, "elsewhere", authority, "example.org"),
        "expired": _Party(folder, "expired", authority, "127.0.0.1", not_after=past),
        "camera": _Party(folder, "camera", authority, "camera@example.org"),
        "camera, expired": _Party(folder, "camera-expired", authority, "camera@example.org", not_after=past),
        "camera, of a stranger": _Party(folder, "camera-strange", stranger, "camera@example.org"),
    }


def _served(bundle, pki, name="server", *options):
    party = pki[name]
    return serving(bundle / "server0", "--tls-cert", str(party.cert), "--tls-key", str(party.key), *options)


@pytest.fixture(scope="module")
def mutual(bundle, pki):
    """A server that wants a certificate and a token."""
    folder = pki["folder"]
    wants = ("--tls-client-ca", str(folder / "ca.pem"), "--token-file", str(folder / "token"))
    with _served(bundle, pki, "server", *wants) as (url, _):
        yield url


def _credentials(pki, name, token="token"):
    party = pki[name] if name else None
    return Credentials(
        pki["folder"] / token if token else None,
        pki["folder"] / "ca.pem",
        party.cert if party else None,
        party.key if party else None,
    )


def test_the_right_client_is_served(mutual, pki):
    assert mutual.startswith("https://")
    with Client(mutual, credentials=_credentials(pki, "camera")) as client:
        assert client.infer("tail", FEATURES)[0]["logits"].shape == (1, 10)


@pytest.mark.parametrize("name", ["camera, expired", "camera, of a stranger", None])
def test_a_client_without_a_right_certificate_is_not_spoken_to(mutual, pki, name):
    with Client(mutual, retries=0, credentials=_credentials(pki, name)) as client, pytest.raises(RemoteError) as caught:
        client.infer("tail", FEATURES)
    assert not isinstance(caught.value, RemoteRejected)  # no HTTP was spoken


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_wrong_or_missing_token_gets_401(mutual, pki, token):
    with Client(mutual, credentials=_credentials(pki, "camera", token)) as client:
        with pytest.raises(RemoteRejected, match="bearer token is needed") as caught:
            client.infer("tail", FEATURES)
        assert caught.value.status == 401


def test_a_new_token_is_taken_up_without_a_failed_request(bundle, pki, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for file in (ours, theirs):
        file.write_text("old\n")
    about = Credentials(ours, pki["folder"] / "ca.pem")
    with _served(bundle, pki, "server", "--token-file", str(theirs)) as (url, _):

        def old_is_refused():
            client.infer("tail", FEATURES)
            shown = {"Authorization": "Bearer old"}
            return requests.get(f"{url}/v2", headers=shown, verify=str(about.ca_file)).status_code == 401

        with Client(url, retries=0, credentials=about) as client:
            assert not old_is_refused()
            for file in (ours, theirs):
                file.write_text("new\n")
            wait_until(old_is_refused)
            client.infer("tail", FEATURES)
            ours.write_text("")
            theirs.write_text("newest\n")
            with pytest.raises(RemoteRejected, match="bearer token"):
                again_and_again(lambda: (client.infer("tail", FEATURES), time.sleep(0.02)))


def test_a_replayed_request_still_needs_the_token_and_the_size(bundle, pki):
    options = ("--token-file", str(pki["folder"] / "token"), "--max-body-mib", "1")
    with _served(bundle, pki, "server", *options) as (url, _):
        about = {"verify": str(pki["folder"] / "ca.pem"), "headers": {"Authorization": "Bearer secret-1"}}
        long = bytes(2**20 + 1)
        for _ in range(2):
            assert requests.post(f"{url}/v2/models/tail/infer", data=long, **about).status_code == 413
        del about["headers"]
        assert requests.post(f"{url}/v2/models/tail/infer", data=b"{}", **about).status_code == 401


@pytest.mark.parametrize(
    ("name", "ca", "words"),
    [
        ("expired", "ca.pem", "expired"),
        ("elsewhere", "ca.pem", "doesn't match|mismatch"),
        ("server", "stranger.pem", "verify failed"),
    ],
)
def test_a_server_that_is_not_the_right_one_gets_nothing(bundle, pki, name, ca, words):
    with (
        _served(bundle, pki, name) as (url, _),
        Client(url, retries=0, credentials=Credentials(ca_file=pki["folder"] / ca)) as client,
        pytest.raises(RemoteError, match=f"certificate.*({words})"),
    ):
        client.infer("tail", FEATURES)


def test_the_other_scheme_is_advised(mutual, server):
    for url, words in (
        (server.replace("http:", "https:"), "answers without TLS: is its address http"),
        (mutual.replace("https:", "http:"), "One with TLS has an https:// address"),
        (mutual, r"certificate verify failed.*; is it the right server\? A private authority is named by ca_file"),
    ):
        with Client(url, retries=0) as client, pytest.raises(RemoteError, match=words):
            client.metadata("tail")


def test_old_tls_is_not_spoken(mutual):
    host, port = mutual.removeprefix("https://").split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, int(port)), 5) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw)


def test_an_idle_connection_does_not_keep_a_server_from_its_end(bundle, pki):
    with _served(bundle, pki, "server", "--drain-seconds", "100") as (url, process):
        host, port = url.removeprefix("https://").split(":")
        context = ssl.create_default_context(cafile=pki["folder"] / "ca.pem")
        with (
            socket.create_connection((host, int(port)), 5) as raw,
            context.wrap_socket(raw, server_hostname=host) as idle,
        ):
            idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(65536).startswith(b"HTTP/1.1 200")
            process.terminate()
            assert process.wait(15) == 0


def test_the_command_speaks_tls(bundle, mutual, pki, image_folder):
    image = next(image_folder.rglob("*.*"))
    camera, folder = pki["camera"], pki["folder"]
    shown = ("--ca-file", folder / "ca.pem", "--certificate", camera.cert, "--key", camera.key)
    done = edgesdk("run", bundle / "edge", image, "--server", mutual, *shown, "--token-file", folder / "token")
    assert done.returncode == 0, done.stderr
    assert_one_line_error(edgesdk("run", bundle / "edge", image, "--server", mutual, *shown), "401", "bearer token")


def test_a_public_address_needs_tls_and_a_token(bundle, pki):
    server, folder = pki["server"], pki["folder"]
    public = ("serve", bundle / "server0", "--host", "0.0.0.0", "--port", "0")
    secret = ("--token-file", folder / "token")
    certified = ("--tls-cert", server.cert, "--tls-key", server.key)
    for given in ((), secret, certified):
        assert_one_line_error(edgesdk_here(*public, *given), "0.0.0.0", "--insecure")
    with serving(bundle / "server0", "--host", "0.0.0.0", "--insecure") as (url, _):
        assert requests.get(url.replace("0.0.0.0", "127.0.0.1") + "/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tls-cert", "server.key"), "no PEM certificate"),
        (("--tls-cert", "server.pem", "--tls-key", "camera.key"), "no PEM certificate with its key"),
        (("--tls-cert", "nothing.pem"), "No such file"),
        (("--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-client-ca", "token"), "no PEM certificates"),
        (("--token-file", "nothing"), "tokens cannot be read"),
    ],
)
def test_bad_files_are_one_line(bundle, pki, options, words):
    files = [each if str(each).startswith("--") else pki["folder"] / each for each in options]
    assert_one_line_error(edgesdk_here("serve", bundle / "server0", "--port", "0", *files), words)


def test_a_key_without_a_certificate_is_wrong_usage(bundle, pki):
    done = edgesdk_here("serve", bundle / "server0", "--tls-key", pki["server"].key)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("url", "credentials", "words"),
    [
        ("http://example.org:8000", {"token_file": "token"}, "unencrypted"),
        ("https://example.org", {"token_file": "nothing"}, "no token can be read"),
        ("https://example.org", {"token_file": "server.pem"}, "is no token"),
        ("https://example.org", {"ca_file": "token"}, "no PEM certificates"),
        ("https://example.org", {"certificate": "server.pem", "key": "camera.key"}, "no PEM certificate with its key"),
        ("https://example.org", {"key": "camera.key"}, "needs the certificate"),
    ],
)
def test_credentials_that_cannot_work_are_refused_before_anything_is_sent(pki, url, credentials, words):
    files = {name: pki["folder"] / file for name, file in credentials.items()}
    with pytest.raises(ConfigError, match=words):
        Client(url, credentials=Credentials(**files))
