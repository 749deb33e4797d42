"""The whole of explain: any network, wrong input, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import CONFIG

from videornn.checkpoints.trained import Trained
from videornn.config import load_config
from videornn.data.video.decoders import read_frames
from videornn.explain import explain, job, load_clip, number_lines
from videornn.explain.job import cut_masks
from videornn.models import build_model
from videornn.models.forward import Normalize


def _trained(*settings: str) -> Trained:
    torch.manual_seed(0)
    sizes = ["data.num_frames=4", "data.temporal_stride=4", "test.crop_size=32", "test.short_side=32", "model.width=8"]
    config = load_config(CONFIG, [*sizes, "model.num_classes=3", *settings])
    model = build_model(config.model).eval()
    normalize = Normalize(config.data.mean, config.data.std, torch.device("cpu"))
    return Trained(config, model, ("stand up", "sit_down", "wave"), 0, normalize)


@pytest.mark.parametrize("name", ["r3d", "r2plus1d", "slow", "i3d", "c2d"])
def test_networks_without_attention_get_grad_cam_alone(name: str, make_video, tmp_path: Path) -> None:
    trained = _trained(f"model.name={name}", "model.attention.kind=none")
    video = make_video(tmp_path / "a.mp4", 40)
    written = explain(trained, str(video), tmp_path / "out", [], class_name="Sit Down", stage="res4", movies=False)
    assert [path.name for path in written] == ["a_grad_cam.png", "a_numbers.json"]
    content = json.loads(written[-1].read_text())
    assert content["blocks"] == [] and content["grad_cam"]["class"] == "sit_down" and content["grad_cam"]["stage"] == "res4"
    assert number_lines(written[-1]) == []


@pytest.mark.slow
def test_every_block_of_a_deep_network_has_its_sheet_movie_and_numbers(make_video, tmp_path: Path) -> None:
    trained = _trained("model.depth=18", "model.attention.kind=nl", "model.attention.places={res3: all}")
    written = explain(trained, str(make_video(tmp_path / "a.b.mp4", 40)), tmp_path, [])
    blocks = ["res3.0", "res3.1"]
    names = [f"a.b_{name}.{kind}" for name in [*blocks, "grad_cam"] for kind in ("png", "mp4")]
    assert [path.name for path in written] == [*names, "a.b_numbers.json"]
    assert all(path.is_file() for path in written)
    content = json.loads(written[-1].read_text())
    assert [block["name"] for block in content["blocks"]] == blocks
    assert all(
        {"change", "query_dependence", "effective_keys", "pairwise_share"} <= set(block) for block in content["blocks"]
    )
    assert {"change", "query_dependence"} <= set(content["meaning"]) and content["prediction"][
        "class"
    ] in trained.class_names
    assert number_lines(written[-1])[0].startswith("res3.0 (nl): change 0.000, query dependence ")


@pytest.mark.parametrize("letter", ["a", "é", "走"])
def test_pictures_of_a_long_name_are_written_and_titled_as_asked(
    letter: str, make_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(job, "draw_sheet", lambda path, scene: (path.touch(), titles.append(scene.title)))
    trained, name = _trained(), (250 // len(letter.encode())) * letter
    for given in (None, "mine.mov"):
        explain(trained, str(make_video(tmp_path / f"{name}.mp4", 40)), tmp_path / "out", [], movies=False, name=given)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    short = (200 // len(letter.encode())) * letter
    assert names == {f"{short}_{end}" for end in ("res3.0.png", "res4.0.png", "grad_cam.png", "numbers.json")}
    assert [title.partition(":")[0] for title in titles] == [f"{name}.mp4"] * 3 + ["mine.mov"] * 3


def test_a_clip_starts_where_it_is_asked_to(make_video, read_frame_numbers, tmp_path: Path) -> None:
    trained = _trained("data.sampling_fps=25")
    video = str(make_video(tmp_path / "a.mp4", 60))
    middle, late = load_clip(trained, video), load_clip(trained, video, 1.2)
    assert middle.seconds == pytest.approx([(60 - 16) // 2 / 25 + 0.16 * frame for frame in range(4)])
    assert late.seconds == pytest.approx([1.2, 1.36, 1.52, 1.68])
    assert (late.indices, middle.indices, late.num_frames) == ([30, 34, 38, 42], [22, 26, 30, 34], 60)
    assert read_frame_numbers(torch.from_numpy(late.frames)) == pytest.approx([30, 34, 38, 42], abs=1)
    end = load_clip(trained, video, 2.3)
    assert end.seconds == pytest.approx([57 / 25, 59 / 25, 59 / 25, 59 / 25])  # the last frame repeats


@pytest.mark.parametrize("aspect", ["keep", "squeeze"])
def test_masks_are_cut_and_scaled_as_the_frames_of_the_clip_are(aspect: str, make_video, tmp_path: Path) -> None:
    trained = _trained(f"data.aspect={aspect}", "test.short_side=40", "data.sampling_fps=25")
    video = str(make_video(tmp_path / "a.mp4", 50, size=(72, 48)))
    frames = read_frames(video, lambda opened: torch.arange(50)).float().mean(dim=3)
    grey = 16 + 3 * torch.arange(50.0)[:, None, None]
    masks = torch.where(frames > (255 + grey) / 2, 3, 0).byte().numpy()  # the square that moves over a grey picture
    clip = load_clip(trained, video)
    shares = cut_masks(trained, clip, masks, 3)
    assert shares.shape == (3, 4, 32, 32) and not shares[:2].any() and shares[2].max() == 1
    seen, grey = torch.from_numpy(clip.frames).float().mean(dim=3), grey[clip.indices]
    error = (seen - grey - (255 - grey) * shares[2]).abs().mean()
    aside = (seen - grey - (255 - grey) * shares[2].roll(1, dims=2)).abs().mean()
    assert error < 0.6 and aside > 4 * error


def test_wrong_input_is_one_sentence_and_exit_code_2(videornn, tiny_run: Path, motion_set: Path, tmp_path: Path) -> None:
    checkpoint = tiny_run / "checkpoints/best.pt"
    video = motion_set / "videos/test/approach/approach_0000.mp4"
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    for arguments, message in (
        ([video, "--out", out, "--query", "9,0.5,0.5"], "frames 0 to 3"),
        ([video, "--out", out, "--query", "1,2"], "is not T,Y,X"),
        ([video, "--out", out, "--query", "1,0.5,1.5"], "shares in 0..1"),
        ([video, "--out", out, "--class", "orbit cv"], "did you mean 'orbit_cw'?"),
        ([video, "--out", out, "--class", "nope"], "of the network; some are "),
        ([video, "--out", out, "--stage", "layer4"], "the stages are res2, res3, res4, res5"),
        ([video, "--out", out, "--start", "99"], "outside the video, which has seconds 0 to "),
        ([video, "--out", out, "--start", "-1"], "outside the video"),
        ([video, "--out", out, "--start", "nan"], "outside the video"),
        ([tmp_path / "text.mp4", "--out", out], "text.mp4: cannot be decoded"),
        ([tmp_path / "none.mp4", "--out", out], "none.mp4: no such file"),
        ([video, "--out", tmp_path / "file"], "file: is a file; give the name of a folder"),
        ([video, "--out", tmp_path / "file/deeper"], "deeper: the folder cannot be made"),
    ):
        code, _, err = videornn("explain", checkpoint, *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, (arguments, err)
    assert not out.exists()


def test_a_full_disk_is_said(room_for_files, make_video, tmp_path: Path) -> None:
    from videornn.errors import UserError

    trained, video = _trained(), str(make_video(tmp_path / "a.mp4", 40))
    with room_for_files(5000), pytest.raises(UserError, match="cannot be written"):
        explain(trained, video, tmp_path / "out", [])
    assert not list((tmp_path / "out").iterdir())
