"""The README's table of audits, from those that are kept in the repository (tools/keep_audit.py).

    python tools/audit_table.py [--write]

Prints the table; --write puts it into README.md. Of several servers it shows the one of whom most was rebuilt, and all
of them together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keep_audit import AUDITS
from make_zoo import ZOO
from marked_table import markdown, replaced

from export.audit.results import AUDIT_FILE, AuditReport, ViewResult, load_report
from export.audit.run import ATTACKS

README = Path(__file__).resolve().parent.parent / "README.md"
METRICS = ("FSInfo", "MINE", "distance correlation", "effective information")


def main() -> None:
    """Parse the command line, print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    text = table()
    if parser.parse_args().write:
        README.write_text(replaced(README.read_text(), "audits, by tools/audit_table.py", text))
    else:
        print(text)


def table() -> str:
    """Markdown, without a line's end."""
    paths = [*sorted(ZOO.glob(f"*/{AUDIT_FILE}")), *sorted(AUDITS.glob("*.json"))]
    header = ["defense", "accuracy", "edge MFLOP", "bytes", "FSInfo", "MINE", "dCor²", "effective", *ATTACKS]
    rows: list[list[str]] = []
    for path in paths:
        report = load_report(path)
        name = f"`{report.defense}`" if path.name == AUDIT_FILE else f"`{report.defense}` ({path.stem})"
        rows += [row(report, view, name + note) for view, note in _views(report)]
    return markdown(header, rows)


def _views(report: AuditReport) -> list[tuple[ViewResult, str]]:
    if len(report.views) == 1:
        return [(report.views[0], "")]
    return [(report.worst, ", a server"), (report.views[-1], f", all {len(report.views[-1].servers)} servers")]


def row(report: AuditReport, view: ViewResult, name: str) -> list[str]:
    """One adversary's line."""
    share = view.num_features / sum(each.num_features for each in report.views if len(each.servers) == 1)
    cells = [name, f"{report.accuracy['test'] * 100:.2f} %", f"{report.edge_flops / 1e6:.2f}"]
    cells.append(f"{report.wire_bytes * share:,.0f}")
    for metric in METRICS:
        found = view.metric(metric)
        cells.append("" if found is None else f"{found.value:,.0f}" if found.value >= 100 else f"{found.value:.3g}")
    attacks = {attack.name: attack for attack in view.attacks}
    best = view.best_attack.name
    for attack in ATTACKS:
        made = attacks.get(attack)
        text = "" if made is None else f"{made.psnr_db:.2f} dB, {made.ssim:.3f}"
        cells.append(f"**{text}**" if attack == best else text)
    return cells


if __name__ == "__main__":
    main()
