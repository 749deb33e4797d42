"""A training step leaves its results on the device: nothing in it makes Python wait for a value.

On a GPU the host runs ahead of the device; a value asked for in the middle of a step stops both. Without a GPU the
operators that ask for one are counted as they are called, forward, backward and in the optimizer.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from videornn.config import TrainConfig
from videornn.data.mixing import Mixing
from videornn.models import ResNet3d
from videornn.models.nonlocal_block import DisentangledNonLocal
from videornn.training.optim import build_optimizer
from videornn.training.step import build_scaler, train_step

aten = torch.ops.aten
# what gives a number, a truth or a size that depends on values
WAITING = {
    *(aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.allclose, aten.nonzero, aten.nonzero_numpy),
    *(aten.argwhere, aten.masked_select, aten._unique2, aten.unique_consecutive, aten.bincount, aten.histc),
}
TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}


class _Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        is_mask = operator.overloadpacket is aten.index and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if operator.overloadpacket in WAITING or is_mask:
            self.found.append(_where(str(operator)))
        return operator(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Copies to the host, which are no operator where the tensor is there already."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_host = function is Tensor.to and "cpu" in [value for value in (*args[1:], *kwargs.values()) if type(value) is str]
        if function in TO_HOST or to_host:
            self.found.append(_where(function.__name__))
        return function(*args, **kwargs)


def _where(what: str) -> str:
    lines = [
        f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack() if "test_no_waiting" not in frame.filename
    ]
    return f"{what} at {' < '.join(reversed(lines[-4:]))}"


@contextmanager
def waits():
    """Collects what would make the host wait for the device."""
    found: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(_Methods(found))
        stack.enter_context(_Operators(found))
        yield found


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.tolist(),
        lambda x: x.unique(),
    ],
)
def test_whatever_waits_is_found(wait) -> None:
    with waits() as found:
        wait(torch.randn(4))
    assert found
    with waits() as found:
        y = torch.randn(4, requires_grad=True)
        (y.clamp(min=0).to(torch.float64) @ torch.ones(4, dtype=torch.float64)).backward()
        y[torch.tensor([1, 2])].argmax()
    assert not found


def _training(device: torch.device, optimizer: str, precision: str, skip_nonfinite: bool) -> Callable[[], object]:
    """A network and all that is around it; returns what does a step: two parts, mixed, with clipping."""
    torch.manual_seed(0)
    model = ResNet3d("i3d", 10, num_classes=5, width=8, attention=DisentangledNonLocal, places={"res3": "all"})
    model = model.to(device, memory_format=torch.channels_last_3d)
    optimizer = build_optimizer(model, TrainConfig(optimizer=optimizer, lr=0.01, weight_decay=0.01, layer_decay=0.9))
    scaler = build_scaler(device, precision, skip_nonfinite=skip_nonfinite)
    mixing = Mixing(5, mixup_alpha=0.8, cutmix_alpha=1.0, probability=1.0, cutmix_share=0.5)
    clips, labels = torch.randn(4, 3, 4, 32, 32, device=device), torch.tensor([0, 1, 2, 3], device=device)
    rng = np.random.default_rng(0)

    def step() -> object:
        return train_step(
            model,
            [mixing(*part, rng) for part in zip(clips.chunk(2), labels.chunk(2), strict=True)],
            optimizer,
            num_parts=2,
            scaler=scaler,
            precision=precision,
            label_smoothing=0.1,
            clip_norm=1.0,
        )

    return step


CASES = [
    *[(optimizer, precision, False) for optimizer in ("sgd", "adamw") for precision in ("fp32", "bf16")],
    *[(optimizer, precision, True) for optimizer in ("sgd", "adamw") for precision in ("bf16", "fp16")],
]


@pytest.mark.parametrize(("optimizer", "precision", "skip_nonfinite"), CASES)
def test_a_step_never_waits_for_the_device(optimizer: str, precision: str, skip_nonfinite: bool) -> None:
    step = _training(torch.device("cpu"), optimizer, precision, skip_nonfinite)
    for _ in range(2):  # the first one makes the optimizer's state
        with waits() as found:
            step()
        assert not found


@pytest.mark.cuda
@pytest.mark.parametrize(("optimizer", "precision", "skip_nonfinite"), CASES)
def test_cuda_sees_no_wait_either(optimizer: str, precision: str, skip_nonfinite: bool) -> None:
    step = _training(torch.device("cuda"), optimizer, precision, skip_nonfinite)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
