"""What an audit has to have tried, and what one left out."""

from __future__ import annotations

from collections.abc import Iterator

from .results import AuditReport
from .run import ATTACKS, Adversary, adversaries


def threat_model(report: AuditReport) -> list[Adversary]:
    """Those that the defense claims something against, of whom an audit without ``collude`` attacks every one."""
    servers = {server for view in report.views for server in view.servers}
    return [each for each in adversaries(len(servers), None) if each.in_threat_model]


def left_out(report: AuditReport) -> Iterator[tuple[str, list[str]]]:
    """Each adversary of the threat model that did not meet every attack, and those that are missing."""
    views = {view.name: view for view in report.views}
    for adversary in threat_model(report):
        view = views.get(adversary.name)
        made = {attack.name for attack in view.attacks} if view else set()
        if missing := [name for name in ATTACKS if name not in made]:
            yield adversary.name, missing
