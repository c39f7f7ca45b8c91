"""Keep an audit in the repository: a shipped model's beside its weights, another's in export/zoo/compared/.

    python tools/keep_audit.py REPORT [--name NAME]

REPORT is the folder that edgesdk audit wrote: a whole audit, of the float32 encoder and features. A shipped model's
card is written anew; an audit of other weights is kept under NAME, for `edgesdk audit` to compare with as well.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
from make_zoo import ZOO, card

from edge_sdk.errors import EdgeSDKError
from edge_sdk.files import write_aside
from export.audit.coverage import left_out
from export.audit.results import AUDIT_FILE, differences, load_report
from export.audit.run import code_sha256
from export.checkpoint import load_checkpoint

AUDITS = ZOO / "compared"


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--name", help="of a model that is not shipped")
    arguments = parser.parse_args()
    try:
        print(keep(arguments.report, arguments.name))
    except EdgeSDKError as error:
        sys.exit(f"keep_audit: {error}")


def keep(folder: Path, name: str | None) -> Path:
    """Where the audit was put.

    Raises:
        DataError: the folder has no finished audit.
    """
    report = load_report(folder / AUDIT_FILE)
    shipped = {path.parent: load_checkpoint(path) for path in ZOO.glob("*/model.safetensors")}
    lacking = dict(left_out(report))
    home = next((home for home, model in shipped.items() if model.weights_sha256 == report.weights_sha256), None)
    if home is None and name is None:
        sys.exit(f"keep_audit: {folder}: not the audit of a shipped model; keep it under a --name")
    if (report.precision, report.wire_dtype) != ("fp32", "float32") or lacking:
        sys.exit(f"keep_audit: {folder}: not of float32, or incomplete ({lacking}); a figure beside others must be")
    if report.code_sha256 != code_sha256():
        sys.exit(f"keep_audit: {folder}: made by other attackers than these; audit again")
    path = home / AUDIT_FILE if home else AUDITS / f"{name}-{report.config['backbone']}.json"
    for other in {*ZOO.glob(f"*/{AUDIT_FILE}"), *AUDITS.glob("*.json")} - {path}:
        if different := differences(load_report(other), report):
            sys.exit(f"keep_audit: {folder}: {', '.join(different)} differ from {other}'s, beside which it would stand")
    path.parent.mkdir(exist_ok=True)
    write_aside(path, msgspec.json.encode(report) + b"\n")
    if home:
        (home / "README.md").write_text(card(shipped[home], report))
    return path


if __name__ == "__main__":
    main()
