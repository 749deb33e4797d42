"""Where the backward pass computes something again, and where it does not."""

import pytest
import torch

from videornn.models import ATTENTION_KINDS


@pytest.mark.parametrize(("device", "times"), [("cpu", 2), ("meta", 1)])
@pytest.mark.parametrize("kind", ["dnl", "unary"])
def test_only_a_cpu_computes_the_norm_of_a_block_again(kind: str, device: str, times: int) -> None:
    """meta, which has shapes alone, stands for a GPU: its host spends more on a checkpoint than the GPU gains in memory."""
    block = ATTENTION_KINDS[kind](8, key_pool=(1, 2, 2)).to(device)
    runs: list[str] = []
    block.norm.register_forward_pre_hook(lambda *_: runs.append("norm"))
    block(torch.randn(2, 8, 2, 4, 4, device=device, requires_grad=True)).sum().backward()
    assert len(runs) == times
