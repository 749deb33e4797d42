"""The code that only a GPU runs, on tensors that say they are on one: torch's FakeTensorMode has shapes, types, strides and
devices, but no values.

It shows tensors of two devices in one operator, whatever would make the host wait for a value (it has none to give), lost
memory formats, and calls that do not exist. It cannot show numbers, speed, which kernel runs, an order of streams, nor what
a kernel refuses; and without a GPU torch takes bf16 convolutions for ones that know no channels last, so that formats are
looked at in fp16 and fp32 alone. Backward passes go through the nodes of the graph one by one: torch's engine asks the
driver. The tests marked "cuda" are the same with values; they need a GPU.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from videornn.config import TrainConfig, load_config
from videornn.data.dataset import BadVideo
from videornn.data.loader import base_shape
from videornn.data.mixing import Mixing, batch_mixing
from videornn.data.plan import BatchPlan, Phase
from videornn.data.shared_batch import Batch, to_device
from videornn.distributed.watch import RankWatch
from videornn.evaluation.evaluate import score_batches
from videornn.explain.attention_maps import attention_blocks, block_maps, observe, strongest_points
from videornn.explain.attention_numbers import block_numbers
from videornn.explain.grad_cam import grad_cam
from videornn.models import ATTENTION_KINDS, ResNet3d, build_model
from videornn.models.forward import Normalize, predict_logits
from videornn.models.norms import freeze_parts, set_batch_norm
from videornn.system.device import matrix_rate
from videornn.training import train as training
from videornn.training import validation
from videornn.training.ema import decay_at, ema_updates, start_ema
from videornn.training.meter import Meter
from videornn.training.nonfinite import NonfiniteGuard
from videornn.training.optim import build_optimizer
from videornn.training.precise_bn import update_batch_norm
from videornn.training.run import Run
from videornn.training.step import build_scaler, train_step

GPU = torch.device("cuda", 0)
CHANNELS_LAST = torch.channels_last_3d
AXES = {"spacetime": (1, 2, 2), "space": (1, 2, 2), "time": (2, 1, 1)}  # and a key_pool that goes with them

pytestmark = [
    pytest.mark.skipif(not torch.version.cuda, reason="needs a PyTorch built for CUDA"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the tests marked cuda say more"),
    pytest.mark.skipif(torch.__version__ < (2, 15), reason="fakes of older versions of torch want a driver, or crash"),
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operators see fakes only, real tensors become fakes, and autocast, backward passes and streams do without a driver."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(Tensor, "backward", lambda self: _backward(self, None))
    monkeypatch.setattr("torch.autograd.grad", lambda output, inputs: tuple(_backward(output, inputs)))
    monkeypatch.setattr("torch._fused_sgd_", _fused_sgd_)
    gc.disable()  # what is freed within an operator on fakes crashes torch 2.15
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        gc.enable()


@pytest.fixture
def may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are read from the device are ones."""

    def of_fakes(name: str, answer) -> None:
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self: answer(self) if isinstance(self, FakeTensor) else real(self))

    of_fakes("item", lambda _: 1.0)
    of_fakes("tolist", lambda x: np.ones(x.shape).tolist())
    of_fakes("__float__", lambda _: 1.0)
    of_fakes("__int__", lambda _: 1)
    of_fakes("__bool__", lambda _: True)


def _backward(output: Tensor, inputs: list[Tensor] | None) -> list[Tensor]:
    """Gradients of inputs, or into .grad of the leaves, as autograd's engine gives them; checks the device of each."""
    order, seen, stack = [], set(), [(output.grad_fn, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [(node, True), *((parent, False) for parent, _ in node.next_functions if parent is not None)]
    pending = {output.grad_fn: {output.output_nr: torch.ones_like(output)}}
    leaves: dict[Tensor, Tensor] = {}
    task, outer = next(_TASKS), torch._C._current_graph_task_id
    torch._C._current_graph_task_id = lambda: task  # activation checkpointing computes again once for each
    try:
        with torch.no_grad():
            for node in reversed(order):
                given = pending.pop(node, {})
                if hasattr(node, "variable") and given:
                    leaves[node.variable] = given[0]
                elif given:
                    in_python = isinstance(node, torch.autograd.function.BackwardCFunction)
                    grads = (node.apply if in_python else node)(*map(given.get, range(len(node._input_metadata))))
                    grads = grads if isinstance(grads, tuple) else (grads,)
                    _hand_on(grads[: len(node.next_functions)], node, pending)  # in Python, options of ours come after these
    finally:
        torch._C._current_graph_task_id = outer
    if inputs is not None:
        return [leaves[tensor] for tensor in inputs]
    for leaf, grad in leaves.items():
        grad = grad if grad.stride() == leaf.stride() else torch.empty_like(leaf).copy_(grad)  # as AccumulateGrad does
        leaf.grad = grad if leaf.grad is None else leaf.grad + grad
    return []


def _hand_on(grads: tuple[Tensor | None, ...], node, pending: dict) -> None:
    for grad, (parent, number) in zip(grads, node.next_functions, strict=True):
        if parent is not None and grad is not None:
            meta = parent._input_metadata[number]
            assert grad.device == meta.device, f"{node} gives a gradient on {grad.device} of a tensor on {meta.device}"
            grad = grad.to(meta.dtype).sum_to_size(meta.shape)
            slots = pending.setdefault(parent, {})
            slots[number] = slots[number] + grad if number in slots else grad


_TASKS = itertools.count(1)


def _fused_sgd_(params, grads, buffers, *, found_inf=None, grad_scale=None, **options) -> None:
    """What CUDA's kernel asks of its tensors; torch has no fake of it."""
    for tensors in zip(params, grads, buffers, strict=True):
        assert {tensor.device for tensor in tensors} == {GPU}
        sizes = zip(*([s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] for x in tensors), strict=True)
        assert all(len(set(strides)) == 1 for strides in sizes)
    assert all(scalar is None or scalar.device == GPU for scalar in (found_inf, grad_scale))


def _network(name: str = "i3d", kind: str = "dnl", axes: str = "spacetime", norm: str = "batch", **options) -> ResNet3d:
    with _disable_current_modes():  # made with values: a fake cannot be moved, and norms made as fakes crash torch 2.15
        attention = partial(ATTENTION_KINDS[kind], key_pool=AXES[axes], axes=axes)
        model = ResNet3d(name, 10, num_classes=5, width=8, attention=attention, places={"res3": "all"}, **options)
        model = set_batch_norm(model, "batch" if norm == "sub" else norm, 1 if norm == "sub" else None, GPU)
    return model.to(GPU, memory_format=CHANNELS_LAST)


def _normalize() -> Normalize:
    return Normalize([0.45] * 3, [0.225] * 3, GPU)


def _clips(batch: int = 4) -> Tensor:
    return torch.zeros(batch, 3, 8, 32, 32, dtype=torch.uint8)


def _steps(
    model: nn.Module, precision: str, optimizer: str = "sgd", *, skip_nonfinite: bool = False, number: int = 2
) -> torch.optim.Optimizer:
    """Training steps with all that there is: two mixed parts, class weights, smoothing, clipping, averaging, a meter."""
    optimizer = build_optimizer(model, TrainConfig(optimizer=optimizer, weight_decay=0.01, layer_decay=0.9))
    scaler = build_scaler(GPU, precision, skip_nonfinite=skip_nonfinite)
    mixing, rng = Mixing(5, mixup_alpha=0.8, cutmix_alpha=1.0), np.random.default_rng(0)
    ema, meter, weights = start_ema(model), Meter(), torch.ones(5, device=GPU)
    for step in range(number):
        clips, labels = _normalize()(_clips()), torch.zeros(4, dtype=torch.int64, device=GPU)
        parts = [mixing(*part, rng) for part in zip(clips.split(2), labels.split(2), strict=True)]
        result = train_step(
            model,
            parts,
            optimizer,
            num_parts=2,
            scaler=scaler,
            precision=precision,
            label_smoothing=0.1,
            class_weights=weights,
            clip_norm=1.0,
        )
        ema_updates(ema, model)(decay_at(step, 0.99))
        meter.add(step, [0] * 4, result, 1.0)
        assert {result.loss.device, result.correct.device, result.grad_norm.device} == {GPU}
        assert result.loss.dtype == torch.float32
    held = [*model.parameters(), *model.buffers(), *ema.parameters(), *ema.buffers()]
    assert {tensor.device for tensor in held} == {GPU}
    return optimizer


def test_a_fake_shows_two_devices_in_one_operator(gpu: None) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, device=GPU) + torch.ones(3)


def test_a_fake_shows_a_wait(gpu: None) -> None:
    with pytest.raises(DataDependentOutputException):
        torch.zeros(3, device=GPU).sum().item()


@pytest.mark.parametrize("skip_nonfinite", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_steps_stay_on_the_gpu_and_never_wait(
    gpu: None, optimizer: str, precision: str, skip_nonfinite: bool
) -> None:
    made = _steps(_network(), precision, optimizer, skip_nonfinite=skip_nonfinite)
    state = [value for values in made.state.values() for value in values.values() if isinstance(value, Tensor)]
    assert state and {tensor.device for tensor in state} == {GPU}
    assert made.defaults["fused"]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_every_attention_block_trains_and_is_looked_at_on_the_gpu(gpu: None, may_wait: None, kind: str, axes: str) -> None:
    model = _network("slow", kind, axes)
    _steps(model, "bf16", number=1)
    model.eval()
    clip = _normalize()(_clips(1))
    seen = observe(model, clip)
    for name, block in attention_blocks(model).items():
        x, output = seen.blocks[name]
        maps = [part for part in block.attention(x) if part is not None]
        assert maps and all(part.device == GPU and part.dtype == torch.float32 for part in maps)
        places = seen.places[name.split(".")[0]]
        drawn = block_maps(block, x, places, strongest_points(x, output, places))
        shown = [part for part in (*drawn.maps, *drawn.pairwise_terms, drawn.unary) if part is not None]
        assert shown and all(part.device.type == "cpu" for part in shown)
        assert block_numbers(block, x, output)
    assert grad_cam(model, clip, "res4", 2).device.type == "cpu"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["slow", "i3d", "c2d", "r3d", "r2plus1d"])
def test_every_convolution_gets_and_gives_channels_last(gpu: None, name: str, precision: str) -> None:
    model, lost = _network(name), []

    def look(module: nn.Module, inputs: tuple[Tensor], output: Tensor, *, name: str) -> None:
        for what, tensor in (("input", inputs[0]), ("output", output), ("weight", module.weight)):
            if not tensor.is_contiguous(memory_format=CHANNELS_LAST):
                lost.append(f"{what} of {name}: {tuple(tensor.shape)} {tensor.stride()}")

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(partial(look, name=name))
    _steps(model, precision)
    assert not lost


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("ndim", "axes"), [(1, "spacetime"), (2, "spacetime"), (3, "spacetime"), (3, "space"), (3, "time")])
@pytest.mark.parametrize("kind", ["nl", "nl_gaussian", "nl_add", "nl_own_mask", "pairwise", "dnl"])
def test_fused_attention_gets_rows_in_one_piece(
    gpu: None, monkeypatch: pytest.MonkeyPatch, kind: str, ndim: int, axes: str, channels_last: bool
) -> None:
    # check_last_dim_stride_equals_1_dense in torch's sdp_utils_cpp.h: all but the kernel that builds the map ask for it
    strides, real = [], F.scaled_dot_product_attention

    def look(*inputs: Tensor, **options) -> Tensor:
        strides.extend(tensor.stride(-1) for tensor in inputs)
        return real(*inputs, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", look)
    with _disable_current_modes():
        block = ATTENTION_KINDS[kind](16, ndim=ndim, axes=axes)
    formats = {2: torch.channels_last, 3: CHANNELS_LAST}
    memory_format = formats.get(ndim, torch.contiguous_format) if channels_last else torch.contiguous_format
    block = block.to(GPU)
    x = torch.zeros(2, 16, *(4, 5, 6)[:ndim], device=GPU).contiguous(memory_format=memory_format)
    block(x.requires_grad_()).sum().backward()
    assert strides == [1, 1, 1]


@pytest.mark.parametrize("recompute_blocks", [False, True])
@pytest.mark.parametrize("kind", ["batch", "sub", "sync", "frozen"])
def test_every_norm_trains_on_the_gpu_with_and_without_checkpointing(gpu: None, kind: str, recompute_blocks: bool) -> None:
    model = _network(norm=kind, recompute_blocks=recompute_blocks, drop_path=0.2)
    freeze_parts(model, ["stem"])
    _steps(model, "fp16", skip_nonfinite=True)
    batches = (_normalize()(_clips()) for _ in range(3))
    update_batch_norm(model, batches, num_batches=2, precision="bf16")
    assert {buffer.device for buffer in model.buffers()} == {GPU}


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Streams of no device, which write down what they are asked; test_loader looks at the order."""
    asked: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device == GPU

        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...
        def record_event(self) -> str:
            return "event"

        def wait_event(self, event: str) -> None:
            asked.append(event)

    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", lambda stream: stream)
    monkeypatch.setattr("torch.cuda.current_stream", Stream)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: asked.append(f"{self.device} kept"))
    return asked


def _batch(clips: Tensor) -> Batch:
    count = len(clips)
    # a slice in place of the mask on the host, whose true entries a fake cannot count
    return Batch(clips, torch.zeros(count, dtype=torch.int64), np.arange(count), slice(None), [BadVideo("a.mp4", "why")])


def test_batches_come_to_the_gpu_one_copy_each_in_the_layout_they_have(gpu: None, streams: list[str]) -> None:
    clips = torch.zeros(2, 8, 32, 32, 3, dtype=torch.uint8).movedim(-1, 1)
    batches = list(to_device([_batch(clips)] * 3, GPU))
    assert {tensor.device for batch in batches for tensor in (batch.clips, batch.labels)} == {GPU}
    assert all(batch.clips.stride() == clips.stride() for batch in batches)  # else it is no plain copy, and not in time
    assert streams == ["event", "cuda:0 kept", "cuda:0 kept"] * 3


def test_a_test_scores_views_on_the_gpu_and_hands_them_to_the_host(gpu: None, streams: list[str]) -> None:
    views = _clips(6).unflatten(0, (2, 3))
    model = _network().eval()
    for precision in ("fp32", "bf16", "fp16"):
        (batch,) = score_batches(model, [_batch(views)], _normalize(), precision=precision, views_at_once=4)
        assert batch.logits.shape == (2, 3, 5)
        assert {batch.logits.device.type, batch.labels.device.type} == {"cpu"} and batch.logits.dtype == torch.float32
    assert predict_logits(model, _normalize(), _clips(3), views_at_once=2).device.type == "cpu"


def test_the_loop_of_a_training_runs_on_the_gpu(
    gpu: None, streams: list[str], may_wait: None, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    settings = ["model.width=8", "model.num_classes=5", "data.num_frames=8", "data.crop_size=32", "data.mixup_alpha=0.8"]
    settings += ["train.epochs=2", "train.batch_size=8", "train.accumulate=2", "train.log_every=1", "train.val_every=1"]
    settings += ["train.precision=fp16", "train.nonfinite=skip", "train.ema_decay=0.9", "train.precise_bn=1"]
    config = load_config(ROOT / "configs/quickstart.yaml", settings)
    with _disable_current_modes():
        model, labels = build_model(config.model), np.zeros(16, np.int64)
    model = model.to(GPU, memory_format=CHANNELS_LAST)
    section = config.train
    table = type("Table", (), {"labels": labels, "path": str, "__len__": lambda self: 16})()
    run = Run(
        config=config,
        out=tmp_path,
        data=SimpleNamespace(train=table, val=None),
        plan=BatchPlan(16, [Phase(section.epochs, (base_shape(config.data, section.batch_size),))]),
        device=GPU,
        model=model,
        ema=start_ema(model),
        optimizer=build_optimizer(model, section),
        scaler=build_scaler(GPU, section.precision, skip_nonfinite=True),
        guard=NonfiniteGuard(tmp_path / "nonfinite.csv", table, "skip", 1, fp16=True),
        mixing=batch_mixing(config.data, 5),
        normalize=_normalize(),
    )
    batches = [_batch(_clips()) for _ in range(2 * run.plan.num_steps)]
    for batch in batches:
        batch.bad.clear()
    lines: list[dict] = []
    logger = SimpleNamespace(say=print, check_place=lambda: None, advance=lambda step: None)
    logger.log = lambda kind, step, **numbers: lines.append(numbers)
    monkeypatch.setattr(validation, "build_loader", lambda *_, **__: iter(batches))
    speed = SimpleNamespace(numbers=lambda clips: {"mfu": 0, "memory_gb": 0}, slower=1.0)
    monkeypatch.setattr(training, "SpeedWatch", lambda run: speed)
    monkeypatch.setattr(Run, "save", lambda self, **which: self.check_finite())
    with RankWatch(10.0) as watch:
        training.Trainer(run, batches, None, logger, watch, []).train()
    assert run.step == run.plan.num_steps == len(lines) == 4
    assert lines[-1]["loss"] == 1.0  # what every number read is here


def test_the_matrices_that_are_timed_do_not_count_as_memory_of_the_run(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: told.append("product"))
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: told.append(f"forget {device}"))
    monkeypatch.setattr("torch.Generator", lambda device, of_host=torch.Generator: of_host())  # a GPU's wants a driver
    matrix_rate(GPU, torch.bfloat16)
    assert told.count("product") == len(told) - 1 > 0 and told[-1] == "forget cuda:0"
