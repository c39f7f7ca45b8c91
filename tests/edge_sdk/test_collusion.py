"""Two parties are never one server, whatever the address says."""

import socket
import warnings

import pytest

from edge_sdk.collusion import ColocationWarning, Origins, resolve
from edge_sdk.errors import CollusionError, RemoteError


@pytest.fixture
def names(monkeypatch):
    """Host names that resolve without a network; every other one does as ever."""
    table = {"one.test": ["198.51.100.1"], "alias.test": ["198.51.100.9", "198.51.100.1"], "two.test": ["198.51.100.2"]}
    real = socket.getaddrinfo

    def look_up(host, port, **options):
        if host not in table:
            return real(host, port, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in table[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


def _admit(origins, placement, url):
    origins.admit(placement, url, resolve(url))


SAME = [
    ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    ("http://127.0.0.1:8000", "http://localhost:8000"),
    ("http://127.0.0.1:8000", "http://127.9.9.9:8000"),
    ("http://127.0.0.1:8000", "http://[::1]:8000"),
    ("http://127.0.0.1:8000", "http://[::ffff:127.0.0.1]:8000"),
    ("http://127.0.0.1:8000", "http://0.0.0.0:8000"),
    ("http://127.0.0.1:8000", "https://127.0.0.1:8000/"),
    ("http://198.51.100.1", "http://198.51.100.1:80"),
    ("https://198.51.100.1", "https://198.51.100.1:443"),
    ("http://198.51.100.1:9", "http://[::ffff:198.51.100.1]:9"),
    ("http://one.test:9", "http://alias.test:9"),
    ("http://ONE.test:9", "http://198.51.100.1:9"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_one_server_under_two_names_is_refused(names, a, b):
    names["ONE.test"] = names["one.test"]
    origins = Origins()
    _admit(origins, "server0", a)
    with pytest.raises(CollusionError, match=r"server1 .* and server0 .* are one server") as caught:
        _admit(origins, "server1", b)
    assert a in str(caught.value)
    assert b in str(caught.value)


def test_this_machine_is_known_by_its_own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback ones")
        own = probe.getsockname()[0]
    assert resolve(f"http://{own}:8000") == resolve("http://127.0.0.1:8000") != resolve("http://198.51.100.1:8000")


def test_an_address_that_is_connected_to_is_compared_too(names):
    """A name that meant another address when it was admitted."""
    origins = Origins()
    _admit(origins, "server0", "http://one.test:1")
    _admit(origins, "server1", "http://two.test:1")
    origins.meet("server1", "http://two.test:1", "198.51.100.2", 1)
    origins.meet("server1", "http://two.test:1", "198.51.100.7", 1)
    with pytest.raises(CollusionError, match=r"server1 .* and server0 .* are one server"):
        origins.meet("server1", "http://two.test:1", "198.51.100.1", 1)
    with pytest.raises(CollusionError):
        origins.meet("server0", "http://one.test:1", "198.51.100.7", 1)


@pytest.mark.filterwarnings("error")
def test_servers_at_different_addresses_are_admitted_in_silence(names):
    origins = Origins()
    _admit(origins, "server0", "http://one.test:8000")
    _admit(origins, "server1", "http://two.test:8000")
    _admit(origins, "server0", "http://one.test:8000")  # after a failure, anew


def test_two_ports_of_one_address_are_warned_of_once(names):
    origins = Origins()
    _admit(origins, "server0", "http://one.test:1")
    with pytest.warns(ColocationWarning, match=r"both at 198\.51\.100\.1"):
        _admit(origins, "server1", "http://alias.test:2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _admit(origins, "server1", "http://alias.test:2")
        _admit(origins, "server0", "http://one.test:1")


def test_a_name_that_comes_to_mean_another_servers_address_is_refused(names):
    origins = Origins()
    _admit(origins, "server0", "http://one.test:1")
    _admit(origins, "server1", "http://two.test:1")
    names["two.test"] = ["198.51.100.1"]
    with pytest.raises(CollusionError):
        _admit(origins, "server1", "http://two.test:1")


def test_a_demonstration_may_share_a_server_and_hears_what_that_means():
    origins = Origins(allow_colocated=True)
    _admit(origins, "server0", "http://127.0.0.1:1")
    with pytest.warns(ColocationWarning, match="PRIVACY IS VOID"):
        _admit(origins, "server1", "http://localhost:1")


def test_a_name_without_an_address_is_an_error(monkeypatch):
    def fail(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(RemoteError, match="has no address"):
        resolve("http://nowhere.test:1")
