"""The README's table of audits, from those that are kept in the repository (tools/keep_audit.py).

    python tools/audit_table.py [--write]

Prints the table; --write puts it into README.md. Of several servers it shows, for each number of them that pool what
they see, those from whom most was rebuilt. Below stands how much larger a defended model's error of reconstruction is
than the others', in brackets where their accuracies are further apart than equal ones may be, and how well FSInfo ranks
what the best attack reached, over all adversaries of all audits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from keep_audit import AUDITS
from make_zoo import ZOO
from marked_table import markdown, replaced
from noise_levels import LEVELS

from export.audit.plots import points_of, ranks
from export.audit.results import AUDIT_FILE, AuditReport, ViewResult, load_report, worst_of
from export.audit.run import ATTACKS

README = Path(__file__).resolve().parent.parent / "README.md"
METRICS = ("FSInfo", "MINE", "distance correlation", "effective information")
DEFENDED = ("siftfunnel", "privdfs", "fsinfoguard")
COMPARED = ("none", "gaussian", "dropout", "nopeek")
EQUAL = 0.015
"""Between accuracies on the test images, by which no setting was chosen: more, and the comparison is of that too."""


def main() -> None:
    """Parse the command line, print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    texts = {"audits": table(), "floors": floors(), "errors": errors(), "rank": rank()}
    if parser.parse_args().write:
        readme = README.read_text()
        for name, text in texts.items():
            readme = replaced(readme, f"{name}, by tools/audit_table.py", text)
        README.write_text(readme)
    else:
        print("\n\n".join(texts.values()))


def table() -> str:
    """Markdown, without a line's end."""
    header = ["defense", "accuracy", "edge MFLOP", "bytes", "FSInfo", "MINE", "dCor²", "effective", *ATTACKS]
    rows = [row(report, view, name + note) for name, report in kept_audits() for view, note in _views(report)]
    return markdown(header, rows)


def floors() -> str:
    """A sentence on what the mean image reaches on the images of each attack."""
    report = next(iter(kept_audits()))[1]
    view = report.worst
    others = [attack for attack in view.attacks if attack.name != "blind"]
    each = ", ".join(f"{view.floor(a):.2f} dB on the {a.num_images:,} images of {a.name}" for a in others)
    return f"The floor, the mean image of the attackers' own: {each}."


def errors() -> str:
    """A table of ratios: the mean squared error that the best attack leaves, over that which it leaves elsewhere."""
    kept, rows = list(kept_audits()), list[list[str]]()
    compared = [each for each in kept if each[1].defense in COMPARED]
    for name, report in kept:
        if report.defense in DEFENDED:
            rows.append([_with_accuracy(name, report), *(_ratio(report, other) for _, other in compared)])
    return markdown(["error, over that of", *(_with_accuracy(*each) for each in compared)], rows)


def _with_accuracy(name: str, report: AuditReport) -> str:
    return f"{name}, {report.accuracy['test'] * 100:.2f} %"


def _ratio(report: AuditReport, other: AuditReport) -> str:
    ratio, error = error_ratio(report, other)
    apart = abs(report.accuracy["test"] - other.accuracy["test"]) > EQUAL
    return f"({ratio:.2f} ± {error:.2f})" if apart else f"{ratio:.2f} ± {error:.2f}"


def error_ratio(one: AuditReport, other: AuditReport) -> tuple[float, float]:
    """The ratio of the mean squared errors on the images that both met, and its standard error (delta method)."""
    a, b = (10 ** (-np.asarray(each.worst.best_attack.psnr_each) / 10) for each in (one, other))
    met = min(len(a), len(b))
    a, b = a[:met], b[:met]  # the first of one order, so the same
    ratio = a.mean() / b.mean()
    return float(ratio), float((a - ratio * b).std(ddof=1) / math.sqrt(met) / b.mean())


def rank() -> str:
    """A sentence on whether FSInfo tells what attacks reach."""
    levels = [load_report(path) for path in sorted(LEVELS.glob("*.json"))]
    points = points_of([*(report for _, report in kept_audits()), *levels])
    assumed = sum(point.assumed for point in points)
    found = ranks(points)
    if found.of_all is None:
        return f"FSInfo is known of {len(points)} attacked adversaries, too few to correlate."
    text = (
        f"Spearman's rank correlation of FSInfo and the best attack's PSNR is {found.of_all:.2f} over {len(points)} "
        f"adversaries, of these models and of {len(levels)} levels of noise (tools/noise_levels.py)"
    )
    if found.added is not None:
        text += f"; {found.added:.2f} over the {len(points) - assumed} of them whose device adds noise"
    if found.assumed is not None:
        text += f"; {found.assumed:.2f} over the {assumed} whose FSInfo is under an assumed noise, on another scale"
    return f"{text}. Every attack's PSNR is over the first {points[0].met:,} images."


def kept_audits() -> Iterator[tuple[str, AuditReport]]:
    """Every audit of the repository, by the name that the table gives it: the undefended first, then shipped models."""
    shipped = sorted(ZOO.glob(f"*/{AUDIT_FILE}"), key=lambda path: (not path.parent.name.startswith("none-"), path))
    paths = [*shipped, *sorted(AUDITS.glob("*.json"))]
    for path in paths:
        report = load_report(path)
        name = f"`{report.title}`"
        yield (name if path.name == AUDIT_FILE else f"{name} ({path.stem})"), report


def _views(report: AuditReport) -> Iterator[tuple[ViewResult, str]]:
    """Of each number of servers the set from which most was rebuilt, with the number."""
    attacked = [view for view in report.views if view.attacks]
    servers = {server for view in report.views for server in view.servers}
    for size in sorted({len(view.servers) for view in attacked}):
        yield (
            worst_of([view for view in attacked if len(view.servers) == size]),
            "" if len(servers) == 1 else f", {size} of {len(servers)} servers",
        )


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
        text = "" if made is None else f"{made.psnr_db:.2f} dB ± {made.psnr_std_error:.2f}, {made.ssim:.3f}"
        cells.append(f"**{text}**" if attack == best else text)
    return cells


if __name__ == "__main__":
    main()
