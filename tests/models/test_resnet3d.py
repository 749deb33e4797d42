import os
import shutil
from functools import partial

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from pytorchvideo.models.hub import c2d_r50, i3d_r50, slow_r50
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50, resnet101, resnet152
from torchvision.models.video import r2plus1d_18, r3d_18
from torchvision.models.video.resnet import BasicBlock as TheirBlock
from torchvision.models.video.resnet import BasicStem, Conv3DSimple, VideoResNet

from videornn.config import AttentionConfig, ModelConfig
from videornn.errors import UserError
from videornn.models import ATTENTION_KINDS, build_model
from videornn.models.nonlocal_block import AttentionBlock, DisentangledNonLocal, GlobalContext, NonLocal, UnaryNonLocal
from videornn.models.resnet3d import FAMILIES, Conv3d, ResNet3d

DNL = partial(DisentangledNonLocal, key_pool=(1, 2, 2))
NL = partial(NonLocal, key_pool=(1, 2, 2))
FIVE = {"res3": (1, 3), "res4": (1, 3, 5)}
NETWORKS = [(name, depth) for name, family in FAMILIES.items() for depth in (10, 18, 50) if depth in family.depths]


def _on_meta(build, **arguments) -> nn.Module:
    with torch.device("meta"):
        return build(**arguments)


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _open_gates(model: nn.Module) -> nn.Module:
    """The network with attention blocks that are not the identity any more."""
    for module in model.modules():
        if isinstance(module, GlobalContext):
            nn.init.normal_(module.bottleneck[3].weight, std=0.3)
        elif isinstance(module, AttentionBlock):
            nn.init.ones_(module.norm.weight)
    return model


def _small(name: str, depth: int, block=DNL, **options) -> ResNet3d:
    torch.manual_seed(0)
    places = {"res3": (0,), "res4": "all"}
    return _open_gates(
        ResNet3d(
            name,
            depth,
            num_classes=5,
            width=8,
            dropout=0.0,
            zero_init_residual=False,
            attention=block,
            places=places,
            **options,
        )
    )


@pytest.mark.parametrize(
    ("name", "theirs", "millions"), [("slow", slow_r50, 32.45), ("i3d", i3d_r50, 28.04), ("c2d", c2d_r50, 24.33)]
)
def test_parameters_are_the_published_ones(name: str, theirs, millions: float) -> None:
    ours = _on_meta(ResNet3d, name=name, depth=50, num_classes=400)
    assert _num_parameters(ours) == _num_parameters(_on_meta(theirs, pretrained=False))
    assert round(_num_parameters(ours) / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "theirs"), [("r3d", r3d_18), ("r2plus1d", r2plus1d_18)])
def test_parameters_are_those_of_torchvision(name: str, theirs) -> None:
    assert _num_parameters(_on_meta(ResNet3d, name=name, depth=18, num_classes=400)) == _num_parameters(_on_meta(theirs))


@pytest.mark.parametrize("theirs", [resnet18, resnet34, resnet50, resnet101, resnet152])
def test_every_depth_of_c2d_has_the_parameters_of_the_image_network(theirs) -> None:
    depth = int(theirs.__name__.removeprefix("resnet"))
    image_network = _on_meta(theirs)
    assert _num_parameters(_on_meta(ResNet3d, name="c2d", depth=depth, num_classes=1000)) == _num_parameters(image_network)
    for name in ("slow", "i3d"):  # as many tensors, of which those with time are larger
        ours = _on_meta(ResNet3d, name=name, depth=depth, num_classes=1000)
        assert len(list(ours.parameters())) == len(list(image_network.parameters()))


def test_r3d_34_has_the_parameters_of_torchvision() -> None:
    theirs = _on_meta(
        VideoResNet, block=TheirBlock, conv_makers=[Conv3DSimple] * 4, layers=[3, 4, 6, 3], stem=BasicStem, num_classes=400
    )
    assert _num_parameters(_on_meta(ResNet3d, name="r3d", depth=34, num_classes=400)) == _num_parameters(theirs)


@pytest.mark.parametrize(("name", "millions"), [("slow", 39.81), ("i3d", 35.40), ("c2d", 31.69)])
def test_parameters_with_five_non_local_blocks_are_the_published_ones(name: str, millions: float) -> None:
    model = _on_meta(ResNet3d, name=name, depth=50, num_classes=400, attention=NL, places=FIVE)
    assert round(_num_parameters(model) / 1e6, 2) == millions


def _multiply_adds(model: nn.Module, crop: int = 256) -> dict[str, int]:
    with torch.no_grad():
        analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, 3, 8, crop, crop))
        return dict(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "theirs"), [("slow", slow_r50), ("i3d", i3d_r50), ("c2d", c2d_r50)])
def test_multiply_adds_are_those_of_pytorchvideo(name: str, theirs) -> None:
    ours, other = _multiply_adds(ResNet3d(name, 50, num_classes=400)), _multiply_adds(theirs(pretrained=False))
    # theirs classifies at each of 2x2 places, ours once
    assert {**ours, "linear": 0} == {**other, "linear": 0}
    if name == "slow":  # published: PyTorchVideo counts the convolutions, MMAction2 the norms as well
        assert round((ours["conv"] + ours["linear"]) / 1e9, 2) == 54.52
        assert round(sum(ours.values()) / 1e9, 2) == 54.75


@pytest.mark.slow
def test_multiply_adds_of_five_non_local_blocks_are_the_published_ones() -> None:
    added = sum(_multiply_adds(ResNet3d("slow", 50, num_classes=400, attention=NL, places=FIVE)).values())
    added -= sum(_multiply_adds(ResNet3d("slow", 50, num_classes=400)).values())
    expected = 0
    for num_blocks, positions, channels in ((2, 8 * 32 * 32, 512), (3, 8 * 16 * 16, 1024)):
        keys, inner = positions // 4, channels // 2
        # the fused product, which fvcore does not know, and keys and values that MMAction2 pools after the convolution
        added += num_blocks * positions * keys * 2 * inner
        added += num_blocks * 2 * (positions - keys) * channels * inner
        expected += num_blocks * (4 * positions * channels * inner + 2 * positions * keys * inner)
    assert round(expected / 1e9, 1) == round(96.66 - 54.75, 1)  # what MMAction2 publishes for the blocks
    assert abs(added - expected) / expected < 0.005  # the norms of the blocks


def _clip(dtype: torch.dtype = torch.float32) -> Tensor:
    clip = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return clip.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(("name", "depth"), NETWORKS)
def test_logits_are_finite_and_every_parameter_gets_a_gradient(name: str, depth: int) -> None:
    model = _small(name, depth)
    logits = model(_clip())
    assert logits.shape == (2, 5) and logits.isfinite().all()
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, key


def _run(model: nn.Module, function=None) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, gradients and buffers of one training step."""
    logits = (model if function is None else function)(_clip(next(model.parameters()).dtype))
    logits.square().mean().backward()
    return (
        logits.detach(),
        {name: parameter.grad for name, parameter in model.named_parameters()},
        {name: buffer.clone() for name, buffer in model.named_buffers()},
    )


@pytest.mark.parametrize(("name", "depth"), NETWORKS)
def test_activation_checkpointing_changes_no_bit_of_outputs_gradients_and_statistics(name: str, depth: int) -> None:
    plain, recomputed = _run(_small(name, depth)), _run(_small(name, depth, recompute_blocks=True))
    assert torch.equal(plain[0], recomputed[0])
    for mine, other in zip(plain[1:], recomputed[1:], strict=True):
        assert all(torch.equal(mine[key], other[key]) for key in mine)


def _saved_bytes(model: nn.Module) -> int:
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(_clip())
    return sum(storages.values()) - sum(parameter.numel() * 4 for parameter in model.parameters())


def test_activation_checkpointing_saves_memory() -> None:
    assert _saved_bytes(_small("slow", 50, recompute_blocks=True)) < 0.5 * _saved_bytes(_small("slow", 50))


@pytest.mark.slow
@pytest.mark.parametrize("recompute_blocks", [False, True])
@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_compiled_networks_compute_the_same(kind: str, recompute_blocks: bool) -> None:
    torch.compiler.reset()
    block = partial(ATTENTION_KINDS[kind], key_pool=(1, 2, 2))
    plain = _run(_small("slow", 10, block).double())
    model = _small("slow", 10, block, recompute_blocks=recompute_blocks).double()
    compiled = _run(model, torch.compile(model, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_a_network_compiled_to_machine_code_computes_the_same() -> None:
    torch.compiler.reset()
    plain, model = _run(_small("r2plus1d", 10).double()), _small("r2plus1d", 10).double()
    torch.testing.assert_close(_run(model, torch.compile(model)), plain, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", list(ATTENTION_KINDS))
def test_channels_last_is_kept_through_the_network(kind: str) -> None:
    torch.set_num_threads(2)  # with one thread torch picks convolutions of another library, which do not keep it
    model = _small("i3d", 10, partial(ATTENTION_KINDS[kind], key_pool=(1, 2, 2)))
    model = model.to(memory_format=torch.channels_last_3d)
    layouts = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv3d, nn.BatchNorm3d, AttentionBlock)):
            module.register_forward_hook(lambda module, inputs, output, name=name: layouts.__setitem__(name, output))
    model(_clip())
    for name, output in layouts.items():
        assert output.is_contiguous(memory_format=torch.channels_last_3d), name


@pytest.mark.parametrize(("name", "depth"), [*NETWORKS, ("slow", "nl"), ("slow", "dnl")])
def test_no_hidden_copies_permute_activations(name: str, depth) -> None:
    torch.set_num_threads(2)  # see above
    block = {"nl": NL, "dnl": DNL}.get(depth)
    torch.manual_seed(0)
    model = ResNet3d(name, depth if block is None else 18, num_classes=5, width=8, attention=block, places={"res3": "all"})
    model = model.to(memory_format=torch.channels_last_3d)
    clip = _clip()
    with torch.profiler.profile(record_shapes=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(clip).sum().backward()
    copies = [
        event
        for event in profile.key_averages(group_by_input_shape=True)
        if event.key in ("aten::copy_", "aten::clone") and event.input_shapes and len(event.input_shapes[0]) == 5
    ]
    # a copy of an activation has the batch first; what is left are kernels
    assert not [event.input_shapes[0] for event in copies if event.input_shapes[0][0] == len(clip)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "depth"), NETWORKS)
def test_low_precision_gradients_are_those_of_float32(name: str, depth: int, dtype: torch.dtype) -> None:
    gradients = []
    for enabled in (False, True):
        model = _small(name, depth).eval()  # batch statistics of networks this small amplify rounding a thousand times
        with torch.autocast("cpu", dtype, enabled=enabled):
            logits = model(_clip())
        logits.float().square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.1


def test_attention_put_into_a_network_leaves_its_logits_bit_identical() -> None:
    torch.manual_seed(0)
    plain = ResNet3d("slow", 18, num_classes=5, width=8).eval()
    dnl = ResNet3d("slow", 18, num_classes=5, width=8, attention=DNL, places={"res3": (0, 1), "res4": (1,)}).eval()
    missing, unexpected = dnl.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(".attention." in key for key in missing)
    clip = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(plain(clip), dnl(clip))


def test_only_i3d_and_c2d_halve_time() -> None:
    for name, frames in (("slow", 8), ("i3d", 4), ("c2d", 4)):
        model = ResNet3d(name, 10, num_classes=2, width=8).eval()
        shapes = []
        model.res5.register_forward_hook(lambda module, inputs, output, shapes=shapes: shapes.append(output.shape[2:]))
        model(torch.zeros(1, 3, 8, 64, 64))
        assert tuple(shapes[0]) == (frames, 2, 2)


@pytest.mark.parametrize(
    ("kernel", "frames"), [((3, 3, 3), 2), ((3, 1, 1), 2), ((5, 1, 1), 4), ((3, 3, 3), 1), ((3, 3, 3), 4)]
)
def test_bf16_weight_gradients_on_the_cpu_are_right_where_plain_torch_is_wrong(kernel: tuple, frames: int) -> None:
    torch.manual_seed(0)
    conv = Conv3d(32, 32, kernel)
    x = torch.randn(2, 32, frames, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    gradients = []
    for enabled in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv(x)
        y.float().square().mean().backward()
        gradients.append(conv.weight.grad.clone())
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert error < 0.02


def test_impossible_places_and_missing_classes_are_named() -> None:
    section = ModelConfig(depth=18, num_classes=4)
    attention = section.attention.model_copy(update={"kind": "dnl", "places": {"res3": (1, 3)}})
    with pytest.raises(UserError, match=r"block 3 of res3: at this depth the stage has blocks 0 to 1"):
        build_model(section.model_copy(update={"attention": attention}))
    with pytest.raises(UserError, match="num_classes"):
        build_model(ModelConfig(depth=18))
    with pytest.raises(UserError, match=r"of this size \(width 1000000, 3 classes\) does not fit into memory"):
        build_model(ModelConfig(width=1_000_000, num_classes=3))
    with pytest.raises(ValueError, match="no slow of depth 17"):
        ResNet3d("slow", 17, num_classes=2)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "r3d", "depth": 50}, "no r3d of depth 50; its depths are 10, 18, 34"),
        ({"attention": {"kind": "gc", "gate": "scalar"}}, "gc has neither gate nor scale nor temperature"),
        ({"attention": {"kind": "unary", "temperature": 0.5}}, "UnaryNonLocal has no temperature"),
        ({"attention": {"kind": "dnl", "axes": "time"}}, "pools space"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(section: dict, message: str) -> None:
    attention = AttentionConfig(**section.pop("attention", {}))
    with pytest.raises(UserError, match=message):
        build_model(ModelConfig(num_classes=4, attention=attention, **section))


def test_every_block_of_a_stage_can_have_attention() -> None:
    model = _small("slow", 18, UnaryNonLocal)
    assert all(isinstance(block.attention, UnaryNonLocal) for block in model.res4)
    assert [isinstance(block.attention, UnaryNonLocal) for block in model.res3] == [True, False]


def test_paths_are_dropped_from_0_at_the_first_block_to_drop_path_at_the_last() -> None:
    model = build_model(ModelConfig(depth=18, width=8, num_classes=5, drop_path=0.35))
    blocks = [*model.res2, *model.res3, *model.res4, *model.res5]
    rates = [getattr(block.drop_path, "p", 0.0) for block in blocks]
    assert rates == pytest.approx([0.35 * index / 7 for index in range(8)])
    off = build_model(ModelConfig(depth=18, width=8, num_classes=5))
    assert all(isinstance(block.drop_path, nn.Identity) for block in off.res5)
    assert list(off.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("depth", [18, 50])
def test_a_dropped_clip_takes_the_shortcut_and_the_others_are_scaled_up(depth: int) -> None:
    block = ResNet3d("slow", depth, num_classes=2, width=4, drop_path=0.4, zero_init_residual=False).res5[1]
    x = torch.randn(512, block.conv1.conv.in_channels, 1, 2, 2, generator=torch.Generator().manual_seed(1)).relu()
    torch.manual_seed(0)
    with torch.no_grad():
        y = block(x)
        rate, block.drop_path = block.drop_path.p, nn.Identity()
        branch = block.conv1(x).relu_()
        branch = block.conv2(branch) if depth == 18 else block.conv3(block.conv2(branch).relu_())
    # block 1 has the identity as its shortcut
    dropped = torch.tensor([torch.equal(before, after) for before, after in zip(x, y, strict=True)])
    assert abs(dropped.float().mean() - rate) < 4 * (rate * (1 - rate) / 512) ** 0.5  # four standard deviations
    torch.testing.assert_close(y[~dropped], (x + branch / (1 - rate))[~dropped].relu(), rtol=1e-4, atol=1e-5)


def test_dropped_paths_follow_the_seed_and_are_off_in_evaluation() -> None:
    model, plain = _small("slow", 18, drop_path=0.5), _small("slow", 18)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(_clip()))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(_clip()), plain.eval()(_clip()))


def test_activation_checkpointing_drops_the_same_paths_again() -> None:
    outcomes = []
    for recompute_blocks in (False, True):
        model = _small("slow", 18, drop_path=0.5, recompute_blocks=recompute_blocks)
        torch.manual_seed(0)
        outcomes.append(_run(model))
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


def test_dropped_paths_keep_channels_last() -> None:
    torch.set_num_threads(2)  # with one thread torch picks convolutions of another library, which do not keep it
    model = _small("i3d", 10, drop_path=0.5).to(memory_format=torch.channels_last_3d)
    outputs = []
    for block in (*model.res3, *model.res4, *model.res5):
        block.drop_path.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(_clip())
    assert len(outputs) == 3 and all(output.is_contiguous(memory_format=torch.channels_last_3d) for output in outputs)
