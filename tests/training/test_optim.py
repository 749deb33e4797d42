"""Optimizers, learning rates, class weights and the moving average, against formulas and loops written out here."""

import copy
import io
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from videornn.config import TrainConfig
from videornn.models.nonlocal_block import DisentangledNonLocal
from videornn.models.resnet3d import ResNet3d
from videornn.training.ema import decay_at, ema_updates, start_ema
from videornn.training.optim import build_optimizer, class_weights, load_optimizer_, lr_at, peak_lr, set_lr

SETTINGS = {"lr": 0.2, "betas": (0.9, 0.99), "weight_decay": 0.1}


class NoHostSync(TorchDispatchMode):
    """Fails where a value is read back from the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        return function(*args, **(kwargs or {}))


def _network(depth: int = 18) -> ResNet3d:
    """Every kind of parameter: convolutions, norms, biases, an attention block with its scalar gate."""

    def block(channels: int) -> nn.Module:
        return DisentangledNonLocal(channels, gate="scalar")

    torch.manual_seed(0)
    network = ResNet3d("i3d", depth, num_classes=3, width=4, dropout=0, attention=block, places={"res3": [1], "res4": [0]})
    return network.to(memory_format=torch.channels_last_3d)


def _optimizer(model: nn.Module, name: str, **settings: float) -> torch.optim.Optimizer:
    return build_optimizer(model, TrainConfig(optimizer=name, **SETTINGS | settings))


def _backward(network: nn.Module, seed: int = 0) -> None:
    clips = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(seed))
    network(clips.contiguous(memory_format=torch.channels_last_3d)).square().mean().backward()


def _group_of(optimizer: torch.optim.Optimizer) -> dict[int, dict]:
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_convolutions_decay_norms_biases_and_gates_do_not_and_frozen_parameters_are_left_out(name: str) -> None:
    network = _network()
    network.stem.requires_grad_(False)
    optimizer = _optimizer(network, name, norm_weight_decay=0.01)
    groups = _group_of(optimizer)
    assert len(optimizer.param_groups) == 2
    for key, parameter in network.named_parameters():
        if key.startswith("stem"):
            assert id(parameter) not in groups, key
        else:
            one_dimensional = ".norm." in key or key.endswith("bias") or "gain" in key
            assert groups[id(parameter)]["weight_decay"] == (0.01 if one_dimensional else 0.1), key
    assert sum(key.endswith("gain.weight") for key, _ in network.named_parameters()) == 2


def test_every_stage_learns_slower_than_the_next_by_the_layer_decay() -> None:
    network = _network()
    optimizer = _optimizer(network, "adamw", layer_decay=0.5)
    set_lr(optimizer, 0.64)
    groups = _group_of(optimizer)
    expected = {"head": 0.64, "res5": 0.32, "res4": 0.16, "res3": 0.08, "res2": 0.04, "stem": 0.02}
    for key, parameter in network.named_parameters():
        assert groups[id(parameter)]["lr"] == pytest.approx(expected[key.split(".")[0]]), key
    assert len(optimizer.param_groups) == 12
    plain = _optimizer(nn.Sequential(nn.Linear(2, 2)), "adamw", layer_decay=0.5)
    assert all(group["lr_scale"] == 1 for group in plain.param_groups)


def test_sgd_and_adamw_of_the_fused_kernels_follow_their_formulas_in_float64() -> None:
    gradients = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name in ("sgd", "adamw"):
        layer = nn.Linear(3, 5, bias=False).double()
        x = layer.weight.detach().clone()
        optimizer = _optimizer(layer, name)
        assert optimizer.param_groups[0]["fused"]
        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        for step, gradient in enumerate(gradients, 1):
            set_lr(optimizer, 0.2 / step)
            layer.weight.grad = gradient.clone()
            optimizer.step()
            if name == "sgd":
                decayed = gradient + 0.1 * x
                mean = 0.9 * mean + decayed
                x = x - 0.2 / step * (decayed + 0.9 * mean)
            else:
                mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
                adam = (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-8)
                x = x - 0.2 / step * (adam + 0.1 * x)
        torch.testing.assert_close(layer.weight.detach(), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_state_goes_through_a_file_and_on_to_the_same_weights_whatever_its_order_in_memory(name: str) -> None:
    """The third goes on one number at a time, which no order in memory can confuse."""
    generator = torch.Generator().manual_seed(4)
    first = nn.ModuleDict({"stem": nn.Conv3d(4, 6, 3), "head": nn.Linear(6, 2)}).to(memory_format=torch.channels_last_3d)
    gradients = [[torch.randn(p.shape, generator=generator) for p in first.parameters()] for _ in range(2)]
    models = [first, copy.deepcopy(first), copy.deepcopy(first)]
    optimizers = [_optimizer(model, name, layer_decay=0.7) for model in models]
    _step(first, optimizers[0], gradients[0])
    default_order = copy.deepcopy(optimizers[0].state_dict())
    for values in default_order["state"].values():
        values |= {key: value.contiguous() for key, value in values.items() if isinstance(value, Tensor)}
    file = io.BytesIO()
    torch.save(default_order, file)
    for model, optimizer in zip(models[1:], optimizers[1:], strict=True):
        model.load_state_dict(first.state_dict())
        file.seek(0)
        load_optimizer_(optimizer, torch.load(file, weights_only=True))
        assert [group["lr_scale"] for group in optimizer.param_groups] == pytest.approx([0.7**5, 0.7**5, 1, 1])
    for group in optimizers[2].param_groups:
        group["fused"], group["foreach"] = False, False
    for model, optimizer in zip(models, optimizers, strict=True):
        _step(model, optimizer, gradients[1])
    for straight, resumed, plain in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(straight, resumed)
        torch.testing.assert_close(straight, plain, rtol=1e-5, atol=1e-6)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    optimizer.step()


def test_gradients_lie_in_memory_as_their_parameters_do_as_fused_kernels_need() -> None:
    torch.set_num_threads(2)  # with one thread torch picks convolutions of another library, which do not keep it
    network = _network(50)
    for seed in range(2):  # the second adds to the first
        _backward(network, seed)
    for key, parameter in network.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), key


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_neither_a_step_nor_the_moving_average_reads_from_the_device(name: str) -> None:
    network = _network()
    optimizer = _optimizer(network, name)
    ema = start_ema(network)
    _backward(network)
    with NoHostSync():
        set_lr(optimizer, 0.1)
        optimizer.step()
        ema_updates(ema, network)(0.9)
    with NoHostSync(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(1).item()


def _rates(moments: list[float], **settings: object) -> list[float]:
    section = TrainConfig(**{"warmup_epochs": 0.0, **settings})
    return [lr_at(section, moment, section.epochs) for moment in moments]


def test_the_slowfast_schedule_has_its_published_numbers() -> None:
    """0.1 for batch 64, half a cosine over 196 epochs from epoch 0, 34 epochs of warm-up from 0.01."""
    recipe = {"lr": 0.1, "epochs": 196, "warmup_epochs": 34.0, "warmup_start": 0.1}

    def cosine(epoch: float) -> float:
        return 0.05 * (math.cos(math.pi * epoch / 196) + 1)

    top = cosine(34)  # the warm-up ends here, below 0.1
    assert top == pytest.approx(0.092757, rel=1e-5)
    assert _rates([0, 17, 33.5, 34, 98, 147, 195.5], **recipe) == pytest.approx(
        [0.01, (0.01 + top) / 2, 0.01 + (top - 0.01) * 33.5 / 34, top, 0.05, cosine(147), cosine(195.5)], rel=1e-12
    )


def test_steps_fall_at_their_epochs_also_during_the_warm_up() -> None:
    recipe = {"lr": 0.01, "epochs": 118, "schedule": "step", "step_epochs": (44.0, 88.0)}
    assert _rates([0, 43.999, 44, 87.9, 88, 117], **recipe) == pytest.approx([0.01, 0.01, 0.001, 0.001, 1e-4, 1e-4])
    halves = {"lr": 1.0, "epochs": 10, "schedule": "step", "step_epochs": (2.0, 5.0), "step_factor": 0.5}
    assert _rates([0, 2, 4, 5], **halves, warmup_epochs=4.0) == pytest.approx([0.1, 0.3, 0.5, 0.25])


def test_polynomial_and_cosine_fall_to_their_end_rate() -> None:
    recipe = {"lr": 2.0, "epochs": 10, "schedule": "polynomial", "power": 2.0, "end_lr": 0.1}
    assert _rates([0, 5, 10], **recipe) == pytest.approx([2.0, 0.2 + 1.8 * 0.25, 0.2])
    assert _rates([1, 2], **recipe, warmup_epochs=2.0, warmup_start=0.0) == pytest.approx(
        [(0.2 + 1.8 * 0.64) / 2, 0.2 + 1.8 * 0.64]
    )
    assert _rates([0, 2.5, 10], lr=2.0, epochs=10, end_lr=0.1) == pytest.approx([2.0, 0.2 + 0.9 * (1 + math.sqrt(0.5)), 0.2])


def test_a_longer_run_stretches_the_schedule_and_its_steps() -> None:
    section = TrainConfig(epochs=10, lr=1.0, schedule="step", step_epochs=(2.0, 5.0), warmup_epochs=0.0)
    assert [lr_at(section, epoch, 15) for epoch in (2.9, 3, 7.4, 7.5)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert lr_at(TrainConfig(epochs=10, lr=1.0, warmup_epochs=0.0), 7.5, 15) == pytest.approx(0.5)


def test_the_learning_rate_follows_the_batch() -> None:
    assert peak_lr(TrainConfig(lr=0.1, batch_size=1024, lr_batch_size=64)) == pytest.approx(1.6)
    assert peak_lr(TrainConfig(lr=0.1, batch_size=1024)) == 0.1
    recipe = {"lr": 0.1, "batch_size": 1024, "lr_batch_size": 64, "warmup_epochs": 5.0, "warmup_start": 0.0}
    assert _rates([2.5], **recipe) == pytest.approx([0.5 * 1.6 * 0.5 * (1 + math.cos(math.pi * 0.05))])


@pytest.mark.parametrize(("mode", "power"), [("sqrt", 0.5), ("balanced", 1.0)])
def test_class_weights_have_mean_one_over_the_clips_and_fall_with_the_size_of_the_class(mode: str, power: float) -> None:
    labels = torch.tensor([0] * 16 + [1] * 4 + [3])
    weights = class_weights(labels, 5, mode)
    assert weights.dtype == torch.float32 and weights.shape == (5,)
    assert weights[labels].mean().item() == pytest.approx(1)
    assert (weights[1] / weights[0]).item() == pytest.approx(4**power)
    assert (weights[3] / weights[0]).item() == pytest.approx(16**power)
    assert weights[2] == weights[4] == 0
    assert class_weights(labels, 5, "none") is None
    if mode == "balanced":  # every class has the same say: 21 clips, 3 classes
        assert (weights * torch.tensor([16, 4, 0, 1, 0])).tolist() == pytest.approx([7, 7, 0, 7, 0])


def test_the_moving_average_is_that_of_a_hand_loop_and_integer_buffers_are_copied() -> None:
    network = _network()
    _backward(network)
    ema = start_ema(network)
    assert not ema.training and all(p.grad is None and not p.requires_grad for p in ema.parameters())
    expected = {key: value.double() for key, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.copy_(torch.rand(value.shape, generator=generator) * 100)  # whole numbers in integer buffers
        ema_updates(ema, network)(0.75)
        for key, value in network.state_dict().items():
            expected[key] = 0.75 * expected[key] + 0.25 * value.double() if value.is_floating_point() else value.double()
    for key, value in ema.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-4, msg=key)
    assert any(not value.is_floating_point() for value in ema.state_dict().values())
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())


def test_the_first_weights_are_soon_forgotten() -> None:
    assert decay_at(0, 0.999) == 0.1 and decay_at(10**6, 0.999) == 0.999
    assert math.prod(decay_at(step, 0.9999) for step in range(1000)) < 1e-12


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_buckets_of_distributed_training_lie_in_memory_as_the_parameters_do(one_rank: None) -> None:
    network = _network(50)
    parallel = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
    for seed in range(2):
        _backward(parallel, seed)
    ema = start_ema(network)
    for key, parameter in network.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), key
    ema_updates(ema, parallel.module)(0.5)
