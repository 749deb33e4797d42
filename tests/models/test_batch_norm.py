"""Batch norm of clips seen as pictures, as on a GPU: the same numbers in every kind, and one memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from videornn.models.batch_norm import BatchNorm3d, as_pictures
from videornn.models.norms import set_batch_norm

CPU = torch.device("cpu")
KINDS = {"batch": ("batch", None), "sub": ("batch", 2), "sync": ("sync", None), "frozen": ("frozen", None)}


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _state() -> dict[str, Tensor]:
    """Weights and statistics that are not the initial ones."""
    names = ("weight", "bias", "running_mean", "running_var")
    state = {name: _random(6, seed=10 + seed) for seed, name in enumerate(names)}
    return state | {"running_var": state["running_var"].square() + 0.5, "num_batches_tracked": torch.tensor(0)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_format", [torch.channels_last_3d, torch.contiguous_format])
def test_clips_seen_as_pictures_have_the_norm_of_clips_and_one_memory(kind: str, memory_format: torch.memory_format) -> None:
    x = _random(4, 6, 3, 5, 7).contiguous(memory_format=memory_format)
    grad, outcomes = _random(*x.shape, seed=3), []
    for see in (lambda norm: norm.normalize, lambda norm: lambda x: as_pictures(norm.normalize, x)):
        norm = BatchNorm3d(6).double()
        norm.load_state_dict(_state())
        norm = set_batch_norm(nn.Sequential(norm), *KINDS[kind], CPU)[0].train()
        inputs = x.detach().requires_grad_()
        output = see(norm)(inputs)
        torch.relu_(output).backward(grad)
        assert output.is_contiguous(memory_format=memory_format)
        assert "CopySlices" not in str(output.grad_fn)
        grads = [parameter.grad for parameter in norm.parameters() if parameter.requires_grad]
        outcomes.append([output, inputs.grad, *grads, *norm.buffers()])
    expected = nn.BatchNorm3d(6).double().train()
    expected.load_state_dict(_state())
    if kind in ("batch", "sync"):
        torch.testing.assert_close(outcomes[1][0], torch.relu(expected(x)))
        torch.testing.assert_close(outcomes[1][-3:], list(expected.buffers()))
    torch.testing.assert_close(*outcomes)
