"""``edgesdk inspect``: what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..tensors import TensorSpec


def inspect(
    bundle: Path = typer.Argument(..., help="A bundle, or one party's folder of it."),
    as_json: bool = typer.Option(False, "--json", help="The manifests as JSON."),
) -> None:
    """Verify a bundle's hashes and print what each party holds.

    Folders of several exports are refused; a party that is not there, and a file that does not belong, are said on
    standard error.
    """
    import msgspec

    from ..bundle import EDGE, SUMS_FILE, open_parties

    opened = open_parties(bundle)
    here = [party.manifest.party for party in opened]
    asked = opened[0].manifest.servers if here[0] == EDGE else ()
    absent = [] if opened[0].path == bundle else [party for party in (EDGE, *asked) if party not in here]
    if absent:
        typer.echo(f"edgesdk: warning: {bundle}: not a whole bundle, without {', '.join(absent)}", err=True)
    for party in opened:
        # Nothing reads it; it may still be what this party must not have.
        if strange := sorted(path.name for path in party.path.iterdir() if path.name not in {*party.files, SUMS_FILE}):
            told = f"holds what is not of the bundle, and was not verified: {', '.join(strange)}"
            typer.echo(f"edgesdk: warning: {party.path}: {told}", err=True)
    if as_json:
        content = {party.manifest.party: party.manifest for party in opened}
        typer.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())
        return
    for party in opened:
        manifest = party.manifest
        typer.echo(f"{party.path}: {manifest.party} of bundle {manifest.bundle_id[:12]}, defense {manifest.defense}")
        for part in manifest.parts:
            inputs = ", ".join(_tensor(spec) for spec in part.inputs)
            outputs = ", ".join(_tensor(spec) for spec in part.outputs)
            home = part.file or f"on {part.placement}"
            typer.echo(f"  {part.name:10} {inputs} -> {outputs}   [{home}]")
            if part.cost:
                typer.echo(
                    f"  {'':10} {part.cost.flops / 1e6:.2f} MFLOP, {part.cost.num_params:,} parameters, "
                    f"{part.cost.weight_bytes:,} bytes of weights"
                    + "".join(f", {variant.weight_bytes:,} in {name}" for name, variant in part.variants.items())
                )
        if manifest.wire_bytes is not None:
            typer.echo(f"  {'wire':10} {manifest.wire_bytes:,} bytes an image")
        if manifest.reference and manifest.reference.cost:
            cost = manifest.reference.cost
            wire = sum(spec.bytes_per_sample for spec in manifest.reference.outputs)
            typer.echo(f"  {'undefended':10} {cost.flops / 1e6:.2f} MFLOP, {wire:,} bytes an image")
        if "test" in manifest.accuracy:
            on = manifest.accuracy.get("measured_on", "")
            typer.echo(f"  {'accuracy':10} {manifest.accuracy['test']:.2%} on test images ({on})")
        if manifest.party == EDGE:
            typer.echo(f"  {'audit':10} {_audit(manifest.privacy)}")
        names = sorted(party.files)
        typer.echo(f"  {'verified':10} {', '.join(names)}")


def _audit(privacy: dict[str, Any] | None) -> str:
    """The headline of the audit that the manifest carries."""
    if privacy is None:
        return "none: what a server can rebuild was not measured"
    best = privacy.get("best_attack")
    if best is None:
        return "metrics alone, no attack"
    tail = f", one image in twenty above {best['psnr_p95_db']:.1f} dB" if "psnr_p95_db" in best else ""
    lacking = privacy.get("left_out", {})
    incomplete = "".join(f"; {who} was not attacked by {', '.join(missing)}" for who, missing in lacking.items())
    return (
        f"best attack {best['psnr_db']:.2f} dB PSNR{tail}, SSIM {best['ssim']:.3f} ({best['name']} on "
        f"{best['adversary']}, {best['num_images']} images, budget {privacy['budget']})" + incomplete
    )


def _tensor(spec: TensorSpec) -> str:
    sizes = "x".join("N" if size is None else str(size) for size in spec.shape)
    return f"{spec.name} {spec.dtype} {sizes}"
