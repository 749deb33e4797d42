"""scripts/example_segmentation.py and example_detection.py: what they draw, read, compare and refuse, and a step of each."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from torchvision.datasets import Cityscapes

SCRIPTS = ROOT / "scripts"
TINY = ("--steps", 1, "--batch", 2, "--size", 32, "--num-test", 2)


@pytest.fixture(scope="module")
def examples() -> SimpleNamespace:
    """The scripts and their parts as modules."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        names = ("drawn_shapes", "example_rows", "example_segmentation", "example_detection")
        return SimpleNamespace(**{name.rpartition("_")[2]: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a script: (exit code, lines, errors)."""

    def call(script: object, *arguments: object) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, arguments)])
        code = script.main()
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return call


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_only_the_marker_says_which_class_the_objects_have(examples: SimpleNamespace) -> None:
    for seed in range(20):
        (with_red, things, of_red), (with_cyan, same_things, of_cyan) = (
            examples.shapes.draw_picture(np.random.default_rng(seed), 48, (2, 3), red=red) for red in (True, False)
        )
        assert of_red == [1, 2, 2, 2, 2] and of_cyan == [1, 3, 3, 3, 3]
        assert torch.equal(things, same_things) and things.unique().tolist() == [0, 1, 2, 3, 4, 5]
        near_marker = torch.nn.functional.max_pool2d((things == 1)[None].float(), 5, 1, 2)[0] > 0  # and its soft edge
        assert torch.equal(with_red[:, ~near_marker], with_cyan[:, ~near_marker])
        red, cyan = (picture[:, things == 1].mean(1) for picture in (with_red, with_cyan))
        assert red[0] > 2 * red[2] and cyan[2] > 2 * cyan[0]


@pytest.mark.slow
def test_networks_with_and_without_a_block_begin_alike_and_see_the_same(examples: SimpleNamespace, call) -> None:
    code, lines, _ = call(examples.segmentation, *TINY, "--block", "none", "dnl", "nl", "dnl_learnt", "gc")
    steps = [line.split(": ")[1].split(", ")[1] for line in lines if ": step 1" in line]
    assert code == 0 and len(steps) == 5 and len(set(steps)) == 1, steps
    document = json.loads(lines[-1])
    assert list(document) == ["none", "dnl", "nl", "dnl_learnt", "gc"]
    assert set(document["dnl"]) == {"seeds", "mIoU_mean", "better_than_none", "better_than_none_mean"}
    (numbers,) = document["none"]["seeds"]
    assert list(numbers) == ["mIoU", *examples.shapes.CLASSES] and all(0 <= number <= 100 for number in numbers.values())


@pytest.mark.slow
def test_other_seeds_are_other_networks_on_other_pictures_and_the_same_seed_is_the_same(examples, call) -> None:
    losses = []
    for _ in range(2):
        _, lines, _ = call(examples.segmentation, *TINY, "--block", "none", "--seeds", 2)
        losses.append([line.split(", ")[2] for line in lines if ": step 1" in line])
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]


@pytest.mark.slow
def test_mask_rcnn_trains_and_tests_with_a_block_after_res4(examples: SimpleNamespace, call) -> None:
    pytest.importorskip("pycocotools")
    code, lines, _ = call(examples.detection, *TINY, "--block", "none", "dnl")
    losses = [line.split(", ")[2] for line in lines if ": step 1" in line]
    assert code == 0 and len(losses) == 2 and losses[0] == losses[1]
    document = json.loads(lines[-1])
    assert set(document["dnl"]["seeds"][0]) >= {"AP", "AP50", "marker"}


def test_boxes_hold_their_masks_to_the_last_pixel(examples: SimpleNamespace) -> None:
    data = examples.detection.drawn(Namespace(size=48, num_test=3))
    image, target = data.draw(np.random.default_rng(0))
    assert image.shape == (3, 48, 144) and target["masks"].shape == (5, 48, 144)
    for (left, top, right, bottom), mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
        inside = mask[top:bottom, left:right]
        assert inside.sum() == mask.sum() > 0
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert data.num_test == 3 and data.num_classes == 4
    assert torch.equal(data.test(1)[0], data.test(1)[0]) and not torch.equal(data.test(1)[0], data.test(2)[0])


def test_differences_are_those_of_the_same_seed(examples: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    found = {("none", 0): 50.0, ("none", 1): 60.0, ("dnl", 0): 53.0, ("dnl", 1): 61.5}
    arguments = Namespace(block=["dnl", "none", "dnl"], seeds=2)
    examples.rows.compare(lambda *run: {"mIoU": found[run], "disc": 1.0}, arguments, "mIoU")
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["none"]["mIoU_mean"] == 55.0 and document["dnl"]["mIoU_mean"] == 57.25
    assert document["dnl"]["better_than_none"] == [3.0, 1.5] and document["dnl"]["better_than_none_mean"] == 2.25
    assert document["dnl"]["seeds"] == [{"mIoU": 53.0, "disc": 1.0}, {"mIoU": 61.5, "disc": 1.0}]


def test_cityscapes_is_read_with_its_19_classes(examples: SimpleNamespace, tmp_path: Path) -> None:
    ids = np.arange(34, dtype=np.uint8).repeat(34).reshape(34, 34)  # a row of pixels for each
    for split in ("train", "val"):
        _save(tmp_path / f"leftImg8bit/{split}/ulm/ulm_0_0_leftImg8bit.png", np.full((34, 34, 3), 51, np.uint8))
        _save(tmp_path / f"gtFine/{split}/ulm/ulm_0_0_gtFine_labelIds.png", ids)
    data = examples.segmentation.in_a_folder(Namespace(data="cityscapes", root=str(tmp_path), size=34, num_test=9))
    image, labels = data.test(0)
    assert image.shape == (3, 34, 34) and image.allclose(torch.tensor(0.2)) and data.num_test == 1
    of_ids = {kind.id: kind for kind in Cityscapes.classes}
    for number, row in enumerate(labels.tolist()):
        assert len(set(row)) == 1
        assert row[0] == 255 if of_ids[number].ignore_in_eval else data.classes[row[0]] == of_ids[number].name
    assert len(data.classes) == 19 and torch.equal(data.draw(np.random.default_rng(0))[1], labels)  # flips change no row


def test_voc_is_read_with_its_21_classes(examples: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "VOCdevkit/VOC2012"
    for split in ("train", "val"):
        _save(folder / f"JPEGImages/{split}.jpg", np.zeros((40, 50, 3), np.uint8))
        _save(folder / f"SegmentationClass/{split}.png", np.repeat([0, 15, 20, 255], 500).astype(np.uint8).reshape(40, 50))
        (folder / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text(f"{split}\n")
    data = examples.segmentation.in_a_folder(Namespace(data="voc", root=str(tmp_path), size=32, num_test=None))
    image, labels = data.draw(np.random.default_rng(0))
    assert image.shape == (3, 32, 32) and labels.unique().tolist() == [0, 15, 20, 255]
    assert len(data.classes) == 21 and data.classes[15] == "person" and data.num_test == 1


def test_coco_is_read_with_crowds_in_tests_alone(examples: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    square = {"id": 1, "image_id": 1, "category_id": 90, "bbox": [10, 20, 30, 10], "area": 300, "iscrowd": 0}
    square["segmentation"] = [[10, 20, 40, 20, 40, 30, 10, 30]]
    crowd = square | {"id": 2, "category_id": 3, "bbox": [0, 0, 2, 48], "area": 96, "iscrowd": 1}
    crowd["segmentation"] = {"counts": [0, 96, 64 * 48 - 96], "size": [48, 64]}
    flat = square | {"id": 3, "bbox": [5, 5, 0, 9]}
    pictures = [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 48} for number in (1, 2)]
    kinds = [{"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]
    (tmp_path / "json").mkdir()
    for part in ("train2017", "val2017"):
        for number in (1, 2):
            _save(tmp_path / f"{part}/{number}.png", np.full((48, 64, 3), 255, np.uint8))
        document = {"images": pictures, "annotations": [square, crowd, flat], "categories": kinds}
        (tmp_path / f"json/instances_{part}.json").write_text(json.dumps(document))
    arguments = Namespace(data="coco", root=str(tmp_path), annotations=tmp_path / "json", num_test=None)
    data = examples.detection.coco(arguments)
    image, target = data.test(0)
    assert torch.equal(image, torch.ones(3, 48, 64)) and data.num_classes == 91 and data.num_test == 2
    assert target["boxes"].tolist() == [[10, 20, 40, 30], [0, 0, 2, 48]]
    assert target["labels"].tolist() == [90, 3] and target["iscrowd"].tolist() == [0, 1]
    assert target["masks"].sum((1, 2)).tolist() == [300, 96] and target["masks"][0, 20:30, 10:40].all()
    seen = [data.draw(np.random.default_rng(seed))[1] for seed in range(8)]
    assert {tuple(target["labels"].tolist()) for target in seen} == {(90,), ()}
    nothing = next(target for target in seen if not len(target["labels"]))
    assert nothing["boxes"].shape == (0, 4) and nothing["masks"].shape == (0, 48, 64)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("segmentation", ["--data", "voc"], "--data voc needs --root"),
        ("segmentation", ["--data", "cityscapes", "--root", "nowhere"], "--root nowhere: torchvision finds no cityscapes"),
        ("segmentation", ["--data", "voc", "--root", "nowhere"], "--root nowhere: torchvision finds no voc"),
        ("detection", ["--data", "coco"], "--data coco needs --root"),
        ("detection", ["--data", "coco", "--root", "nowhere"], "nowhere/annotations/instances_train2017.json"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    examples, call, tmp_path, monkeypatch, script, arguments, message
) -> None:
    if script == "detection":
        pytest.importorskip("pycocotools")
    monkeypatch.chdir(tmp_path)
    code, _, error = call(vars(examples)[script], *arguments)
    assert code == 2 and message in error and "Traceback" not in error and len(error.splitlines()) == 1


def test_a_lack_of_pycocotools_is_told_before_anything_is_trained(examples, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples.detection.importlib.util, "find_spec", lambda name: None)
    code, lines, error = call(examples.detection, *TINY)
    assert code == 2 and not lines and "pip install 'videornn[detection]'" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--block", "cnn"], ["--seeds", "0"], ["--size", "8"], ["--batch", "1"]])
def test_impossible_options_are_refused(examples, call, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call(examples.segmentation, *arguments)
    assert stop.value.code == 2 and arguments[0] in capsys.readouterr().err
