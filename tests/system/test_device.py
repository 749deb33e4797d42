"""What is said of speed against published numbers, numbers written out here, and the system's own."""

import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.video import R2Plus1D_18_Weights, R3D_18_Weights

from videornn.models import ResNet3d, softmax_attention
from videornn.models.flops import flops_by_module, forward_flops, training_flops
from videornn.models.nonlocal_block import DisentangledNonLocal
from videornn.system import device as device_module
from videornn.system.device import matrix_rate, peak_memory, tune

CPU = torch.device("cpu")


@pytest.fixture
def kernels_as_before():
    """What tune sets for the whole process."""
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    filling = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]
    torch.utils.deterministic.fill_uninitialized_memory = filling


def test_multiply_adds_are_those_counted_by_hand() -> None:
    network = nn.Sequential()
    network.conv = nn.Conv3d(3, 4, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False)
    network.pool = nn.Sequential(nn.AdaptiveMaxPool3d(1), nn.Flatten())
    network.head = nn.Linear(4, 7)
    conv = (8 * 10 * 12) * 4 * (3 * 3 * 5 * 5)  # outputs in space-time, channels, inputs of each
    assert forward_flops(network, (8, 20, 24)) == conv + 4 * 7
    assert flops_by_module(network, torch.zeros(2, 3, 8, 20, 24))["conv"] == 2 * conv


def test_multiply_adds_of_attention_have_both_products_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    block = DisentangledNonLocal(32, key_pool=(1, 2, 2), gate="scalar")
    num_queries, num_keys = 4 * 8 * 8, 4 * 4 * 4
    projections = num_queries * 32 * 16 + num_keys * (32 * 16 + 32 * 32 + 32)  # q; k, v and the unary map of pooled keys
    products = num_queries * num_keys * (16 + 32) + num_keys * 32  # q k, w v; the unary sum
    counted = flops_by_module(block, torch.zeros(1, 32, 4, 8, 8))[""]
    monkeypatch.setattr(softmax_attention, "_by_products", lambda query: True)  # as on a GPU at some widths
    assert flops_by_module(block, torch.zeros(1, 32, 4, 8, 8))[""] == counted
    assert counted == pytest.approx(projections + products, rel=0.01)  # fvcore counts some of what is done per position


@pytest.mark.parametrize(("name", "weights"), [("r3d", R3D_18_Weights), ("r2plus1d", R2Plus1D_18_Weights)])
def test_multiply_adds_are_those_that_torchvision_publishes(name: str, weights) -> None:
    published = 1e9 * weights.KINETICS400_V1.meta["_ops"]  # convolutions and the classifier; ours have the norms, too
    assert forward_flops(ResNet3d(name, 18, num_classes=400), (16, 112, 112)) == pytest.approx(published, rel=0.005)


def test_counting_leaves_the_network_as_it_was() -> None:
    network = ResNet3d("slow", 10, num_classes=5, width=8, dropout=0.5)
    network.stem.eval()  # frozen
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    forward_flops(network, (4, 32, 32))
    assert [module.training for module in network.modules()] == modes and True in modes and False in modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_counting_searches_no_kernels_and_the_steps_do_afterwards(kernels_as_before: None) -> None:
    cudnn, searching = torch.backends.cudnn, []
    cudnn.benchmark = True
    network = nn.Sequential(nn.Conv3d(3, 4, 1))
    network[0].register_forward_pre_hook(lambda *_: searching.append(cudnn.benchmark))
    forward_flops(network, (2, 4, 4))
    assert set(searching) == {False} and cudnn.benchmark and cudnn.enabled


def test_the_matrix_rate_is_the_best_of_products_that_do_not_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def seconds(left: torch.Tensor, right: torch.Tensor) -> float:
        sizes.append(len(left))
        return {512: 1e-3, 1024: 4e-3, 2048: 5e-2}[len(left)] + (1.0 if sizes.count(len(left)) == 1 else 0.0)

    monkeypatch.setattr(device_module, "LONG_ENOUGH", 0.03)
    monkeypatch.setattr(device_module, "_seconds", seconds)
    assert matrix_rate(CPU, torch.float32) == pytest.approx(2 * 1024**3 / 4e-3)
    assert set(sizes) == {512, 1024, 2048}  # 2048 is slower than what is needed, 4096 would take long


def test_the_matrix_rate_of_this_machine_is_one() -> None:
    assert 1e8 < matrix_rate(CPU, torch.float32) < 1e14


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_peak_memory_is_what_the_system_calls_the_high_water_mark() -> None:
    held = torch.ones(50_000_000)
    kilobytes = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    assert peak_memory(CPU) == pytest.approx(1024 * int(kilobytes), rel=0.02)
    assert peak_memory(CPU) > held.numel() * 4


def test_deterministic_kernels_are_demanded_and_no_longer_demanded(
    kernels_as_before, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is as before after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn = torch.backends.cudnn
    last_wins = partial(torch.zeros(3).put_, torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))  # torch has no fixed order
    tune(torch.device("cuda"), deterministic=False)
    assert cudnn.benchmark and not cudnn.deterministic and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    last_wins()
    tune(torch.device("cuda"), deterministic=True)
    assert cudnn.deterministic and not cudnn.benchmark and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="deterministic"):
        last_wins()
    tune(CPU, deterministic=True, strict=False)
    with pytest.warns(UserWarning, match="deterministic"):
        last_wins()
    tune(CPU, deterministic=False)
    last_wins()


@pytest.mark.parametrize("name", ["i3d", "r2plus1d"])
def test_networks_train_with_deterministic_kernels_and_to_the_same_bits(name: str, kernels_as_before) -> None:
    tune(CPU, deterministic=True)
    clips = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        block = partial(DisentangledNonLocal, key_pool=(1, 2, 2))
        network = ResNet3d(name, 10, num_classes=5, width=8, attention=block, places={"res3": "all"})
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.to(memory_format=torch.channels_last_3d)(clips)
        logits.float().square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_frozen_parts_have_a_forward_pass_alone() -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, 1, bias=False), nn.Conv3d(4, 5, 1, bias=False), nn.Conv3d(5, 6, 1, bias=False))
    first, second, third = (32 * product for product in (3 * 4, 4 * 5, 5 * 6))
    assert training_flops(network, (2, 4, 4)) == 6 * (first + second + third)
    network[1].requires_grad_(False)  # the gradient goes through it to the first
    assert training_flops(network, (2, 4, 4)) == 6 * (first + third) + 4 * second
    network[0].requires_grad_(False)
    assert training_flops(network, (2, 4, 4)) == 2 * (first + second) + 6 * third
