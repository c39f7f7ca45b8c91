"""The page of an audit."""

import re
from dataclasses import replace

import msgspec

from export.audit.report import write_html
from export.audit.run import run_audit
from export.audit.target import Target

from .conftest import SIZE, tiny_config


def _shifted(report, weights_sha256, by):
    """The report of a model that leaks so much more by every figure."""
    (view,) = report.views
    more = msgspec.structs.replace
    attacks = [
        more(attack, psnr_db=attack.psnr_db + by, psnr_each=tuple(each + by for each in attack.psnr_each))
        for attack in view.attacks
    ]
    metrics = [more(metric, value=metric.value + by) for metric in view.metrics]
    moved = more(view, attacks=tuple(attacks), metrics=tuple(metrics))
    return more(report, weights_sha256=weights_sha256, views=(moved,))


def test_the_page_holds_all_it_shows(audited, target, splits):
    report, out = audited
    page = write_html(report, target, splits, out, [report]).read_text()
    assert f"{report.worst.best_attack.psnr_db:.2f} dB" in page
    assert page.count("<svg") == 1  # an audit is not compared with itself
    other = msgspec.structs.replace(report, weights_sha256="0" * 64)
    assert write_html(report, target, splits, out, [report, other]).read_text().count("<svg") == 2
    further = [_shifted(report, str(k) * 64, k) for k in (1, -1)]
    compared = write_html(report, target, splits, out, further).read_text()
    assert re.search(r"3 points; Spearman's rank correlation\s+1\.00", compared)
    assert "The hollow ones, 3, are of" in compared  # siftfunnel draws no noise
    assert "On server0: diffusion." in compared  # was not tried
    older = msgspec.structs.replace(report, config={k: v for k, v in report.config.items() if k != "bounded"})
    assert write_html(report, target, splits, out, [older]).read_text().count("<svg") == 1  # the same model
    assert page.count("data:image/png;base64,") >= 3 * 4  # original, features, two attacks at least
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "<script" not in page


def _undefended(report, **changes):
    """The report as the undefended model's."""
    config = {**report.config, "split": None}
    return msgspec.structs.replace(report, weights_sha256="0" * 64, **{"defense": "none", "config": config, **changes})


def test_only_what_met_the_same_means_stands_beside_it(audited, target, splits):
    report, out = audited
    page = write_html(report, target, splits, out, [_undefended(report)]).read_text()
    assert "undefended, same attacks" in page
    assert "2 points" in page
    assert "Not compared with" not in page
    for change, words in (
        ({"budget": "full"}, "none (budget differ)"),
        ({"seed": 7, "code_sha256": "old"}, "none (seed, attackers&#39; code differ)"),
    ):
        page = write_html(report, target, splits, out, [_undefended(report, **change)]).read_text()
        assert "undefended, same attacks" not in page
        assert f"Not compared with: {words}" in page
        assert " points" not in page
    for change in ({"precision": "int8"}, {"wire_dtype": "uint8"}):  # other features, attacked by the same means
        page = write_html(report, target, splits, out, [_undefended(report, **change)]).read_text()
        assert "undefended, same attacks" not in page
        assert "2 points" in page


def test_the_pictures_are_of_the_best_the_median_and_the_worst_image(audited, target, splits):
    report, out = audited
    page = write_html(report, target, splits, out, []).read_text()
    (view,) = report.views
    best = view.best_attack
    columns = page.split('<span class="head">')[1:]
    assert [column.partition(" ")[0] for column in columns] == ["best", "median", "worst"]
    shown = [float(re.search(rf"{best.name}: (\S+) dB", column)[1]) for column in columns]
    met = sorted(best.psnr_each[: view.num_met], reverse=True)
    assert shown == [round(met[place], 1) for place in (0, view.num_met // 2, view.num_met - 1)]
    assert shown[0] > shown[2]


def test_a_page_with_noise_is_the_same_again(make_checkpoint, splits, tmp_path):
    target = Target(replace(make_checkpoint("gaussian", size=SIZE, sigma=0.7), data=splits.record()))
    report = run_audit(target, splits, tiny_config(metrics=(), attacks=("blind",)), tmp_path)
    first = write_html(report, target, splits, tmp_path, []).read_text()
    assert write_html(report, target, splits, tmp_path, []).read_text() == first
