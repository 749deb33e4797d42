"""What only a GPU can show: numbers against the CPU's in float64, memory, kernels, streams, and a run from end to end.

    python -m pytest -m cuda -s

runs these and nothing else; -s shows which kernels take which widths. Products are in full float32 where numbers are
compared: TF32, which cuDNN takes for float32 convolutions, has 10 bits.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import CONFIG
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from videornn import load_predictor
from videornn.checkpoints.trained import load_trained
from videornn.config import TrainConfig, load_config
from videornn.data.shared_batch import Batch, to_device
from videornn.errors import UserError
from videornn.evaluation.evaluate import evaluate
from videornn.models import ATTENTION_KINDS, ResNet3d
from videornn.models.batch_norm import BatchNorm3d
from videornn.models.forward import Normalize
from videornn.models.norms import set_batch_norm
from videornn.models.softmax_attention import softmax_attention
from videornn.system.device import matrix_rate, tune
from videornn.training.optim import build_optimizer
from videornn.training.step import build_scaler, train_step
from videornn.training.train import train

pytestmark = pytest.mark.cuda

GPU = torch.device("cuda", 0)
CHANNELS_LAST = torch.channels_last_3d
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ERRORS = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.005}  # relative, of the norm
WIDTHS = {"res3": (6272, 1568, 256), "res4": (1568, 392, 512), "gaussian res4": (1568, 392, 1024)}  # N, M, D
KERNELS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """No TF32, and what tune sets is as before after the test."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    cudnn.allow_tf32 = False
    yield
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)


def _error(value: Tensor, expected: Tensor) -> float:
    """Relative, of the whole tensor."""
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("place", WIDTHS)
def test_attention_at_the_widths_of_the_networks_is_right_and_builds_no_map(place: str, precision: str) -> None:
    num_queries, num_keys, width = WIDTHS[place]
    scale, dtype = width**-0.5, DTYPES[precision]
    inputs = [_random(2, n, width, seed=n).to(dtype) for n in (num_queries, num_keys, num_keys)]
    grad = _random(2, num_queries, width, seed=7).to(dtype)

    def run(tensors: list[Tensor], grad: Tensor, function) -> list[Tensor]:
        tensors = [tensor.detach().requires_grad_() for tensor in tensors]
        output = function(*tensors)
        output.backward(grad)
        return [output, *(tensor.grad for tensor in tensors)]

    def by_the_book(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(1, 2) * scale).softmax(2) @ value

    on_gpu = [tensor.to(GPU) for tensor in inputs]
    expected = run([tensor.double() for tensor in on_gpu], grad.to(GPU).double(), by_the_book)
    run(on_gpu, grad.to(GPU), partial(softmax_attention, scale=scale))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = run(on_gpu, grad.to(GPU), partial(softmax_attention, scale=scale))
    peak = torch.cuda.max_memory_allocated() - before
    for value, right in zip(found, expected, strict=True):
        assert _error(value, right) < ERRORS[precision]
    map_bytes = 2 * num_queries * num_keys * 4
    rows_bytes = sum(tensor.numel() for tensor in (*on_gpu, grad)) * 4
    print(f"\n{place} {width} {precision}: peak {peak / 1e6:.0f} MB, a float32 map {map_bytes / 1e6:.0f} MB", end="")
    _print_kernels(on_gpu, scale)
    if place == "res3":  # where the map would be much larger than all else; by the book there are four of it
        assert peak < 2 * rows_bytes + map_bytes * (1 if precision == "fp32" else 0.5)


def _print_kernels(inputs: list[Tensor], scale: float) -> None:
    """Milliseconds of forward and backward of ours, and of each kernel that takes these sizes."""
    cases = {"ours": partial(softmax_attention, scale=scale)}
    for name in KERNELS:
        cases[name] = partial(_by_kernel, getattr(SDPBackend, name), scale)
    grad = torch.randn_like(inputs[0])  # in one piece: that of a sum has strides of 0, which some kernels copy first
    for name, function in cases.items():
        try:
            times = []
            for _ in range(4):
                tensors = [tensor.detach().requires_grad_() for tensor in inputs]
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                function(*tensors).backward(grad)
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            print(f"; {name} {min(times):.2f} ms", end="", flush=True)
        except RuntimeError as error:
            print(f"; {name} refuses ({str(error).splitlines()[0][:60]})", end="")


def _by_kernel(kernel: SDPBackend, scale: float, *inputs: Tensor) -> Tensor:
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(*(tensor[:, None] for tensor in inputs), scale=scale).squeeze(1)


@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_every_block_computes_on_the_gpu_what_it_does_on_the_cpu(kind: str, channels_last: bool, axes: str) -> None:
    torch.manual_seed(0)
    block = ATTENTION_KINDS[kind](32, axes=axes).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, grad = _random(4, 32, 4, 6, 5), _random(4, 32, 4, 6, 5, seed=1)
    outcomes = []
    for device, dtype in ((torch.device("cpu"), torch.float64), (GPU, torch.float32)):
        memory_format = CHANNELS_LAST if channels_last else torch.contiguous_format
        module = copy.deepcopy(block).to(device, dtype, memory_format=memory_format)
        inputs = x.to(device, dtype, copy=True).contiguous(memory_format=memory_format).requires_grad_()
        output = module(inputs)
        output.backward(grad.to(device, dtype))
        maps = [part for part in module.attention(inputs) if part is not None]
        outcomes.append([output, inputs.grad, *(parameter.grad for parameter in module.parameters()), *maps])
    largest = max(float(right.detach().abs().max()) for right in outcomes[0])
    for value, right in zip(*reversed(outcomes), strict=True):
        # the gradient of a bias that cancels is noise on both
        assert _error(value, right) < 1e-3 or float((value.double().cpu() - right).abs().max()) < 1e-4 * largest


def _network(name: str = "i3d", **options) -> ResNet3d:
    torch.manual_seed(0)
    attention = partial(ATTENTION_KINDS["dnl"], key_pool=(1, 2, 2))
    places = {"res3": "all"}
    return ResNet3d(name, 10, num_classes=5, width=16, dropout=0.0, attention=attention, places=places, **options)


def _outcome(device: torch.device, precision: str, norm: str = "batch", **options) -> list[Tensor]:
    """Loss, norm of the gradient and gradient (as the change by SGD without momentum) of a step of two parts."""
    model = _network(**options).to(device, memory_format=CHANNELS_LAST).train()
    if precision == "fp64":
        model = model.double()
    model = set_batch_norm(model, "batch" if norm == "sub" else norm, 2 if norm == "sub" else None, device)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(model, TrainConfig(lr=0.1, momentum=0.0, weight_decay=0.0))
    clips = _random(8, 3, 8, 64, 64).to(device, next(model.parameters()).dtype)
    clips, labels = clips.contiguous(memory_format=CHANNELS_LAST), torch.arange(8, device=device) % 5
    autocast = "fp32" if precision == "fp64" else precision
    parts = list(zip(clips.split(4), labels.split(4), strict=True))
    scaler = build_scaler(device, autocast, skip_nonfinite=False)
    result = train_step(model, parts, optimizer, num_parts=2, scaler=scaler, precision=autocast)
    change = torch.cat([(old - new).detach().flatten() for old, new in zip(before, model.parameters(), strict=True)])
    buffers = torch.cat([buffer.double().flatten() for name, buffer in model.named_buffers() if "running" in name])
    return [result.loss, result.grad_norm, change, buffers]


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_clips_is_that_of_the_cpu_in_float64(training: bool, precision: str) -> None:
    x, grad = (_random(4, 32, 4, 6, 5, seed=seed).to(DTYPES[precision]) for seed in (0, 1))  # equal on both
    outcomes = []
    for device, dtype in ((torch.device("cpu"), torch.float64), (GPU, DTYPES[precision])):
        norm = BatchNorm3d(32).to(device, torch.float64 if dtype == torch.float64 else torch.float32).train(training)
        nn.init.constant_(norm.weight, 1.5)
        inputs = x.to(device, dtype).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
        output = norm(inputs)
        output.backward(grad.to(device, dtype).contiguous(memory_format=CHANNELS_LAST))
        assert output.is_contiguous(memory_format=CHANNELS_LAST)
        outcomes.append([output, inputs.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
    assert all(_error(*pair) < ERRORS[precision] for pair in zip(*reversed(outcomes), strict=True))


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", ["slow", "i3d", "c2d", "r3d", "r2plus1d"])
def test_a_training_step_is_that_of_the_cpu_in_float64(name: str, precision: str) -> None:
    expected = _outcome(torch.device("cpu"), "fp64", name=name)
    found = _outcome(GPU, precision, name=name)
    limit = {"fp32": 0.01, "bf16": 0.2, "fp16": 0.05}[precision]
    assert all(_error(*pair) < limit for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("norm", ["sub", "sync", "frozen"])
def test_every_norm_trains_alike_and_counts_once_when_computed_again(norm: str) -> None:
    plain, again = (_outcome(GPU, "fp32", norm, recompute_blocks=recompute) for recompute in (False, True))
    assert all(_error(*pair) < 1e-3 for pair in zip(again, plain, strict=True))
    expected = _outcome(torch.device("cpu"), "fp64", norm)
    assert all(_error(*pair) < 0.01 for pair in zip(plain, expected, strict=True))


def test_convolutions_keep_channels_last_in_bf16() -> None:
    model, lost = _network().to(GPU, memory_format=CHANNELS_LAST), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: lost.extend(
                    name for x in (inputs[0], output) if not x.is_contiguous(memory_format=CHANNELS_LAST)
                )
            )
    clips = torch.zeros(2, 3, 8, 64, 64, dtype=torch.uint8)
    with torch.autocast("cuda", torch.bfloat16):
        model(Normalize([0.5] * 3, [0.5] * 3, GPU)(clips))
    assert not lost


def test_a_compiled_network_computes_the_same() -> None:
    model = _network().to(GPU, memory_format=CHANNELS_LAST).eval()
    clips = _random(2, 3, 8, 64, 64).to(GPU, torch.float32).contiguous(memory_format=CHANNELS_LAST)
    with torch.no_grad():
        assert _error(torch.compile(model)(clips), model(clips)) < 1e-3


def test_batches_arrive_whole_while_the_gpu_is_busy() -> None:
    numbers = torch.arange(40)

    def batches() -> Iterator[Batch]:
        for number in numbers.tolist():
            clips = torch.full((4, 3, 8, 112, 112), number, dtype=torch.uint8)
            yield Batch(clips, torch.full((4,), number), torch.arange(4), torch.ones(4, dtype=torch.bool), []).pin_memory()

    sums, weights = [], torch.randn(4096, 4096, device=GPU)
    for batch in to_device(batches(), GPU):
        weights = (weights @ weights).tanh()  # the copy of the next batch runs beside it
        sums.append(torch.stack([batch.clips.double().mean(), batch.labels.double().mean()]))
        del batch
    assert torch.stack(sums).cpu().T.tolist() == [numbers.double().tolist()] * 2


@pytest.fixture(scope="module")
def gpu_run(motion_set: Path, tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bf16 with loader workers, mixup, an average of the weights, precise batch norm and accumulation."""
    settings = ["device=cuda", "train.precision=bf16", "data.num_workers=2", "data.mixup_alpha=0.2", "train.ema_decay=0.9"]
    settings += ["train.precise_bn=1", "train.accumulate=2", "train.nonfinite=skip"]
    out = tmp_path_factory.mktemp("gpu") / "run"
    train(load_config(CONFIG, [*tiny_settings, *settings]), out)
    return out


def test_a_run_trains_tests_and_recognises_on_the_gpu(gpu_run: Path, motion_set: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (gpu_run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["memory_gb"] < 200 and 0 < line["mfu"] < 1 for line in lines if "mfu" in line)
    checkpoint = gpu_run / "checkpoints/best.pt"
    first, _ = evaluate(checkpoint, ["device=cuda", "train.precision=fp32"], tmp_path / "gpu", lambda *_: None)
    other, _ = evaluate(checkpoint, ["device=cpu", "train.precision=fp32"], tmp_path / "cpu", lambda *_: None)
    assert first["video_loss"] == pytest.approx(other["video_loss"], rel=1e-3)
    video = next((motion_set / "videos").rglob("*.mp4"))
    on_gpu, on_cpu = (
        dict(load_predictor(checkpoint, topk=10, overrides=[f"device={name}", "train.precision=fp32"])(video))
        for name in ("cuda", "cpu")
    )
    assert on_gpu == pytest.approx(on_cpu, abs=1e-3)


@pytest.mark.parametrize("arguments", [["explain", "--out"], ["infer", "--window", "0.5", "--json"]])
def test_the_command_line_works_on_the_gpu(gpu_run: Path, motion_set: Path, tmp_path: Path, videornn, arguments) -> None:
    video = next((motion_set / "videos").rglob("*.mp4"))
    command, *options = arguments
    code, _, errors = videornn(command, gpu_run / "checkpoints/best.pt", video, *options, tmp_path / "out.json")
    assert code == 0, errors


def test_deterministic_runs_end_in_the_same_bits(motion_set: Path, tiny_settings: list[str], tmp_path: Path) -> None:
    settings = [*tiny_settings, "device=cuda", "train.deterministic=true", "train.precision=bf16"]
    weights = []
    for name in ("a", "b"):
        train(load_config(CONFIG, settings), tmp_path / name)
        weights.append(load_trained(tmp_path / name / "checkpoints/last.pt", ["device=cpu"]).model.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_too_large_a_batch_is_a_sentence(tiny_settings: list[str], tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(150e6 / torch.cuda.get_device_properties(0).total_memory, 0)
    # activations of 200 MB and more, weights of 4
    larger = ["device=cuda", "model.width=16", "data.num_frames=8", "data.crop_size=224", "data.short_side=[224,224]"]
    try:
        with pytest.raises(UserError, match="out of memory in step 1"):
            train(load_config(CONFIG, [*tiny_settings, *larger]), tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


def test_bf16_products_are_faster_than_those_of_float32() -> None:
    tune(GPU, deterministic=False)
    # other tests may share the GPU: the best of a few, taken in turns
    rounds = [{name: matrix_rate(GPU, dtype) for name, dtype in DTYPES.items()} for _ in range(5)]
    rates = {name: max(rates[name] for rates in rounds) for name in DTYPES}
    print("\n" + ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in rates.items()))
    assert rates["bf16"] > 1.2 * rates["fp32"]
