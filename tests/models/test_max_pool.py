"""The max-pool: values and gradients of torch's, in other kernels and less memory."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from videornn.models.max_pool import LeanMaxPool
from videornn.models.nonlocal_block import DisentangledNonLocal
from videornn.models.resnet3d import FAMILIES, ResNet3d

WINDOWS = [
    ((1, 3, 3), (1, 2, 2), (0, 1, 1)),  # of the stem
    ((1, 2, 2),) * 2 + ((0, 0, 0),),  # of keys
    ((2, 1, 1),) * 2 + ((0, 0, 0),),  # of I3D and C2D
    ((2, 2, 2),) * 2 + ((0, 0, 0),),
    ((3, 2, 3), (2, 1, 2), (1, 0, 1)),
    ((2, 3),) * 2 + ((0, 0),),
    ((3,), (2,), (1,)),
    ((1, 1, 1),) * 2 + ((0, 0, 0),),
]
TORCHS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class _Operators(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def _gradient(pool, x: Tensor, *options) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    output = pool(x, *options)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    output.backward(torch.empty_like(output).copy_(grad))
    return output.detach(), x.grad


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_values_and_gradients_are_those_of_torch_to_the_bit_also_of_equal_values(window, dtype, channels_last) -> None:
    ndim = len(window[0])
    memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}.get(ndim) if channels_last else None
    x = torch.randint(4, (2, 3, 6, 7, 5)[: ndim + 2], generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=memory_format or torch.contiguous_format)
    output, grad = _gradient(LeanMaxPool(*window), x)
    right, right_grad = _gradient(TORCHS[ndim], x, *window)
    assert torch.equal(output, right) and output.dtype == dtype
    disjoint = window[0] == window[1]  # else a place may get several gradients, which are added in another order
    assert torch.equal(grad, right_grad) if disjoint else torch.allclose(grad, right_grad, rtol=2e-2)
    for found, like in ((output, right), (grad, x)):
        assert found.is_contiguous(memory_format=memory_format or torch.contiguous_format), (found.stride(), like.stride())


def test_the_input_is_kept_and_nothing_else_in_its_own_type() -> None:
    kept: list[Tensor] = []
    x = torch.randn(2, 4, 4, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        output = LeanMaxPool((1, 2, 2))(x)
    assert output.dtype == torch.bfloat16
    assert {tensor.untyped_storage().data_ptr() for tensor in kept} == {x.untyped_storage().data_ptr()}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_network_pools_by_the_kernel_whose_gradient_has_other_bits_each_time(name: str) -> None:
    """MaxPool3d on a GPU, which torch.use_deterministic_algorithms refuses up to torch 2.11 at least."""
    attention = partial(DisentangledNonLocal, key_pool=(2, 2, 2))
    model = ResNet3d(name, 10, num_classes=3, width=4, attention=attention, places={"res3": "all"})
    with _Operators() as operators:
        model(torch.randn(2, 3, 8, 32, 32)).sum().backward()
    assert "max_pool2d_with_indices_backward" in operators.names
    assert not [operator for operator in operators.names if "max_pool3d" in operator]
