"""The command line as a newcomer meets it."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from ...conftest import EDGESDK, ROOT, assert_one_line_error, edgesdk, edgesdk_here, serving

COMMANDS = (
    "train",
    "audit",
    "export",
    "inspect",
    "build",
    "serve",
    "triton",
    "kserve",
    "run",
    "profile",
    "measure",
    "doctor",
)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)).save(path)
    return path


def test_every_command_stands_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"^  (\w+) ", edgesdk("--help").stdout.partition("Commands:")[2], re.MULTILINE))
    assert listed == set(COMMANDS)
    for command in COMMANDS:
        assert f"edgesdk {command}" in readme


def test_every_option_of_every_command_is_frozen():
    options = {
        c: sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", edgesdk_here(c, "--help").stdout))) for c in COMMANDS
    }
    assert options == json.loads((ROOT / "tests" / "edge_sdk" / "cli" / "options.json").read_text())


def test_an_audit_is_printed_and_a_page_written(make_checkpoint, image_folder, tmp_path):
    from dataclasses import replace

    from export.data import load_splits

    model = tmp_path / "model.safetensors"
    replace(make_checkpoint("siftfunnel", size=16), data=load_splits(str(image_folder), 16).record()).save(model)
    command = ("audit", model, "--data", image_folder, "--attack", "blind", "--metric", "effective", "--n", "8")
    done = edgesdk(*command, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert re.search(r"server0 +│ +blind │ +\d+\.\d\d ± \d", done.stdout)
    assert done.stdout.endswith(f"{tmp_path / 'r' / 'audit.html'}\n")
    against = ("--against", tmp_path / "r" / "audit.json", "--precision", "fp16", "--json")
    report = json.loads(edgesdk(*command, "--out", tmp_path / "lower", *against).stdout)
    assert (report["precision"], report["views"][0]["attacks"][0]["num_images"]) == ("fp16", 8)
    assert "encoder in fp16" in (tmp_path / "lower" / "audit.html").read_text()


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", edgesdk("--version").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["run"],
        ["run", "edge"],
        ["run", "edge", "photo.jpg"],
        ["run", "edge", "photo.jpg", "--server"],
        ["run", "edge", "photo.jpg", "--server", "x", "--top", "0"],
        ["serve"],
        ["serve", "b", "--port", "70000"],
        ["serve", "b", "--port", "http"],
        ["serve", "b", "--threads", "0"],
        ["serve", "b", "--max-rate", "nan"],
        ["serve", "b", "--drain-seconds", "inf"],
        ["build", "edge", "--workspace", "99999999999999"],
        ["build"],
        ["build", "edge", "--precision", "fp64"],
        ["build", "edge", "--max-batch", "0"],
        ["profile", "edge", "--batch", "0"],
        ["profile", "edge", "--runs", "-1"],
        ["profile", "edge", "--what"],
        ["measure", "edge", "--server", "x"],
        ["measure", "edge", "--server", "x", "--data", "d", "--n", "0"],
        ["export"],
        ["export", "--defense", "none", "--wire-dtype", "float64"],
        ["export", "--defense", "none", "--batch", "2"],
        ["train", "--defense", "none"],
        ["train", "--defense", "none", "--data", "d", "--out", "o", "--epochs", "0"],
    ],
)
def test_wrong_usage_ends_with_two(arguments):
    done = edgesdk_here(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


TRAIN, AUDIT = ("train", "--defense", "none"), ("audit", "none")


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (TRAIN, ("--device", "tpu"), "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (AUDIT, ("--device", "tpu"), "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (TRAIN, ("--precision", "fp64"), "'fp64' is not one of 'float32', 'bfloat16'"),
        (AUDIT, ("--budget", "huge"), "'huge' is not one of 'small', 'full'"),
        (TRAIN, ("--set", "beta"), "--set 'beta': expected NAME=VALUE"),
        (TRAIN, ("--distillation", "0.5"), "give --teacher"),
        (TRAIN, ("--psnr-ceiling", "18"), "give it to --base"),
    ],
)
def test_wrong_usage_says_what_is_wrong(command, options, words, tmp_path):
    done = edgesdk_here(*command, "--data", tmp_path, "--out", tmp_path / "run", *options)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_help_lists_the_names_that_there_are():
    from export.audit.budget import BUDGETS
    from export.audit.run import ATTACKS, METRICS
    from export.defenses import DEFENSES
    from export.models import BACKBONES
    from export.recipes import RECIPES

    shipped = {path.parent.name.partition("-")[0] for path in (ROOT / "export" / "zoo").glob("*/model.safetensors")}
    for command, names in (
        ("train", {*DEFENSES, *BACKBONES, *RECIPES}),
        ("export", shipped),
        ("audit", {*ATTACKS, *METRICS, *BUDGETS}),
    ):
        assert names <= set(re.findall(r"[\w-]+", edgesdk_here(command, "--help").stdout)), command


def _cases(bundle, photo, tmp):
    text = tmp / "notes.txt"
    text.write_text("no image")
    (tmp / "empty").mkdir()
    edge, server = bundle / "edge", bundle / "server0"
    run = ["run", edge, photo, "--server", NOWHERE, "--timeout", "0.3"]
    train = ["train", "--out", tmp / "run", "--data", tmp / "empty"]
    return {
        "inspect nothing": (["inspect", tmp / "no"], "no bundle here"),
        "inspect an empty folder": (["inspect", tmp / "empty"], "no bundle here"),
        "inspect a file": (["inspect", photo], "no bundle here"),
        "profile nothing": (["profile", tmp / "no"], "no such folder"),
        "profile the bundle": (["profile", bundle], "did you mean"),
        "profile a server": (["profile", server], "a folder for edge is needed"),
        "profile into nowhere": (["profile", edge, "--runs", "1", "--json", tmp / "no" / "f"], "cannot be written"),
        "profile into a folder": (["profile", edge, "--runs", "1", "--json", tmp], "cannot be written"),
        "profile into no name": (["profile", edge, "--runs", "1", "--json", ""], "cannot be written"),
        "inspect a very long name": (["inspect", "x" * 300], "name too long"),
        "run with a wrong host": (["run", edge, photo, "--server", "http://a..b:1"], "a..b"),
        "run with an endless timeout": ([*run, "--timeout", "inf"], "timeout must be"),
        "run without a server": (run, "is the server running"),
        "run against no address": (["run", edge, photo, "--server", "localhost"], "not a server address"),
        "run against two": ([*run, "--server", NOWHERE], "1 server(s), got 2"),
        "degrade with one server": ([*run, "--on-missing", "degrade"], "it cannot degrade"),
        "run nothing": (["run", edge, tmp / "no.jpg", "--server", NOWHERE], "no such file or folder"),
        "run a text": (["run", edge, text, "--server", NOWHERE], "not an image"),
        "run an empty folder": (["run", edge, tmp / "empty", "--server", NOWHERE], "no image in this folder"),
        "run empty standard input": (["run", edge, "-", "--server", NOWHERE], "standard input: not an image"),
        "measure nothing": (["measure", edge, "--server", NOWHERE, "--data", tmp / "no"], "no such file"),
        "measure too many": (["measure", edge, "--server", NOWHERE, "--data", photo, "--n", "2"], "1 are there"),
        "build nothing": (["build", tmp / "no"], "no such folder"),
        "build a whole bundle": (["build", bundle, "--target", "sm_89"], "did you mean"),
        "build for a Jetson": (["build", edge, "--target", "sm_87"], "Engines for a Jetson are built on the Jetson"),
        "export what is not": (["export", "--defense", "magic"], "no model is shipped for magic"),
        "export another backbone": (["export", "--defense", "none", "--backbone", "vit"], "no model is shipped"),
        "export no checkpoint": (["export", "--defense", "none", "--checkpoint", tmp / "no"], "no such checkpoint"),
        "export an image": (["export", "--defense", "none", "--checkpoint", photo], "no safetensors file"),
        "train what is not": ([*train, "--defense", "magic"], "no defense 'magic'"),
        "train another backbone": ([*train, "--defense", "none", "--backbone", "mlp"], "no backbone 'mlp'"),
        "train by no recipe": ([*train, "--defense", "none", "--recipe", "cake"], "no recipe 'cake'"),
        "train with a wrong setting": ([*train, "--defense", "none", "--set", "beta=1"], "no setting beta"),
        "train cut nowhere": ([*train, "--defense", "siftfunnel", "--split", "2"], "no setting split"),
        "train cut too far": ([*train, "--defense", "none", "--split", "9"], "split must be 1 to 4"),
        "train with a word for a number": ([*train, "--defense", "none", "--set", "split=two"], "split"),
        "train with a short mean": ([*train, "--defense", "none", "--set", "mean=[1,2]"], "mean"),
        "export into a file": (["export", "--defense", "none", "--out", text / "b"], "is not a folder"),
        "export at an odd size": (["export", "--defense", "none", "--image-size", "40"], "multiple of 16"),
        "export compared on nothing": (["export", "--defense", "none", "--data", tmp / "no"], "no such file"),
        "train at an odd size": ([*train, "--defense", "none", "--image-size", "33"], "multiple of 16"),
        "train with too much teaching": (
            [*train, "--defense", "none", "--teacher", "none", "--distillation", "2"],
            "must be in [0, 1]",
        ),
        "train taught at another size": (
            [*train, "--defense", "none", "--teacher", "none", "--image-size", "64"],
            "the teacher takes images of 32x32, not 64x64",
        ),
        "audit into a file": (["audit", "none", "--data", tmp / "empty", "--out", text], "notes.txt: cannot hold the"),
        "train below a file": (
            ["train", "--defense", "none", "--data", tmp / "empty", "--out", text / "run"],
            "notes.txt is not a folder that can be written to",
        ),
        "train at a wrong rate": ([*train, "--defense", "none", "--lr", "-1"], "learning_rate must be positive"),
        **{
            f"train at a rate of {rate}": ([*train, "--defense", "none", "--lr", rate], f"finite, got {rate}")
            for rate in ("nan", "inf")
        },
        "guard at a wrong rate": (
            [*train, "--defense", "fsinfoguard", "--base", "none", "--psnr-ceiling", "18", "--lr", "nan"],
            "learning_rate must be positive",
        ),
        "guard to an impossible ceiling": (
            [*train, "--defense", "fsinfoguard", "--base", "none", "--psnr-ceiling", "-5"],
            "no noise gives -5 dB",
        ),
        "guard to two targets": (
            [*train, "--defense", "fsinfoguard", "--base", "none", "--psnr-ceiling", "18", "--fsinfo-target", "1"],
            "give one of",
        ),
        "guard what draws no noise": (
            [*train, "--defense", "nopeek", "--base", "none", "--psnr-ceiling", "18"],
            "nopeek has none that is calibrated",
        ),
        "train with a weight that is none": (
            [*train, "--defense", "privdfs", "--adversarial", "nan"],
            "adversarial must be finite, got nan",
        ),
        "profile a batch beyond the memory": (["profile", edge, "--batch", "1000000000"], "choose a smaller --batch"),
        "train a funnel of no design": ([*train, "--defense", "siftfunnel", "--backbone", "vit"], "no encoder for vit"),
        "train too many servers": ([*train, "--defense", "privdfs", "--set", "num_servers=9"], "must be 2 to 8"),
        "train too dense": ([*train, "--defense", "privdfs", "--set", "density=0.5"], "at most 1/4"),
        "train against nobody": ([*train, "--defense", "none", "--adversarial", "1"], "no setting adversarial"),
        "export with a short key": (["export", "--defense", "none", "--key-file", text], "at least 16 random bytes"),
        "export with no key": (["export", "--defense", "none", "--key-file", tmp / "no"], "No such file"),
        "train on nothing": ([*train, "--defense", "none"], "0 class folders"),
        "train into a file": (["train", "--defense", "none", "--data", tmp / "empty", "--out", text], "is a file"),
    }


CASES = sorted(_cases(ROOT, ROOT, type("P", (), {"__truediv__": lambda s, o: s, "write_text": id, "mkdir": int})()))


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_one_and_one_line(bundle, photo, tmp_path, case):
    arguments, words = _cases(bundle, photo, tmp_path)[case]
    assert_one_line_error(edgesdk_here(*arguments), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["inspect", "profile", "run", "measure", "serve", "build"])
def test_every_command_that_opens_a_bundle_refuses_a_flipped_byte(bundle, photo, tmp_path, command):
    party = "server0" if command == "serve" else "edge"
    folder = shutil.copytree(bundle / party, tmp_path / party)
    model = folder / ("tail.onnx" if command == "serve" else "encoder.onnx")
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    more = {
        "run": [photo, "--server", NOWHERE],
        "measure": ["--server", NOWHERE, "--data", photo],
        "serve": ["--port", "0"],
    }.get(command, [])
    assert_one_line_error(edgesdk(command, folder, *more), f"{model.name} was altered or truncated")


def test_what_comes_by_standard_input_is_named_by_it(bundle):
    done = edgesdk("run", bundle / "edge", "-", "--server", NOWHERE, stdin=b"no image")
    assert_one_line_error(done, "standard input: not an image that Pillow can read (no format that it knows)")
    assert_one_line_error(edgesdk_here("run", bundle / "edge", "-", "--server", NOWHERE), "it is empty; send one image")


def test_run_prints_labels_and_probabilities(bundle, server, photo, image_folder):
    done = edgesdk("run", bundle / "edge", "--server", server, photo, "-", stdin=photo.read_bytes())
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r".*photo\.png: (\w+ \d+\.\d%, ){2}\w+ \d+\.\d%", first)
    assert second == f"-: {first.partition(': ')[2]}"
    done = edgesdk("run", bundle / "edge", "--server", server, image_folder / "test", "--json", "--top", "10")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(list((image_folder / "test").glob("*/*")))
    for row in rows:
        assert sum(c["probability"] for c in row["classes"]) == pytest.approx(1, abs=1e-4)
        assert row["timing"]["encode_ms"] > 0


def test_inspect_shows_every_party(bundle):
    text = edgesdk("inspect", bundle).stdout
    for words in ("encoder.onnx", "tail.onnx", "5.36 MFLOP", "3,072 bytes an image", "10.00% on test images"):
        assert words in text
    content = json.loads(edgesdk("inspect", bundle, "--json").stdout)
    assert list(content) == ["edge", "server0"]


def test_inspect_refuses_folders_of_several_exports_and_names_what_is_not_there(shares_bundle, other_bundle, tmp_path):
    part = tmp_path / "b"
    shutil.copytree(shares_bundle, part)
    shutil.rmtree(part / "server1")
    done = edgesdk_here("inspect", part, "--json")
    assert (done.returncode, done.stderr) == (0, f"edgesdk: warning: {part}: not a whole bundle, without server1\n")
    assert list(json.loads(done.stdout)) == ["edge", "server0", "server2", "server3"]
    for alone in (part / "edge", part / "server0"):
        done = edgesdk_here("inspect", alone)
        assert (done.returncode, done.stderr) == (0, "")
    shutil.copy(shares_bundle / "server1" / "tail1.onnx", part / "server0")
    told = "holds what is not of the bundle, and was not verified: tail1.onnx"
    assert edgesdk_here("inspect", part / "server0").stderr == f"edgesdk: warning: {part / 'server0'}: {told}\n"
    (part / "server0" / "tail1.onnx").unlink()
    shutil.copytree(part / "server0", part / "server1")
    assert_one_line_error(edgesdk_here("inspect", part), "server1: holds server0")
    shutil.rmtree(part / "server1")
    shutil.copytree(other_bundle / "server0", part / "server1")
    assert_one_line_error(edgesdk_here("inspect", part), "server1: of bundle", "have to be of one export")
    shutil.rmtree(part / "server1")
    shutil.rmtree(part / "edge")
    assert edgesdk_here("inspect", part).stderr.endswith("not a whole bundle, without edge\n")


def test_profile_reports_cost_latency_and_the_undefended_beside_it(bundle, tmp_path):
    done = edgesdk("profile", bundle / "edge", "--runs", "20", "--json", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    assert "undefended / encoder" in done.stdout
    report = json.loads((tmp_path / "p.json").read_text())
    for part in ("encoder", "undefended"):
        latency = report[part]["latency"]
        assert latency["num_samples"] == len(report[part]["samples_ms"]) == 20
        assert 0 < latency["min_ms"] <= latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"] <= latency["max_ms"]
        assert report[part]["peak_memory_bytes"] > 100_000
        assert report[part]["cost"]["flops"] == sum(layer["flops"] for layer in report[part]["cost"]["layers"])
    assert report["ratio"]["flops"] == pytest.approx(41287680 / 5363792)
    assert report["ratio"]["wire_bytes"] == pytest.approx(128 / 12)


def test_the_undefended_baseline_has_nothing_beside_it(other_bundle):
    report = json.loads(edgesdk("profile", other_bundle / "edge", "--runs", "3", "--json", "-").stdout)
    assert report["undefended"] is None
    assert report["ratio"] is None


def test_measure_breaks_every_request_down(bundle, server, image_folder):
    done = edgesdk("measure", bundle / "edge", "--server", server, "--data", image_folder / "test", "--n", "12")
    assert done.returncode == 0, done.stderr
    for step in ("decode", "preprocess", "encode", "serialize", "network", "tail", "fuse", "total"):
        assert f"│ {step}" in done.stdout
    done = edgesdk("measure", bundle / "edge", "--server", server, "--data", image_folder / "test", "--json")
    report = json.loads(done.stdout)
    assert report["num_images"] == len(list((image_folder / "test").glob("*/*")))
    assert report["feature_bytes_per_image"] == 3072
    means = [stats["mean_ms"] for stats in report["steps"].values()]
    assert sum(means) == pytest.approx(report["total"]["mean_ms"], rel=0.1)
    if report["num_labelled"]:
        assert 0 <= report["accuracy"] <= 1


def test_a_closed_standard_output_is_no_traceback():
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *EDGESDK, "doctor", "--json"], stderr=subprocess.PIPE, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_behind_standard_output_is_one_line(bundle):
    for arguments in (["--version"], ["--help"], ["inspect", bundle], ["doctor"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*EDGESDK, *map(str, arguments)], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1, arguments
        assert done.stderr.strip().splitlines()[-1] == "edgesdk: standard output: No space left on device"
        assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_traceback(bundle, server, image_folder):
    command = [*EDGESDK, "run", str(bundle / "edge"), "--server", server, str(image_folder / "test")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_an_interrupt_is_no_traceback(bundle, server, image_folder):
    command = [*EDGESDK, "run", str(bundle / "edge"), "--server", server, *[str(image_folder / "train")] * 50]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 130


def test_a_dying_server_is_a_clear_error(bundle, photo):
    with serving(bundle / "server0") as (url, process):
        assert edgesdk("run", bundle / "edge", photo, "--server", url).returncode == 0
        process.kill()
        process.wait()
        assert_one_line_error(edgesdk("run", bundle / "edge", photo, "--server", url), "is the server running")


def test_the_backbone_is_the_checkpoints_unless_another_is_asked_for(make_checkpoint, tmp_path):
    weights = tmp_path / "model.safetensors"
    make_checkpoint("none", "vit").save(weights)
    export = ("export", "--defense", "none", "--checkpoint", weights, "--out", tmp_path / "b")
    assert_one_line_error(edgesdk_here(*export, "--backbone", "cnn"), "the checkpoint is none (vit), not none (cnn)")
    done = edgesdk_here(*export)
    assert done.returncode == 0, done.stderr
    assert "exporting none (vit)" in done.stderr
