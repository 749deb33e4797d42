"""3D ResNets for clips: Slow-only, I3D and C2D, with an attention block after any residual block.

The stride sits in the (middle) 3x3 convolution and in the shortcut; the temporal kernel is k x 1 x 1 in the first
convolution of a bottleneck and k x 3 x 3 in the first of a basic block. Feichtenhofer et al. 2019, table 1,
arXiv:1812.03982 (Slow); Carreira & Zisserman 2017, arXiv:1705.07750, in the form of Wang et al. 2018,
arXiv:1711.07971 (I3D, C2D).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

STAGES = ("res2", "res3", "res4", "res5")
DEPTHS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# temporal kernel of the stem, then of the blocks of each stage, repeated as far as the stage goes
TEMPORAL_KERNELS = {
    "slow": (1, ((1,), (1,), (3,), (3,))),
    "i3d": (5, ((3,), (3, 1), (3, 1), (1, 3))),
    "c2d": (1, ((1,), (1,), (1,), (1,))),
}
HAS_TEMPORAL_POOL = {"slow": False, "i3d": True, "c2d": True}


class Conv3d(nn.Conv3d):
    """Bias-free 3D convolution padded to keep T (and H, W at stride 1), safe under bf16 autocast on the CPU.

    There, with 1 < T < temporal kernel, torch 2.13 to 2.15 compute a wrong weight gradient in bf16 (relative error 1,
    or NaN, silently), so that one case runs in float32.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int], spatial_stride: int = 1) -> None:
        super().__init__(
            in_channels,
            out_channels,
            tuple(kernel),
            stride=(1, spatial_stride, spatial_stride),
            padding=tuple(size // 2 for size in kernel),
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and 1 < x.shape[2] < self.kernel_size[0] and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class ConvNorm(nn.Sequential):
    """Convolution and batch norm, named conv and norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int], spatial_stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, kernel, spatial_stride)
        self.norm = nn.BatchNorm3d(out_channels)


class BasicBlock(nn.Module):
    """k x 3 x 3 (stride), 1 x 3 x 3, residual sum, ReLU, attention."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, temporal_kernel: int, stride: int, attention: nn.Module) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, (temporal_kernel, 3, 3), stride)
        self.conv2 = ConvNorm(width, width, (1, 3, 3))
        self.shortcut = _shortcut(in_channels, width, stride)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T, H, W]
        y = self.conv2(self.relu(self.conv1(x)))
        return self.attention(self.relu(y + self.shortcut(x)))


class Bottleneck(nn.Module):
    """k x 1 x 1, 1 x 3 x 3 (stride), 1 x 1 x 1, residual sum, ReLU, attention."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, temporal_kernel: int, stride: int, attention: nn.Module) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, (temporal_kernel, 1, 1))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), stride)
        self.conv3 = ConvNorm(width, width * self.expansion, (1, 1, 1))
        self.shortcut = _shortcut(in_channels, width * self.expansion, stride)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T, H, W]
        y = self.conv3(self.relu(self.conv2(self.relu(self.conv1(x)))))
        return self.attention(self.relu(y + self.shortcut(x)))


class ResNet3d(nn.Module):
    """Clip classifier: [B, 3, T, H, W] float -> logits [B, K].

    Args:
        name: slow, i3d or c2d: where the temporal kernels (and the temporal pool after res2) sit.
        depth: a key of DEPTHS; 50 and more have bottlenecks.
        num_classes: K.
        width: channels of the stem.
        dropout: probability before the classifier.
        zero_init_residual: start every residual block as the identity.
        attention: builds the attention block for a number of channels; used at places.
        places: for each stage name the residual blocks (0-based) that an attention block follows.

    Raises:
        ValueError: an unknown name or depth, or a place that the network does not have.
    """

    def __init__(
        self,
        name: str,
        depth: int,
        *,
        num_classes: int,
        width: int = 64,
        dropout: float = 0.5,
        zero_init_residual: bool = True,
        attention: Callable[[int], nn.Module] | None = None,
        places: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if name not in TEMPORAL_KERNELS or depth not in DEPTHS:
            raise ValueError(f"no network {name!r} of depth {depth}; names {list(TEMPORAL_KERNELS)}, depths {list(DEPTHS)}")
        places = {} if attention is None else dict(places or {})
        _check_places(places, depth)
        stem_kernel, stage_kernels = TEMPORAL_KERNELS[name]
        block = Bottleneck if depth >= 50 else BasicBlock
        self.stem = nn.Sequential(
            ConvNorm(3, width, (stem_kernel, 7, 7), 2),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        channels = width
        for index, (stage, num_blocks) in enumerate(zip(STAGES, DEPTHS[depth], strict=True)):
            blocks = []
            for position in range(num_blocks):
                kernels = stage_kernels[index]
                stage_width = width * 2**index
                out_channels = stage_width * block.expansion
                here = attention(out_channels) if attention and position in places.get(stage, ()) else nn.Identity()
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(channels, stage_width, kernels[position % len(kernels)], stride, here))
                channels = out_channels
            setattr(self, stage, nn.Sequential(*blocks))
        self.temporal_pool = nn.MaxPool3d((2, 1, 1)) if HAS_TEMPORAL_POOL[name] else nn.Identity()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        self.reset_parameters(zero_init_residual)

    def reset_parameters(self, zero_init_residual: bool) -> None:
        """Convolutions: Kaiming normal, fan out; norms: 1, 0 (last of a block: 0, if asked); head: N(0, 0.01), 0."""
        for module in self.modules():
            if isinstance(module, Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (BasicBlock, Bottleneck)) and zero_init_residual:
                last = module.conv2 if isinstance(module, BasicBlock) else module.conv3
                nn.init.zeros_(last.norm.weight)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, T, H, W]
        x = self.temporal_pool(self.res2(self.stem(x)))
        x = self.res5(self.res4(self.res3(x)))  # [B, C, T, H/32, W/32]
        return self.head(self.dropout(self.pool(x).flatten(1)))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return ConvNorm(in_channels, out_channels, (1, 1, 1), stride)


def _check_places(places: Mapping[str, Sequence[int]], depth: int) -> None:
    num_blocks = dict(zip(STAGES, DEPTHS[depth], strict=True))
    for stage, positions in places.items():
        if stage not in num_blocks:
            raise ValueError(f"attention place {stage!r} is not one of {', '.join(STAGES)}")
        outside = [position for position in positions if not 0 <= position < num_blocks[stage]]
        if outside:
            raise ValueError(
                f"attention after block {outside[0]} of {stage}: at depth {depth} this stage has blocks 0 to "
                f"{num_blocks[stage] - 1}"
            )
