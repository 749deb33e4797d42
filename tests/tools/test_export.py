"""Exported files, run by onnxruntime and torch.export alone, against the network that they were made of."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import nn

from videornn.checkpoints.checkpoint import save_checkpoint
from videornn.checkpoints.trained import load_trained
from videornn.config import Config
from videornn.inference.predictor import load_predictor
from videornn.models import build_model
from videornn.models.nonlocal_block import (
    AddedNonLocal,
    ConcatenationNonLocal,
    DisentangledNonLocal,
    DotProductNonLocal,
    GaussianNonLocal,
    GlobalContext,
    NonLocal,
    OwnMaskNonLocal,
    PairwiseNonLocal,
    UnaryNonLocal,
)
from videornn.tools import export as export_module
from videornn.tools.export import export

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

CLASSES = ["jump", "wave, both hands", "gehen – Straße", "bend", "run"]
DATA = {"num_frames": 4, "temporal_stride": 2, "sampling_fps": 25.0, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
TEST = {"num_clips": 1, "num_crops": 1, "short_side": 48, "crop_size": 32}


def _randomise(module: nn.Module) -> None:
    """Norms, gains and gates that do something: at their start most blocks are the identity."""
    for parameter in module.parameters():
        if parameter.ndim <= 1:
            nn.init.uniform_(parameter, 0.5, 1.0)
    for block in module.modules():
        if isinstance(block, GlobalContext):
            nn.init.normal_(block.bottleneck[3].weight)
        elif isinstance(block, nn.BatchNorm3d):
            nn.init.normal_(block.running_mean, std=0.2)
            nn.init.uniform_(block.running_var, 0.5, 2.0)


def _checkpoint(folder: Path, **model: object) -> Path:
    """A checkpoint of a small network with random weights."""
    attention = {"kind": "dnl", "places": {"res3": [0]}, **model.pop("attention", {})}
    network = {"depth": 10, "width": 8, "num_classes": len(CLASSES), "attention": attention, **model}
    config = Config.model_validate_json(json.dumps({"model": network, "data": DATA, "test": TEST}))
    torch.manual_seed(0)
    built = build_model(config.model)
    _randomise(built)
    content = {"model": built.state_dict(), "step": 7, "config": config.model_dump(mode="json"), "class_names": CLASSES}
    save_checkpoint(folder / "best.pt", content)
    return folder / "best.pt"


def _clips(batch_size: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch_size, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _logits_by_hand(checkpoint: Path, clips: torch.Tensor) -> torch.Tensor:
    """Logits in float64 of clips normalised by the formula, [B, K]."""
    trained = load_trained(checkpoint, ["device=cpu"])
    mean, std = (torch.tensor(DATA[name], dtype=torch.float64)[:, None, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        return trained.model.double()((clips.double() / 255 - mean) / std)


def _run_onnx(path: Path, clips: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, export_module.Exported]:
    """A checkpoint, best.pt, and both files made of it."""
    checkpoint = _checkpoint(tmp_path_factory.mktemp("exported"))
    return {format: export(checkpoint, format) for format in ("onnx", "torch")}


@pytest.mark.slow
def test_an_onnx_file_takes_uint8_clips_in_any_number_and_gives_the_logits(exported) -> None:
    done = exported["onnx"]
    checkpoint = done.path.with_suffix(".pt")
    assert done.path.name == "best.onnx" and done.num_bytes == done.path.stat().st_size
    for batch_size in (1, 2, 5):
        expected = _logits_by_hand(checkpoint, _clips(batch_size))
        logits = _run_onnx(done.path, _clips(batch_size))
        assert logits.dtype == torch.float32 and logits.shape == (batch_size, 5) and expected.abs().max() > 0.1
        torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    assert 0 <= done.difference < 1e-4
    names = sorted(file.name for file in checkpoint.parent.iterdir())
    assert names == ["best.onnx", "best.pt", "best.pt2"]  # no weights beside the file


def test_a_torch_file_does_the_same(tmp_path: Path) -> None:
    done = export(_checkpoint(tmp_path), "torch")
    checkpoint = done.path.with_suffix(".pt")
    texts = {"class_names": "", "clip": ""}
    network = torch.export.load(done.path, extra_files=texts).module()
    for batch_size in (1, 2, 5):
        logits, expected = network(_clips(batch_size)), _logits_by_hand(checkpoint, _clips(batch_size))
        torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    assert json.loads(texts["class_names"]) == CLASSES and json.loads(texts["clip"])["num_frames"] == 4


@pytest.mark.slow
def test_a_file_says_what_its_classes_and_clips_are_and_nothing_of_where_it_was_made(exported) -> None:
    texts = onnxruntime.InferenceSession(exported["onnx"].path).get_modelmeta().custom_metadata_map
    about = {name: json.loads(text) for name, text in texts.items()}
    assert about["class_names"] == CLASSES
    assert about["normalization"] == {"mean": DATA["mean"], "std": DATA["std"], "inside": True}
    clip = {key: about["clip"][key] for key in ("num_frames", "temporal_stride", "sampling_fps", "sampling", "aspect")}
    assert clip == {"num_frames": 4, "temporal_stride": 2, "sampling_fps": 25.0, "sampling": "clip", "aspect": "keep"}
    assert (about["clip"]["short_side"], about["clip"]["crop_size"], about["clip"]["color"]) == (48, 32, "RGB")
    assert about["videornn"]["step"] == 7 and about["videornn"]["network"]["attention"]["kind"] == "dnl"
    for done in exported.values():
        content = done.path.read_bytes()
        assert b"site-packages" not in content and str(ROOT).encode() not in content, done.path


class _EveryBlock(nn.Module):
    """What each block adds to the same input; all kinds, with all axes, keys pooled and not, and both gates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)  # with which no ReLU of a concatenation is closed for all pairs
        self.blocks = nn.ModuleList(
            [
                NonLocal(8, key_pool=(1, 2, 2)),
                GaussianNonLocal(8, axes="space"),
                DotProductNonLocal(8, key_pool=(2, 1, 1), axes="time"),
                ConcatenationNonLocal(8, key_pool=(1, 2, 2), axes="space", gate="scalar"),
                PairwiseNonLocal(8, axes="time", gate="scalar"),
                UnaryNonLocal(8, key_pool=(1, 2, 2)),
                UnaryNonLocal(8, axes="time", gate="scalar"),
                GlobalContext(8, 4, axes="space"),
                DisentangledNonLocal(8, key_pool=(1, 2, 2), gate="scalar"),
                DisentangledNonLocal(8, axes="time"),
                DisentangledNonLocal(8, key_pool=(1, 2, 2), scale="learnt"),
                NonLocal(8, scale="learnt"),
                AddedNonLocal(8, key_pool=(1, 2, 2)),
                OwnMaskNonLocal(8, axes="space"),
            ]
        )
        _randomise(self)
        for block in self.blocks:
            for parameter in block.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.3)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        x = clips.float() / 255 - 0.5
        x = torch.cat([x, x.square(), x + 0.3], 1).narrow(1, 0, 8)
        return torch.stack([(block(x) - x).flatten(1) for block in self.blocks], 1)


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.slow
def test_every_block_comes_out_as_it_is(format: str, tmp_path: Path) -> None:
    network = _EveryBlock().eval().requires_grad_(False)
    write, load = {
        "onnx": (export_module._write_onnx, export_module._load_onnx),
        "torch": (export_module._write_program, export_module._load_program),
    }[format]
    clips = torch.randint(0, 256, (3, 3, 2, 4, 6), dtype=torch.uint8)
    with torch.no_grad(), export_module._silence():
        write(tmp_path / "blocks.pt2", network, clips[:2], {})
        run = load(tmp_path / "blocks.pt2")
        expected = network(clips)
        assert expected.std(dim=(0, 2)).min() > 1e-3  # every block adds something, and not the same to all
        for batch_size in (1, 3):
            torch.testing.assert_close(run(clips[:batch_size]), expected[:batch_size], atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["slow", "i3d", "c2d", "r3d", "r2plus1d"])
def test_every_network_comes_out_as_it_is(name: str, format: str, tmp_path: Path) -> None:
    settings = {"name": name, "drop_path": 0.2, "recompute_blocks": True}
    settings["depth"] = 18 if name.startswith("r") else 50
    checkpoint = _checkpoint(tmp_path, **settings)
    done = export(checkpoint, format)
    run = export_module._load_onnx if format == "onnx" else export_module._load_program
    with torch.no_grad():
        logits = run(done.path)(_clips(4))
    torch.testing.assert_close(logits.double(), _logits_by_hand(checkpoint, _clips(4)), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_left_behind(
    videornn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = _checkpoint(tmp_path)
    right = export_module._load_program
    for format, wrong in (("torch", 2e-3), ("torch", float("nan")), ("onnx", 2e-3)):
        # stands for onnxruntime as well, which need not see the file here
        monkeypatch.setattr(export_module, "_write_onnx", export_module._write_program)
        for load in ("_load_program", "_load_onnx"):
            monkeypatch.setattr(export_module, load, lambda path, wrong=wrong: lambda clips: right(path)(clips) + wrong)
        (tmp_path / "before").write_text("what was there")
        code, out, err = videornn("export", checkpoint, "--format", format, "--out", tmp_path / "before")
        assert code == 2 and out == "" and "computes other logits than PyTorch" in err and len(err.splitlines()) == 1
        assert (tmp_path / "before").read_text() == "what was there"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["before", "best.pt"]


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_nothing_else(exported, tmp_path: Path) -> None:
    checkpoint = exported["onnx"].path.with_suffix(".pt")
    command = [sys.executable, "-m", "videornn", "export", checkpoint, "--format", "onnx", "--out", tmp_path / "a.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    first, second, third = done.stdout.splitlines()
    assert first == "clips uint8 [B, 3, 4, 32, 32], RGB -> logits float32 [B, 5]"
    assert re.match(r"logits differ from PyTorch's by at most \d\.\de-\d\d \(the largest is \d", second)
    assert re.fullmatch(rf"wrote {re.escape(str(tmp_path))}/a\.onnx: \d\.\d MB in \d+ s", third)


def test_what_an_exporter_says_is_shown_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        print("Torch IR graph at exception")
        logging.getLogger("torch.onnx").warning("a warning")
        raise RuntimeError("no such operator")

    monkeypatch.setattr(export_module, "_write_onnx", fail)
    with pytest.raises(RuntimeError, match="no such operator"):
        export(_checkpoint(tmp_path), "onnx")
    assert "Torch IR graph at exception" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]
    assert logging.root.manager.disable == logging.NOTSET


def test_a_full_disk_is_one_sentence(videornn, room_for_files, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    with room_for_files(100_000):
        code, _, err = videornn("export", checkpoint, "--format", "torch")
    assert code == 2 and "best.pt2 cannot be written" in err and len(err.splitlines()) == 1
    assert err.endswith("; nothing of it was left behind; make room, then give the same command again\n")
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def test_what_is_missing_or_in_the_way_is_one_sentence(videornn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(tmp_path)
    before = checkpoint.read_bytes()
    for out, message in (
        (checkpoint, "best.pt is the checkpoint itself; name another file"),
        (tmp_path, f"--out {tmp_path}: is a folder; give the name of a file"),
        (tmp_path / "no/x.onnx", f"--out {tmp_path}/no/x.onnx: there is no folder {tmp_path}/no"),
    ):
        code, _, err = videornn("export", checkpoint, "--format", "onnx", "--out", out)
        assert code == 2 and message in err and len(err.splitlines()) == 1
    code, _, err = videornn("export", tmp_path / "none.pt", "--format", "onnx")
    assert code == 2 and "none.pt does not exist" in err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = videornn("export", checkpoint, "--format", "onnx")
    assert (code, err) == (
        2,
        "videornn: ONNX files need onnxruntime, not installed here: pip install 'videornn[onnx]'\n",
    )
    assert checkpoint.read_bytes() == before


@pytest.mark.slow
def test_the_program_of_the_docs_finds_the_class_that_videornn_finds(
    exported, make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    program = next(block for block in blocks if "InferenceSession" in block)
    assert len([line for line in program.splitlines() if line.strip()]) <= 12 and "videornn" not in program
    checkpoint = exported["onnx"].path.with_suffix(".pt")
    monkeypatch.chdir(tmp_path)
    for name, size, num_frames, fps, changed, tolerance in (
        ("wide", (64, 48), 40, 25, {}, 2e-3),  # no pixel is scaled, so that the clip is the same to the pixel
        ("tall", (48, 80), 24, 50, {}, 2e-3),
        ("short", (48, 48), 3, 30, {}, 2e-3),
        ("parts", (48, 80), 31, 30, {"sampling": "segments"}, 2e-3),
        ("squeezed", (96, 48), 30, 30, {"aspect": "squeeze"}, 3e-2),
    ):
        make_video(tmp_path / "clip.mp4", num_frames, fps=fps, size=size)
        model = onnx.load(exported["onnx"].path)
        texts = {item.key: item.value for item in model.metadata_props}
        onnx.helper.set_model_props(model, texts | {"clip": json.dumps(json.loads(texts["clip"]) | changed)})
        onnx.save(model, tmp_path / "best.onnx")
        found: dict[str, object] = {}
        exec(program, found)
        overrides = ["device=cpu", "train.precision=fp32", *(f"data.{key}={value}" for key, value in changed.items())]
        [(label, score)] = load_predictor(checkpoint, topk=1, overrides=overrides)("clip.mp4")
        assert capsys.readouterr().out.split() == label.split(), name
        logits = found["session"].run(["logits"], {"clips": found["clips"]})[0][0].astype(np.float64)
        assert np.exp(logits).max() / np.exp(logits).sum() == pytest.approx(score, abs=tolerance), name
