"""Weights of other projects: networks of theirs against ours where they can be had, names written by hand elsewhere."""

import os
import pickle
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from foreign_weights import SLOWFAST, WRITERS, caffe2_blobs, translate, write_caffe2, write_mmaction2, write_slowfast
from pytorchvideo.models.hub import c2d_r50, i3d_r50, slow_r50
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.video import r2plus1d_18, r3d_18

from videornn.checkpoints.checkpoint import save_checkpoint
from videornn.errors import UserError
from videornn.models import ATTENTION_KINDS
from videornn.models.nonlocal_block import DisentangledNonLocal, NonLocal
from videornn.models.resnet3d import ResNet3d
from videornn.models.weights import infer_network, load_weights, read_weights

FIVE = {"res3": [1, 3], "res4": [1, 3, 5]}
NL = partial(NonLocal, key_pool=(1, 2, 2))
DNL = partial(DisentangledNonLocal, key_pool=(1, 2, 2))


def _trained(network: nn.Module) -> nn.Module:
    """The network in eval mode with norms as training leaves them: no gain 1, no mean 0."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.normal_(module.bias)
    return network.eval()


@pytest.fixture(autouse=True)
def one_thread(few_threads) -> None:
    """Networks this small gain nothing from two threads, which on a busy machine wait for each other, 200 times longer."""
    torch.set_num_threads(1)


def _network(name: str = "slow", depth: int = 18, num_classes: int = 7, width: int = 8, attention=None) -> ResNet3d:
    """Ours; the five non-local blocks are put where bottlenecks are, and one each in res3 and res4 elsewhere."""
    torch.manual_seed(0)
    places = FIVE if depth == 50 else {"res3": [1], "res4": [1]}
    return ResNet3d(name, depth, num_classes=num_classes, width=width, attention=attention, places=places).eval()


def _random(**arguments) -> ResNet3d:
    """As _network, with other weights in every tensor; the bias before a norm is zero, as MMAction2 has none there."""
    network = _network(**arguments)
    for name, parameter in network.named_parameters():
        if not name.endswith("attention.out.bias"):
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    return _trained(network)


def _save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def _clip() -> Tensor:
    return torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1))


def _assert_same(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    assert 0.01 < scale < 1e4
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * scale)


def _assert_equal(actual: nn.Module, expected: nn.Module) -> None:
    theirs = expected.state_dict()
    for name, tensor in actual.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(("name", "build"), [("slow", slow_r50), ("i3d", i3d_r50), ("c2d", c2d_r50)])
@torch.no_grad()
def test_pytorchvideo_networks_and_ours_give_the_same_logits(name: str, build: Callable, wrapped: bool, tmp_path) -> None:
    theirs = _trained(build(pretrained=False, stem_dim_out=16, model_num_class=11))
    theirs.blocks[-1].pool = nn.AdaptiveAvgPool3d(1)  # theirs fits 224 pixels only
    state = theirs.state_dict()
    path = _save({"model_state": state} if wrapped else state, tmp_path / "weights.pyth")
    ours = _network(name, 50, num_classes=11, width=16)
    report = load_weights(ours, path)
    assert not report.new and not report.unused and not report.inflated and not report.notes
    assert len(report.loaded) == len([key for key in state if "num_batches" not in key])
    _assert_same(ours(_clip()), theirs(_clip()))
    expected = {"name": name, "depth": 50, "width": 16, "num_classes": 11, "attention": {"kind": "none"}}
    assert infer_network(read_weights(path)) == expected


@pytest.mark.parametrize("wrapped", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "build"), [("r3d", r3d_18), pytest.param("r2plus1d", r2plus1d_18, marks=pytest.mark.slow)])
@torch.no_grad()
def test_torchvision_video_networks_and_ours_give_the_same_logits(
    name: str, build: Callable, wrapped: bool, tmp_path
) -> None:
    theirs = _trained(build(weights=None, num_classes=11))
    state = theirs.state_dict()
    path = _save(
        {"model": state, "epoch": 3} if wrapped else {f"module.{key}": state[key] for key in state}, tmp_path / "w.pt"
    )
    ours = _network(name, 18, num_classes=11, width=64)
    report = load_weights(ours, path)
    expected = {"name": name, "depth": 18, "width": 64, "num_classes": 11, "attention": {"kind": "none"}}
    assert infer_network(read_weights(path)) == expected
    path.unlink()
    assert not report.new and not report.unused and not report.inflated
    _assert_same(ours(_clip()), theirs(_clip()))


@pytest.fixture(scope="module", params=[resnet18, resnet50], ids=["18", "50"])
def image_network(request, tmp_path_factory) -> Iterator[tuple[nn.Module, int, Path]]:
    network = _trained(request.param(weights=None))
    path = _save(network.state_dict(), tmp_path_factory.mktemp("image") / "resnet.pth")
    yield network, 18 if request.param is resnet18 else 50, path
    path.unlink()


@pytest.mark.parametrize(("name", "inflation"), [("c2d", "average"), ("c2d", "centre"), ("i3d", "centre")])
@torch.no_grad()
def test_an_inflated_image_network_sees_a_still_clip_as_its_image(image_network, name: str, inflation: str) -> None:
    theirs, depth, path = image_network
    ours = _network(name, depth, width=64)
    report = load_weights(ours, path, inflation=inflation)
    assert report.new == ("head.weight", "head.bias") and report.unused == ("fc.weight", "fc.bias")
    assert len(report.inflated) == {18: 20, 50: 53}[depth]
    assert report.notes == ("the head is new: the file has 1000 classes, the network 7",)
    image = _clip()[:, :, 0]
    ours.head, theirs.fc = nn.Identity(), nn.Identity()
    _assert_same(ours(image.unsqueeze(2).repeat(1, 1, 4, 1, 1)), theirs(image))
    assert infer_network(read_weights(path))["name"] is None


@pytest.mark.parametrize("inflation", ["average", "centre"])
@pytest.mark.parametrize("name", ["slow", "i3d"])
def test_inflated_kernels_sum_to_the_image_kernel_over_time(image_network, name: str, inflation: str) -> None:
    theirs, depth, path = image_network
    ours = _network(name, depth, width=64)
    load_weights(ours, path, inflation=inflation)
    for inflated, flat in (
        (ours.stem[0].conv.weight, theirs.conv1.weight),
        (ours.res5[1].conv1.conv.weight, theirs.layer4[1].conv1.weight),
    ):
        frames = inflated.shape[2]
        torch.testing.assert_close(inflated.sum(dim=2), flat, rtol=1e-6, atol=0)
        middle = flat / frames if inflation == "average" else flat
        assert torch.equal(inflated[:, :, frames // 2], middle)
        assert torch.equal(inflated[:, :, 0], middle if inflation == "average" or frames == 1 else torch.zeros_like(flat))


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(("name", "depth"), [("slow", 50), ("i3d", 50)])
@torch.no_grad()
def test_every_tensor_of_a_non_local_network_arrives(form: str, name: str, depth: int, tmp_path) -> None:
    theirs = _random(name=name, depth=depth, attention=NL)
    WRITERS[form](theirs.state_dict(), tmp_path / "weights")
    ours = _network(name, depth, attention=NL)
    report = load_weights(ours, tmp_path / "weights")
    assert report.format == form and not report.new and not report.unused and not report.inflated
    _assert_equal(ours, theirs)
    assert torch.equal(ours(_clip()), theirs(_clip()))
    attention = {"kind": "nl", "places": FIVE}
    expected = {"name": name, "depth": depth, "width": 8, "num_classes": 7, "attention": attention}
    assert infer_network(read_weights(tmp_path / "weights")) == expected


def test_notes_tell_where_mmaction2_computes_something_else(tmp_path) -> None:
    write_mmaction2(_random(name="i3d", attention=NL).state_dict(), tmp_path / "weights")
    notes = " ".join(load_weights(_network("i3d", attention=NL), tmp_path / "weights").notes)
    assert "pools keys and values after" in notes and "halves time in the stem" in notes
    assert "nl or nl_dot_product" in notes


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_numpy_1_and_2_are_read(core: bytes, protocol: int, tmp_path) -> None:
    network = _random()
    content = pickle.dumps({"blobs": caffe2_blobs(network.state_dict())}, protocol=2)
    if protocol == 2:
        content = re.sub(rb"numpy\._?core", core, content)
    else:
        content = pickle.dumps(pickle.loads(content), protocol=protocol)
    (tmp_path / "weights.pkl").write_bytes(content)
    ours = _network()
    load_weights(ours, tmp_path / "weights.pkl")
    _assert_equal(ours, network)


def test_files_of_torch_before_1_6_are_read(tmp_path) -> None:
    network = _random()
    torch.save(translate(network.state_dict(), SLOWFAST), tmp_path / "old.pyth", _use_new_zipfile_serialization=False)
    ours = _network()
    load_weights(ours, tmp_path / "old.pyth")
    _assert_equal(ours, network)


def test_values_are_cast_to_the_dtype_of_the_network(tmp_path) -> None:
    network = _random()
    path = _save(network.state_dict(), tmp_path / "weights.pt")
    ours = _network().to(torch.bfloat16)
    load_weights(ours, path)
    _assert_equal(ours, network.to(torch.bfloat16))


def test_a_head_of_other_classes_stays_new(tmp_path) -> None:
    path = _save(_random(num_classes=9).state_dict(), tmp_path / "weights.pt")
    ours = _network()
    before = ours.head.weight.clone()
    report = load_weights(ours, path)
    assert report.new == ("head.weight", "head.bias") and report.unused == ("head.weight", "head.bias")
    assert report.notes == ("the head is new: the file has 9 classes, the network 7",)
    assert torch.equal(ours.head.weight, before)


@pytest.mark.parametrize(
    ("in_file", "here", "taken"),
    [
        (["walk", "run"], ("walk", "run"), True),
        (["run", "walk"], ("walk", "run"), False),
        (["jump", "sit"], ("walk", "run"), False),
        (["jump", "sit"], (), True),  # a list without names
        (["class 0", "class 1"], ("walk", "run"), True),  # a checkpoint of such a list
    ],
)
def test_a_head_is_taken_where_its_rows_are_the_same_classes(
    in_file: list[str], here: tuple[str, ...], taken: bool, tmp_path: Path
) -> None:
    ours, theirs = (ResNet3d("slow", 18, num_classes=2, width=8) for _ in range(2))
    content = {"model": theirs.state_dict(), "step": 0, "config": {}, "class_names": in_file}
    save_checkpoint(tmp_path / "a.pt", content)
    before = ours.head.weight.clone()
    report = load_weights(ours, tmp_path / "a.pt", class_names=here)
    assert torch.equal(ours.head.weight, theirs.head.weight if taken else before)
    assert report.notes == (() if taken else (f"the head is new: the file has other classes ({', '.join(in_file)}, ...)",))
    assert torch.equal(ours.stem[0].conv.weight, theirs.stem[0].conv.weight)


def test_a_file_without_head_says_so(tmp_path) -> None:
    state = {name: value for name, value in _random().state_dict().items() if not name.startswith("head")}
    path = _save(state, tmp_path / "weights.pt")
    assert load_weights(_network(), path).notes == ("the head is new: the file has none, the network 7",)
    assert infer_network(read_weights(path))["num_classes"] is None


@pytest.mark.parametrize(
    ("of_file", "of_network", "misfit"),
    [
        (("slow", 50), ("c2d", 50), r"res4.0.conv1.conv.weight is 32x64x1x1x1 in the network and 32x64x3x1x1 in the file"),
        # most of it fits, inflated: five kernels of 53 tell
        (("slow", 50), ("i3d", 50), r"res4.1.conv1.conv.weight is 32x128x1x1x1 in the network and 32x128x3x1x1 in the file"),
        (("c2d", 34), ("c2d", 18), r"res2.2.conv1.conv.weight is absent in the network and 8x8x1x3x3 in the file"),
        (("c2d", 18), ("c2d", 34), r"res2.2.conv1.conv.weight is 8x8x1x3x3 in the network and absent in the file"),
    ],
)
def test_weights_of_another_network_are_refused_unless_forced(of_file, of_network, misfit: str, tmp_path) -> None:
    theirs = _random(name=of_file[0], depth=of_file[1])
    write_slowfast(theirs.state_dict(), tmp_path / "weights.pyth")
    ours, untouched = (_trained(_network(*of_network)) for _ in range(2))
    with pytest.raises(UserError, match=misfit) as error:
        load_weights(ours, tmp_path / "weights.pyth")
    assert re.search(r"\(SlowFast\) fits \d\d % of the layers", str(error.value)) and "force" in str(error.value)
    _assert_equal(ours, untouched)
    report = load_weights(ours, tmp_path / "weights.pyth", force=True)
    assert torch.equal(ours.res2[0].conv2.conv.weight, theirs.res2[0].conv2.conv.weight)
    assert report.new or report.unused


def test_attention_is_loaded_whole_or_not_at_all(tmp_path) -> None:
    write_slowfast(_random(attention=NL).state_dict(), tmp_path / "weights.pyth")
    ours, untouched = (_trained(_network(attention=DNL)) for _ in range(2))
    report = load_weights(ours, tmp_path / "weights.pyth")
    assert {name.partition(".attention.")[0] for name in report.new} == {"res3.1", "res4.1"}
    assert report.new == tuple(name for name in ours.state_dict() if ".attention." in name and "num_b" not in name)
    assert len(report.unused) == 2 * 12 and all("nonlocal" in name for name in report.unused)
    assert "attention at res3.1, res4.1 stays new" in report.notes[0] and "mask.weight" in report.notes[0]
    _assert_equal(ours.res3[1].attention, untouched.res3[1].attention)


def test_attention_that_the_network_lacks_is_unused(tmp_path) -> None:
    write_slowfast(_random(attention=NL).state_dict(), tmp_path / "weights.pyth")
    report = load_weights(_network(), tmp_path / "weights.pyth")
    assert not report.new and len(report.unused) == 2 * 12
    assert report.notes == ("attention of the file at res3.1, res4.1 is unused: the network has none there",)


@torch.no_grad()
def test_new_attention_leaves_the_logits_of_the_loaded_network_bit_identical(tmp_path) -> None:
    baseline = _random()
    path = _save(baseline.state_dict(), tmp_path / "weights.pt")
    ours = _network(attention=DNL)
    report = load_weights(ours, path)
    assert all(".attention." in name for name in report.new)
    assert torch.equal(ours(_clip()), baseline(_clip()))


def test_the_report_is_a_table_with_notes(tmp_path) -> None:
    state = {**_random(attention=NL, num_classes=400).state_dict(), "ema.decay": torch.ones(1)}
    path = _save(state, tmp_path / "weights.pt")
    lines = load_weights(_network(depth=18, attention=DNL, num_classes=10), path).lines()
    assert lines[0] == f"weights of {path} (videornn)"
    assert re.fullmatch(r"  loaded +\d+", lines[1]) and re.fullmatch(r"  inflated +0", lines[2])
    assert re.fullmatch(r"  new +\d+  res3.1.attention \(\d+\), res4.1.attention \(\d+\), head \(2\)", lines[3])
    assert lines[4].endswith("head (2), ema (1)") and lines[4].startswith("  unused")
    assert lines[5] == "  note: the head is new: the file has 400 classes, the network 10"
    assert len({re.match(r"  \w+ +\d+", line).end() for line in lines[1:5]}) == 1


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_nothing_of_a_malicious_file_is_run(kind: str, tmp_path) -> None:
    content, path = {"model_state": {"s2.pathway0_res0.x": Evil(tmp_path / "marker")}}, tmp_path / "weights"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"\(\w+\.system\); nothing of it was run") as error:
        load_weights(_network(), path)
    assert "torch.save(model.state_dict()" in str(error.value)
    assert not (tmp_path / "marker").exists()


def test_a_single_flipped_bit_is_found(tmp_path) -> None:
    torch.save({"stem.0.conv.weight": torch.full((64,), 7.0)}, tmp_path / "w.pyth")
    content = bytearray((tmp_path / "w.pyth").read_bytes())
    content[content.index(torch.full((64,), 7.0).numpy().tobytes()) + 2] ^= 1
    (tmp_path / "w.pyth").write_bytes(content)
    assert torch.load(tmp_path / "w.pyth", weights_only=True)["stem.0.conv.weight"][0] != 7  # torch does not look
    with pytest.raises(UserError, match=r"w.pyth is damaged: its record data/0 fails its checksum"):
        read_weights(tmp_path / "w.pyth")


def test_damaged_files_are_named(tmp_path) -> None:
    state = _random().state_dict()
    torch.save(state, tmp_path / "zip")
    torch.save(state, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    write_caffe2(state, tmp_path / "pickle")
    for whole in ("zip", "legacy", "pickle"):
        content = (tmp_path / whole).read_bytes()
        for size in (0, 20, 100, len(content) // 2, len(content) - 10):
            (tmp_path / "cut").write_bytes(content[:size])
            with pytest.raises(UserError, match="cut is damaged, cut short"):
                read_weights(tmp_path / "cut")
    for garbage in (b"PK\x03\x04" + bytes(100), b"<html>not found</html>", bytes(range(256)) * 20):
        (tmp_path / "garbage").write_bytes(garbage)
        with pytest.raises(UserError, match="garbage is damaged, cut short"):
            read_weights(tmp_path / "garbage")
    with pytest.raises(UserError, match="nowhere: there is no such file"):
        read_weights(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [{"encoder.weight": torch.ones(2)}, {"epoch": 3}, [1, 2], torch.ones(3)])
def test_unknown_networks_are_answered_with_the_known_ones(content: object, tmp_path) -> None:
    path = _save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"no network that videornn knows: videornn, torchvision .*SlowFast.*MMAction2"):
        read_weights(path)


@pytest.mark.parametrize("name", ["s1.pathway1_stem.conv.weight", "t_conv1_w", "blocks.0.multipathway_blocks.0.conv.weight"])
def test_networks_of_two_pathways_are_refused(name: str, tmp_path) -> None:
    state = {**translate(_network().state_dict(), SLOWFAST), name: torch.ones(1)}
    with pytest.raises(UserError, match="two pathways"):
        read_weights(_save({"model_state": state}, tmp_path / "weights.pyth"))


def test_blocks_of_no_network_of_ours_are_named(tmp_path) -> None:
    state = _network().state_dict()
    odd = {name: value for name, value in state.items() if not name.startswith("res3.1")}
    with pytest.raises(UserError, match=r"\(2, 1, 2, 2\) residual blocks"):
        infer_network(read_weights(_save(odd, tmp_path / "odd.pt")))
    odd = {**state, "res3.0.conv1.conv.weight": torch.ones(16, 8, 7, 3, 3)}
    with pytest.raises(UserError, match="kernels of none of slow, i3d"):
        infer_network(read_weights(_save(odd, tmp_path / "odd.pt")))


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_the_kind_of_attention_is_told_from_its_names(kind: str, tmp_path) -> None:
    path = _save(_network(attention=ATTENTION_KINDS[kind]).state_dict(), tmp_path / "weights.pt")
    same_names = {"nl_dot_product": "nl", "nl_add": "nl", "nl_own_mask": "dnl"}
    expected = same_names.get(kind, kind)
    assert infer_network(read_weights(path))["attention"] == {"kind": expected, "places": {"res3": [1], "res4": [1]}}
