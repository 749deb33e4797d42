"""scripts/measure_disentanglement.py on a tiny set, with networks that have learnt nothing; wrong input."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from videornn.checkpoints.checkpoint import save_checkpoint
from videornn.config import load_config
from videornn.data.synthetic.context_shapes import CLASSES
from videornn.data.synthetic.make import make_synthetic
from videornn.models import build_model

MAPS = {"nl": ["attention", "pairwise term alone", "unary term alone"], "dnl": ["pairwise", "unary"]}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module("measure_disentanglement")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of one test video for each of four classes, which show one scene."""
    folder = tmp_path_factory.mktemp("made") / "set"
    return make_synthetic(folder, num_train=1, num_val=1, num_test=1, task="context", num_workers=1)


def _save(path: Path, made: Path, *settings: str, classes: tuple[str, ...] = CLASSES) -> Path:
    """The checkpoint of a new network."""
    sizes = ["test.crop_size=32", "test.short_side=32", "model.width=8", "model.init=null", "device=cpu"]
    sizes += [f"data.test={made / 'test.txt'}", f"model.num_classes={len(classes)}"]
    config = load_config(ROOT / "configs/context.yaml", [*sizes, *settings])
    torch.manual_seed(0)
    content = {"model": build_model(config.model).state_dict(), "config": config.model_dump(mode="json"), "step": 0}
    save_checkpoint(path, content | {"class_names": list(classes)})
    return path


def _run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["measure_disentanglement.py", *map(str, arguments)])
    return script.main()


@pytest.mark.slow
def test_table_json_csv_picture_and_sheets_of_two_networks(
    script: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [_save(tmp_path / f"{kind}/checkpoints/last.pt", made, f"model.attention.kind={kind}") for kind in MAPS]
    out = tmp_path / "out"
    state = torch.random.get_rng_state()
    assert _run(script, monkeypatch, *paths, made, "--out", out, "--examples", 1) == 0
    assert torch.equal(torch.random.get_rng_state(), state)
    printed = capsys.readouterr().out
    document = json.loads(printed.splitlines()[-1])
    assert document == json.loads((out / "disentanglement.json").read_text())
    assert (document["task"], document["num_videos"], list(document["top1"])) == ("context", 4, ["nl", "dnl"])
    for kind, maps in MAPS.items():
        rows = [row for row in document["rows"] if row["network"] == kind]
        assert list(dict.fromkeys(row["map"] for row in rows)) == maps and {row["block"] for row in rows} == {"res3.0"}
        found = {(row["map"], row["falls_on"]): row for row in rows}
        whole = [found[maps[0], name] for name in ("own_object", "objects", "outlines", "partner", "own_kind")]
        assert all(row["num_videos"] == 4 and 0 < row["share"] < 1 and 0 < row["even"] < 1 for row in whole)
        # four videos of one scene are one draw, whatever their shapes
        assert all(row["low"] == row["high"] == row["ratio"] for row in rows if row["ratio"] is not None)
    table = list(csv.DictReader((out / "disentanglement.csv").open()))
    assert len(table) == len(document["rows"]) and float(table[0]["ratio"]) == document["rows"][0]["ratio"]
    lines = (out / "disentanglement.md").read_text().splitlines()
    assert "## `nl`: nl after res3.0; 25.0 % of the clips recognised" in lines and all(line in printed for line in lines)
    assert len([line for line in lines if line.startswith("| own_kind | ")]) == 2
    assert Image.open(out / "disentanglement.png").size[0] > 600
    sheets = {path.name for path in (out / "sheets/dnl").iterdir()}
    assert sheets >= {"square_0000_res3.0.png", "square_0000_grad_cam.png"}
    queries = json.loads((out / "sheets/dnl/square_0000_numbers.json").read_text())["blocks"][0]["queries"]
    assert len(queries) == 2 and queries[0]["frame"] < 2 <= queries[1]["frame"], "the cue and the object asked for"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/a/checkpoints/best.pt", "a"),
        ("a.pt", "a"),
        ("checkpoints/a.pt", "a"),
        ("runs/blocks/runs/dnl/seed3/checkpoints/best.pt", "dnl seed3"),
    ],
)
def test_networks_are_called_by_run_or_by_row_and_seed(script: ModuleType, path: str, name: str) -> None:
    assert script._name(Path(path)) == name


def test_new_networks_differ_are_the_same_every_time_and_have_statistics_of_the_clips(
    script: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = script.load_trained(_save(tmp_path / "a.pt", made))
    video = str(made / "videos/test/ring/ring_0000.mp4")
    monkeypatch.setattr(script, "NUM_NEW", 2)
    models, again = (script.new_networks(trained, [video]) for _ in range(2))
    assert not any(model.training for model in models)
    weights, same = ([model.res3[0].attention.query.weight for model in found] for found in (models, again))
    assert all(torch.equal(*pair) for pair in zip(weights, same, strict=True)) and not torch.equal(*weights)
    inputs = trained.normalize(script.load_clip(trained, video).views)
    convolution, norm = models[0].stem[0]
    with torch.no_grad():
        torch.testing.assert_close(norm.running_mean, convolution(inputs).mean(dim=(0, 2, 3, 4)))


def test_a_number_that_is_in_no_clip_or_not_in_reach_is_none(script: ModuleType) -> None:
    values = np.array([[[0.2, 0.1], [0.1, 0.1]], [[np.nan, np.nan]] * 2, [[0.4, 0.2], [0.3, 0.2]]])
    found = script.summary(values, np.array([0, 1, 2]))
    assert found == {
        "num_videos": 2,
        "share": 0.3,
        "even": 0.15,
        "ratio": 2.0,
        "low": 2.0,
        "high": 2.0,
        "new_share": 0.2,
        "new_ratio": pytest.approx(4 / 3, abs=1e-6),
    }
    assert script.summary(np.full((2, 2, 2), np.nan), np.arange(2))["share"] is None
    zero = script.summary(np.zeros((2, 2, 2)), np.arange(2))
    assert (zero["share"], zero["ratio"], zero["low"], zero["new_ratio"]) == (0, None, None, None)


def test_wrong_input_is_one_sentence_and_exit_code_2(
    script: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = _save(tmp_path / "good.pt", made)
    none = _save(tmp_path / "none.pt", made, "model.attention.kind=none")
    plain = _save(tmp_path / "plain.pt", made, "model.attention.kind=nl_dot_product", "model.attention.scale=paper")
    others = _save(tmp_path / "others.pt", made, classes=("wave", "bend"))
    bare = tmp_path / "bare"
    (bare / "videos").mkdir(parents=True)
    (tmp_path / "text.pt").write_text("no checkpoint")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "synthetic.json").write_text("[1, 2]")
    copy = tmp_path / "copy"
    (copy / "videos/test/ring").mkdir(parents=True)
    for name in ("synthetic.json", "labels.txt"):
        (copy / name).write_bytes((made / name).read_bytes())
    ring = "videos/test/ring/ring_0000.mp4"
    (copy / ring).write_bytes((made / ring).read_bytes())
    (copy / "test.txt").write_text(f"{ring} 2\n")
    out = tmp_path / "out"
    for arguments, message in (
        ([none], "none.pt has no attention blocks"),
        ([good, plain], "plain.pt has nl_dot_product blocks, whose weights come from no softmax"),
        ([others], "others.pt knows 2 classes (wave, bend, ...), and not those of"),
        ([good, bare], "bare is no set of `videornn data synthetic`; give the folder of one after the checkpoints"),
        ([good, odd], "odd is no set of"),
        ([good, copy], "ring_0000.mp4: its masks cannot be read"),
        ([tmp_path / "text.pt"], "text.pt"),
        ([tmp_path / "missing.pt"], "missing.pt"),
        ([good, "--videos", 0], "--videos 0"),
        ([good, "--out", good], "is a file; give the name of a folder"),
    ):
        assert _run(script, monkeypatch, *arguments, *([] if "--out" in arguments else ["--out", out])) == 2, arguments
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and not printed.out, (arguments, printed)
    assert not list(out.iterdir())
