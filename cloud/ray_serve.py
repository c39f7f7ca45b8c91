"""The same application on Ray Serve: replicas on the machines of a cluster, that come and go with the load.

Each replica is a whole application, its batcher included, so that requests are joined by one rule on every engine.
The connections are Ray's proxies' matter, without our bounds on headers and slow clients. All of it is one operator's:
Ray moves requests between its processes by pickle, and trusts whoever joins the cluster.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from edge_sdk.errors import DeviceError, needs_extra

from .server import free_port
from .service import Service, Settings
from .tls import TLS

__all__ = ["Replicas", "run"]

APPLICATION = "edgesdk"


class Replicas(NamedTuple):
    """How many, and what each needs.

    Attributes:
        least: that always run.
        most: that run under load.
        num_cpus: that Ray sets aside for each.
        num_gpus: likewise.
        max_waiting: requests that may wait in one. Ray sends it twice as many, so that what finds no place is refused
            there, with Retry-After; as many again may wait at a proxy, which refuses more without.
    """

    least: int
    most: int
    num_cpus: float
    num_gpus: float
    max_waiting: int


def run(
    settings: Settings,
    replicas: Replicas,
    host: str,
    port: int,
    *,
    on_ready: Callable[[int], None],
    tls: TLS | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then let the replicas finish what they accepted, and end.

    Joins the cluster that RAY_ADDRESS names, and no other; without it, starts Ray on this machine.

    Args:
        settings: of the service in each replica; its paths must be the same on all machines of the cluster.
        replicas: how many of them.
        host: that each machine's proxy listens on.
        port: likewise; 0 takes one that is free here.
        on_ready: called with the port once all replicas of the least number answer.
        tls: None serves in the clear; clients' certificates are not asked for, because Ray's proxies cannot.

    Raises:
        MissingExtra: Ray is not installed.
        DeviceError: the address cannot be listened on, Serve runs on the cluster already, or no replica starts.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on all addresses, and runs whatever it is sent: only for who knows a token that no one else does.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with needs_extra("ray", "edgesdk serve --engine ray"):
        import ray
        import ray.serve
        from ray.serve.config import HTTPOptions

    serve: Any = ray.serve  # its types fit neither its documents nor themselves
    port = free_port(host, port)
    stop = threading.Event()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    if _serves_already(ray):
        ray.shutdown()
        raise DeviceError(
            f"Ray Serve runs on the cluster at {address} already, with a port and certificates of its own"
        )
    try:
        certificates: dict[str, Any] = {}
        if tls is not None:
            certificates = {"ssl_certfile": str(tls.certificate), "ssl_keyfile": str(tls.key or tls.certificate)}
        serve.start(http_options=HTTPOptions(host=host, port=port, **certificates))
        deployment = serve.deployment(
            serve.ingress(lambda: Service(settings).app)(),
            name=APPLICATION,
            max_ongoing_requests=2 * replicas.max_waiting,
            max_queued_requests=2 * replicas.max_waiting,
            graceful_shutdown_timeout_s=settings.drain_seconds,
            ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
            **_count(replicas),
        )
        try:
            serve.run(deployment.bind(), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise DeviceError(f"Ray starts no replica: {lines[-1].strip()}") from error
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        on_ready(port)
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def _serves_already(ray: Any) -> bool:
    """Whether somebody started Serve on this cluster: its port would not be ours, and our end would be theirs."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _count(replicas: Replicas) -> dict[str, Any]:
    if replicas.most <= replicas.least:
        return {"num_replicas": replicas.least}
    scaling = {
        "min_replicas": replicas.least,
        "max_replicas": replicas.most,
        # A replica is busy long before its queue is full: half of a full one is where another is worth starting.
        "target_ongoing_requests": max(replicas.max_waiting / 2, 1.0),
    }
    return {"autoscaling_config": scaling}
