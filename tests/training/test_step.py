"""One training step against formulas and loops written here."""

import itertools
import math

import pytest
import torch
from torch import nn

from videornn.config import TrainConfig
from videornn.system.memory import is_lack_of_memory
from videornn.training.optim import build_optimizer
from videornn.training.step import build_scaler, classification_loss, train_step

CPU = torch.device("cpu")


def _network(seed: int = 0) -> nn.Sequential:
    """A batch norm in it has running averages, and statistics of what goes through at once."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def _batch(num_clips: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randn(num_clips, 3, 4, 6, 6, generator=generator)
    return clips, torch.randint(0, 5, (num_clips,), generator=generator)


def _sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return build_optimizer(model, TrainConfig(lr=lr, weight_decay=0.0))


def _copies(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in itertools.chain(model.parameters(), model.buffers())]


@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": torch.arange(1.0, 6.0)}])
def test_parts_of_a_batch_add_up_to_the_whole(num_parts: int, options: dict) -> None:
    clips, labels = _batch()
    whole, cut = _network(), _network()
    for model in (whole, cut):
        model(clips)
        model.double().eval()  # batch norm in training would take statistics of the parts
    cut.load_state_dict(whole.state_dict())
    one = train_step(whole, [(clips.double(), labels)], _sgd(whole), **options)
    parts = zip(clips.double().chunk(num_parts), labels.chunk(num_parts), strict=True)
    several = train_step(cut, parts, _sgd(cut), num_parts=num_parts, **options)
    assert several.loss.item() == pytest.approx(one.loss.item(), rel=1e-6) and several.correct == one.correct
    assert several.grad_norm.item() == pytest.approx(one.grad_norm.item(), rel=1e-6)
    for expected, parameter in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-9)


def test_a_weighted_loss_is_the_mean_of_weighted_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])
    weights = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0])
    by_hand = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        by_hand += weights[label].item() * (math.log(sum(math.exp(value) for value in row)) - row[label])
    assert classification_loss(logits, labels, 0.0, weights).item() == pytest.approx(by_hand / 6, rel=1e-5)
    one_hot = nn.functional.one_hot(labels, 5).float()
    assert classification_loss(logits, one_hot, 0.0, weights).item() == pytest.approx(by_hand / 6, rel=1e-5)


def test_shares_of_a_target_weigh_as_their_classes_do_and_smoothing_does_not_ask_for_an_empty_one() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, -20.0]], dtype=torch.float64, requires_grad=True)
    weights, labels, smoothing = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64), torch.tensor([0, 1]), 0.3
    targets = nn.functional.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
    by_hand = -sum(
        weights[k] * targets[row, k] * (logits[row, k] - logits[row].logsumexp(0)) for row in range(2) for k in range(3)
    )
    for loss in (
        classification_loss(logits, labels, smoothing, weights),
        classification_loss(logits, targets, 0.0, weights),
    ):
        assert loss.item() == pytest.approx(by_hand.item() / 2)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert abs(gradient[1, 2]) < 1e-8  # of a class that is already as unlikely as it should be


def test_the_gradient_norm_is_that_before_clipping_and_the_update_has_the_clipped_one() -> None:
    clips, labels = _batch()
    model, twin = _network(), _network()
    for network in (model, twin):
        network(clips)
    twin.load_state_dict(model.state_dict())
    nn.functional.cross_entropy(twin(clips), labels).backward()
    norm = math.sqrt(sum(parameter.grad.double().pow(2).sum().item() for parameter in twin.parameters()))
    result = train_step(model, [(clips, labels)], torch.optim.SGD(model.parameters(), lr=1.0), clip_norm=norm / 4)
    assert result.grad_norm.item() == pytest.approx(norm, rel=1e-5)
    for before, after in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(before - after, before.grad / 4, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_is_not_finite_is_skipped_as_if_it_had_not_been(first: bool) -> None:
    """On the first step, too, where torch's fused SGD would make momentum of uninitialised memory."""
    clips, labels = _batch()
    model, twin = _network(), _network()
    for network in (model, twin):
        network(clips)
    twin.load_state_dict(model.state_dict())
    optimizer, other = _sgd(model), _sgd(twin)
    scaler, none = (build_scaler(CPU, "fp32", skip_nonfinite=skip) for skip in (True, False))
    if not first:
        for network, steps, guard in ((model, optimizer, scaler), (twin, other, none)):
            train_step(network, [(clips, labels)], steps, scaler=guard)
    before = _copies(model)
    broken = clips.clone()
    broken[3, 0, 0, 0, 0] = float("nan")
    junk = [torch.full((500,), 3e33) for _ in range(200)]  # what uninitialised memory would hold
    del junk
    result = train_step(model, [(broken, labels)], optimizer, scaler=scaler)
    assert not result.grad_norm.isfinite() and not result.loss.isfinite()
    for old, new in zip(before, _copies(model), strict=True):
        assert torch.equal(old, new)
    for network, steps, guard in ((model, optimizer, scaler), (twin, other, none)):
        train_step(network, [(clips, labels)], steps, scaler=guard)
    for expected, value in zip(_copies(twin), _copies(model), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_without_a_scaler_nothing_is_skipped() -> None:
    clips, labels = _batch()
    model = _network()
    model(clips)
    scaler = build_scaler(CPU, "bf16", skip_nonfinite=False)
    result = train_step(model, [(clips * float("inf"), labels)], _sgd(model), scaler=scaler)
    assert not result.grad_norm.isfinite() and any(parameter.isnan().any() for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_takes_nearly_the_same_step(precision: str) -> None:
    clips, labels = _batch()
    exact, rounded = _network(), _network()
    for network in (exact, rounded):
        network(clips)
    rounded.load_state_dict(exact.state_dict())
    start = _copies(exact)
    expected = train_step(exact, [(clips, labels)], _sgd(exact))
    result = train_step(
        rounded,
        [(clips, labels)],
        _sgd(rounded),
        precision=precision,
        scaler=build_scaler(CPU, precision, skip_nonfinite=False),
    )
    assert result.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    assert result.grad_norm.item() == pytest.approx(expected.grad_norm.item(), rel=0.05)
    for before, one, other in zip(start, exact.parameters(), rounded.parameters(), strict=False):
        difference = (one - other).norm() / (one - before).norm().clamp_min(1e-3)
        assert difference < 0.2


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_a_library_that_finds_the_gpu_full_says_so_in_other_words(message: str) -> None:
    assert is_lack_of_memory(RuntimeError(message))
    assert not is_lack_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
