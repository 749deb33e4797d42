"""What stays in float32 under autocast."""

import pytest
import torch
from torch import nn

from videornn.models import ATTENTION_KINDS, ResNet3d


def test_logits_of_classes_are_float32_of_the_weights_as_they_are() -> None:
    torch.manual_seed(0)
    model = ResNet3d("slow", 10, num_classes=50, width=4).eval()
    nn.init.normal_(model.head.weight, std=5.0)
    features: list[torch.Tensor] = []
    model.dropout.register_forward_hook(lambda module, inputs, output: features.append(output))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 4, 32, 32))
    assert logits.dtype == torch.float32
    right = features[0].double() @ model.head.weight.double().T + model.head.bias.double()
    torch.testing.assert_close(logits.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["unary", "dnl", "gc"])
def test_logits_of_the_unary_map_are_not_rounded_to_bfloat16(kind: str) -> None:
    torch.manual_seed(0)
    block, x = ATTENTION_KINDS[kind](16), torch.randn(2, 16, 2, 4, 4).bfloat16()
    nn.init.normal_(block.mask.weight, std=3.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        weights = block.unary_weights(x, x)
    right = (x.double().flatten(2) * block.mask.weight.double().view(1, 16, 1)).sum(1).softmax(1)
    torch.testing.assert_close(weights.double(), right, rtol=1e-4, atol=1e-7)
