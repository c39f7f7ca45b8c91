"""Who may ask, and how often."""

import asyncio
import os
import time
from collections import Counter

import pytest
import requests

import cloud.guard
import cloud.tokens
from cloud.guard import Guard, Limits, RateLimit
from cloud.tokens import TokenFile
from edge_sdk.errors import ConfigError

from ..conftest import serving


async def _application(scope, receive, send):
    await asyncio.sleep(scope.get("takes", 0))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


async def _ask(guard, *headers, path="/v2/models/tail/infer", client=("10.0.0.1", 5), takes=0):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers), "client": client, "takes": takes}
    await guard(scope, None, send)
    return sent[0]["status"], dict(sent[0]["headers"])


def _status(guard, *headers, **how):
    return asyncio.run(_ask(guard, *headers, **how))[0]


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# the cameras\nabc123\n\nxyz  # the robot\n")
    return path


def _bearer(token, scheme=b"Bearer"):
    return (b"authorization", scheme + b" " + token)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([_bearer(b"abc123")], 200),
        ([_bearer(b"xyz", b"bearer")], 200),
        ([], 401),
        ([_bearer(b"abc12")], 401),
        ([_bearer(b"abc1234")], 401),
        ([_bearer(b"")], 401),
        ([_bearer(b"# the cameras")], 401),
        ([_bearer(b"abc123", b"Basic")], 401),
        ([(b"authorization", b"abc123")], 401),
        ([(b"authorization", b"\xff\x00")], 401),
        ([_bearer(b"abc123"), _bearer(b"nope")], 401),
    ],
)
def test_a_token_of_the_file_is_needed(tokens, headers, status):
    guard = Guard(_application, TokenFile(tokens), Limits())
    found, answered = asyncio.run(_ask(guard, *headers))
    assert found == status
    assert (b"www-authenticate" in answered) == (status == 401)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/metrics", 401),
        ("/v2", 401),
        ("/v2/health/live/", 401),
        ("//v2/health/live", 401),
    ],
)
def test_health_alone_is_open(tokens, path, status):
    assert _status(Guard(_application, TokenFile(tokens), Limits()), path=path) == status


def test_the_file_is_read_anew_when_it_changes(tokens, monkeypatch):
    monkeypatch.setattr(cloud.tokens, "LOOK_SECONDS", 0)
    guard = Guard(_application, TokenFile(tokens), Limits())
    tokens.write_text("new\n")
    os.utime(tokens, ns=(1, 1))
    assert _status(guard, _bearer(b"abc123")) == 401
    assert _status(guard, _bearer(b"new")) == 200


def test_the_last_token_can_be_taken_back(tokens, monkeypatch, caplog):
    monkeypatch.setattr(cloud.tokens, "LOOK_SECONDS", 0)
    guard = Guard(_application, TokenFile(tokens), Limits())
    kept = tokens.read_text()
    for take_back in (lambda: tokens.write_text("# nobody\n"), tokens.unlink):
        assert _status(guard, _bearer(b"abc123")) == 200
        take_back()
        assert _status(guard, _bearer(b"abc123")) == 401
        assert _status(guard, _bearer(b"")) == 401
        assert _status(guard) == 401
        tokens.write_text(kept)
    assert len(caplog.messages) == 2  # one for each time, not one a request
    assert "nobody is let in until there are tokens again" in caplog.messages[0]


@pytest.mark.parametrize("content", [b"", b"# none\n", b"caf\xc3\xa9\n", None])
def test_a_file_without_tokens_is_refused_at_the_start(tmp_path, content):
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="token"):
        TokenFile(path)


def test_one_address_cannot_ask_faster_than_the_rate(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(cloud.guard.time, "monotonic", lambda: clock[0])
    guard = Guard(_application, None, Limits(max_rate=2))
    assert [_status(guard) for _ in range(4)] == [200, 200, 429, 429]
    assert _status(guard, client=("10.0.0.2", 5)) == 200
    assert _status(guard, client=("10.0.0.1", 6)) == 429  # another connection of the same address
    _, headers = asyncio.run(_ask(guard))
    assert headers[b"retry-after"] == b"1"
    clock[0] += 0.5
    assert [_status(guard) for _ in range(2)] == [200, 429]
    clock[0] += 60
    assert [_status(guard) for _ in range(3)] == [200, 200, 429]  # no more than a second's worth is saved up


def test_guesses_of_tokens_are_counted_like_requests(tokens, monkeypatch):
    """Beyond the rate not even the right one is told from the others; another address does not notice."""
    clock = [1000.0]
    monkeypatch.setattr(cloud.guard.time, "monotonic", lambda: clock[0])
    guard = Guard(_application, TokenFile(tokens), Limits(max_rate=3))
    guesses = [_bearer(b"guess1"), _bearer(b"guess2"), _bearer(b"guess3"), _bearer(b"abc123")]
    assert [_status(guard, guess) for guess in guesses] == [401, 401, 401, 429]
    assert _status(guard, _bearer(b"abc123"), client=("10.0.0.2", 5)) == 200
    clock[0] += 1  # no more is owed than a second's worth, however many were refused
    assert [_status(guard, _bearer(b"abc123")) for _ in range(4)] == [200, 200, 200, 429]


def test_what_finds_no_place_is_not_counted(tokens, monkeypatch):
    monkeypatch.setattr(cloud.guard.time, "monotonic", lambda: 1000.0)
    guard = Guard(_application, TokenFile(tokens), Limits(max_rate=2, max_concurrency=1))
    right, wrong, client = [_bearer(b"abc123")], [_bearer(b"no")], ("10.0.0.1", 5)
    assert guard.enter(right, client) is None
    assert [guard.enter(right, client).status for _ in range(5)] == [503] * 5
    guard.leave()
    assert guard.enter(right, client) is None
    assert guard.enter(wrong, client).status == 429


def test_health_checks_with_a_token_cost_nothing_but_their_guesses_do(tokens, monkeypatch):
    monkeypatch.setattr(cloud.guard.time, "monotonic", lambda: 1000.0)
    guard = Guard(_application, TokenFile(tokens), Limits(max_rate=2))
    right, wrong, client = [_bearer(b"abc123")], [_bearer(b"no")], ("10.0.0.1", 5)
    assert [guard.check(right, client) for _ in range(5)] == [None] * 5
    assert [guard.check(wrong, client).status for _ in range(3)] == [401, 401, 429]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),  # one subscriber's network
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),  # IPv4, as a socket of both families shows it
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "", True),
    ],
)
def test_an_address_of_ipv6_counts_by_its_network(first, second, same):
    guard = Guard(_application, None, Limits(max_rate=1))
    assert _status(guard, client=(first, 5)) == 200
    assert _status(guard, client=(second, 5)) == (429 if same else 200)


def test_a_rate_below_one_a_second():
    limit = RateLimit(0.1)
    assert limit.wait_seconds("a") == 0
    assert 9 < limit.wait_seconds("a") <= 10


def test_only_so_many_clients_are_remembered(monkeypatch):
    monkeypatch.setattr(cloud.guard, "MOST_CLIENTS", 3)
    limit = RateLimit(1)
    for client in "abcd":
        assert limit.wait_seconds(client) == 0
    assert limit.wait_seconds("d") > 0
    assert limit.wait_seconds("a") == 0


def test_more_than_may_be_under_way_are_refused():
    guard = Guard(_application, None, Limits(max_concurrency=2))

    async def three():
        return await asyncio.gather(*(_ask(guard, takes=0.05) for _ in range(3)), _ask(guard, path="/v2/health/live"))

    assert [status for status, _ in asyncio.run(three())] == [200, 200, 503, 200]
    assert _status(guard) == 200


def test_comparing_takes_as_long_wherever_tokens_differ(tokens):
    """Not the time itself, which is noise, but what it hangs on: every token is compared, a whole digest each."""
    compared = []
    file = TokenFile(tokens)
    real = cloud.tokens.hmac.compare_digest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloud.tokens.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
        for token in (b"abc123", b"x", b"y" * 10_000):
            compared.clear()
            file.allows(b"Bearer " + token)
            assert compared == [(32, 32)] * 2


def test_refusals_are_counted_by_status(tokens, bundle):
    counts = Counter()

    def ask(path, token="guess"):
        answer = requests.get(url + path, headers={"Authorization": f"Bearer {token}"})
        counts[answer.status_code] += 1
        return answer

    with serving(bundle / "server0", "--token-file", str(tokens), "--max-rate", "1") as (url, _):
        for _ in range(5):
            ask("/v2/models/tail")
        while (answer := ask("/metrics", "xyz")).status_code == 429:
            time.sleep(0.3)
    assert (counts[200], counts[401] > 0, counts[429] > 0) == (1, True, True)
    told = [line for line in answer.text.splitlines() if line.startswith("edgesdk_refused")]
    assert sorted(told) == [f'edgesdk_refused_total{{status="{each}"}} {counts[each]:.1f}' for each in (401, 429)]
