"""Measurements of servers beside each other as tables: each with its share of raw, and ours over each of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from marked_table import markdown

from edge_sdk.cli.tables import print_table
from edge_sdk.profile.machine import Machine

CONCURRENCIES = (1, 8, 32)
OURS = "edgesdk"


class Measured(NamedTuple):
    """Requests a second, and milliseconds, at one concurrency."""

    rate: float
    p50: float
    p99: float


class Serving(NamedTuple):
    """What was measured of one model.

    Attributes:
        model: its name.
        seconds: of each measurement under load.
        raw: rows a second of the model without any server, by round, at each batch size.
        found: of each server, at each concurrency, by round.
        ready: seconds from the start to the first answer of readiness, by start.
        idle: MiB after one request, by start.
        busy: MiB at the end.
        versions: of each server's packages.
    """

    model: str
    seconds: int
    raw: Mapping[int, Sequence[float]]
    found: Mapping[str, Mapping[int, Sequence[Measured]]]
    ready: Mapping[str, Sequence[float]]
    idle: Mapping[str, Sequence[float]]
    busy: Mapping[str, float]
    versions: Mapping[str, str]


class Table(NamedTuple):
    """A caption, a header and rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(serving: Serving) -> tuple[Table, Table]:
    """Of all servers, and of the ratios of ours to the others."""
    return _servers(serving), _ratios(serving)


def show(serving: Serving) -> None:
    """Both on standard output, and the versions."""
    for table in tables(serving):
        print_table(*table)
    for line in _versions(serving):
        print(line)


def as_markdown(serving: Serving) -> str:
    """Both for a README, and the versions."""
    paragraphs = [text for table in tables(serving) for text in (table.title, markdown(table.header, table.rows))]
    return "\n\n".join([*paragraphs, "; ".join(_versions(serving)) + "."]) + "\n"


def _servers(serving: Serving) -> Table:
    best = np.max(list(serving.raw.values()), 0)
    by_batch = ", ".join(f"{np.median(rates):,.0f} at batch {size}" for size, rates in serving.raw.items())
    rows = []
    for name, found in serving.found.items():
        row = [name]
        for concurrency in CONCURRENCIES:
            rates = np.array([each.rate for each in found[concurrency]])
            shares = rates / best
            row.append(f"{np.median(rates):,.0f} ({_spread(shares, '; ')})")
        row.append(f"{np.median([each.p50 for each in found[1]]):.3f}")
        row.append(", ".join(f"{np.median([each.p99 for each in found[c]]):.1f}" for c in CONCURRENCIES))
        row.append(f"{np.median(serving.ready[name]):.2f}")
        row.append(f"{np.median(serving.idle[name]):.0f}, {serving.busy[name]:.0f}")
        rows.append(row)
    title = (
        f"{serving.model}: medians of {len(best)} rounds, {serving.seconds} s each, on {Machine.here()}; raw is "
        f"{np.median(best):,.0f} rows/s ({best.min():,.0f}-{best.max():,.0f}; {by_batch}), beside each rate is its "
        "share of that, round by round: the median, and the lowest to the highest"
    )
    rates_header = [f"req/s at {c} (of raw)" for c in CONCURRENCIES]
    latencies = ["p50 ms at 1", f"p99 ms at {', '.join(map(str, CONCURRENCIES))}"]
    return Table(title, ["server", *rates_header, *latencies, "ready s", "MiB idle, after"], rows)


def _ratios(serving: Serving) -> Table:
    ours, rows = _series(serving, OURS), []
    for name in serving.found:
        if name not in (OURS, "echo"):  # which runs no model
            theirs = _series(serving, name)
            rows.append([name, *(_spread(ours[quantity] / theirs[quantity]) for quantity in ours)])
    title = (
        f"{serving.model}: {OURS} over each other server, round by round: the median (lowest-highest); better is above "
        "1 for req/s, below 1 for all else"
    )
    return Table(title, [f"{OURS} over", *ours], rows)


def _series(serving: Serving, name: str) -> dict[str, np.ndarray]:
    """What is compared, by round or by start."""
    found, most = serving.found[name], CONCURRENCIES[-1]
    rates = {f"req/s at {c}": np.array([each.rate for each in found[c]]) for c in CONCURRENCIES}
    return {
        **rates,
        "p50 at 1": np.array([each.p50 for each in found[1]]),
        f"p99 at {most}": np.array([each.p99 for each in found[most]]),
        "start to ready": np.array(serving.ready[name]),
        "MiB idle": np.array(serving.idle[name]),
    }


def _spread(values: np.ndarray, between: str = " (") -> str:
    median, low, high = (_figure(value) for value in (np.median(values), values.min(), values.max()))
    return f"{median}{between}{low}-{high}" + ")" * (between == " (")


def _figure(value: float) -> str:
    """Two decimals, or two digits of what is small."""
    return f"{value:.2f}" if value >= 0.1 else np.format_float_positional(value, 2, fractional=False)


def _versions(serving: Serving) -> list[str]:
    return [f"{name}: {version}" for name, version in serving.versions.items()]
