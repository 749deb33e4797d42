"""3D ResNets for clips, with an attention block after any residual block.

Slow-only, I3D and C2D: the stride sits in the (middle) 3x3 convolution and in the shortcut; the temporal kernel is
k x 1 x 1 in the first convolution of a bottleneck and k x 3 x 3 in the first of a basic block. Feichtenhofer et al. 2019,
table 1, arXiv:1812.03982 (Slow); Carreira & Zisserman 2017, arXiv:1705.07750, in the form of Wang et al. 2018,
arXiv:1711.07971 (I3D, C2D). R3D and R(2+1)D: Tran et al. 2018, arXiv:1711.11248, as torchvision builds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from videornn.models.batch_norm import BatchNorm3d
from videornn.models.max_pool import LeanMaxPool
from videornn.models.recompute import recompute, without_autocast
from videornn.schema import StageName

STAGES: tuple[StageName, ...] = ("res2", "res3", "res4", "res5")
_Sizes = tuple[int, int, int]  # (t, h, w)
BASIC_DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class Family:
    """The properties that distinguish one family of networks from another.

    stem_kernel: temporal kernel of the stem.
    stage_kernels: temporal kernels of the blocks of each stage, repeated for as many blocks as it has.
    second_kernel: temporal kernel of the second convolution of a basic block.
    max_pool: the stem ends in a 1x3x3 max-pool of stride 2.
    temporal_pool: a max-pool over pairs of frames follows res2.
    temporal_stride: of the first block of res3, res4 and res5.
    factored: 3x3x3 convolutions are 1x3x3, norm, ReLU, 3x1x1.
    depths: number of residual blocks of each stage, by the number of layers.
    """

    stem_kernel: int
    stage_kernels: tuple[tuple[int, ...], ...]
    second_kernel: int = 1
    max_pool: bool = True
    temporal_pool: bool = False
    temporal_stride: int = 1
    factored: bool = False

    @property
    def depths(self) -> Mapping[int, tuple[int, ...]]:
        return BASIC_DEPTHS if self.second_kernel > 1 else BASIC_DEPTHS | BOTTLENECK_DEPTHS


_R3D = Family(3, ((3,), (3,), (3,), (3,)), second_kernel=3, max_pool=False, temporal_stride=2)
FAMILIES = {
    "slow": Family(1, ((1,), (1,), (3,), (3,))),
    "i3d": Family(5, ((3,), (3, 1), (3, 1), (1, 3)), temporal_pool=True),
    "c2d": Family(1, ((1,), (1,), (1,), (1,)), temporal_pool=True),
    "r3d": _R3D,
    "r2plus1d": replace(_R3D, factored=True),
}


class Conv3d(nn.Conv3d):
    """Bias-free 3D convolution padded to keep T, H and W at stride 1, safe under bf16 autocast on the CPU.

    On the CPU, with 1 < T < temporal kernel, torch 2.13 to 2.15 silently compute a wrong weight gradient in bf16 (relative
    error 1, or NaN), so this one case runs in float32.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: _Sizes, stride: _Sizes = (1, 1, 1)) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and 1 < x.shape[2] < self.kernel_size[0] and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class Factored3d(nn.Sequential):
    """A (2+1)D convolution, in place of a 3x3x3 one: 1x3x3 to mid_channels, norm, ReLU, 3x1x1."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, stride: _Sizes) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.spatial = Conv3d(in_channels, mid_channels, (1, 3, 3), (1, *stride[1:]))
        self.norm = BatchNorm3d(mid_channels)
        self.relu = nn.ReLU(inplace=True)
        self.temporal = Conv3d(mid_channels, out_channels, (3, 1, 1), (stride[0], 1, 1))


class ConvNorm(nn.Sequential):
    """A convolution and its batch norm, named conv and norm."""

    def __init__(self, conv: Conv3d | Factored3d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm3d(conv.out_channels)


class BasicBlock(nn.Module):
    """k1 x 3 x 3 (stride), k2 x 3 x 3, residual sum, ReLU, attention; kernels are the temporal ones, (k1, k2)."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        kernels: tuple[int, int],
        stride: _Sizes,
        factored: bool,
        drop_path: float,
        attention: nn.Module,
    ) -> None:
        super().__init__()
        if factored:
            # as many parameters as a 3x3x3 convolution from in_channels to width has; the second one takes the same number
            mid_channels = in_channels * width * 27 // (in_channels * 9 + 3 * width)
            self.conv1 = ConvNorm(Factored3d(in_channels, mid_channels, width, stride))
            self.conv2 = ConvNorm(Factored3d(width, mid_channels, width, (1, 1, 1)))
        else:
            self.conv1 = ConvNorm(Conv3d(in_channels, width, (kernels[0], 3, 3), stride))
            self.conv2 = ConvNorm(Conv3d(width, width, (kernels[1], 3, 3)))
        self.shortcut = _shortcut(in_channels, width, stride)
        self.drop_path = _drop_path(drop_path)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T, H, W]
        y = self.conv2(self.relu(self.conv1(x)))
        return self.attention(self.relu(self.drop_path(y) + self.shortcut(x)))


class Bottleneck(nn.Module):
    """k x 1 x 1, 1 x 3 x 3 (stride), 1 x 1 x 1, residual sum, ReLU, attention; kernel is k."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        kernel: int,
        stride: _Sizes,
        drop_path: float,
        attention: nn.Module,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(Conv3d(in_channels, width, (kernel, 1, 1)))
        self.conv2 = ConvNorm(Conv3d(width, width, (1, 3, 3), stride))
        self.conv3 = ConvNorm(Conv3d(width, width * self.expansion, (1, 1, 1)))
        self.shortcut = _shortcut(in_channels, width * self.expansion, stride)
        self.drop_path = _drop_path(drop_path)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:  # [B, C, T, H, W]
        y = self.conv3(self.relu(self.conv2(self.relu(self.conv1(x)))))
        return self.attention(self.relu(self.drop_path(y) + self.shortcut(x)))


class Stage(nn.Sequential):
    """A sequence of residual blocks; with recompute_blocks, training keeps only their inputs and runs each once more."""

    def __init__(self, *blocks: nn.Module, recompute_blocks: bool = False) -> None:
        super().__init__(*blocks)
        self.recompute_blocks = recompute_blocks

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = recompute(block, x, block) if self.recompute_blocks else block(x)
        return x


class ResNet3d(nn.Module):
    """Clip classifier: [B, 3, T, H, W] float -> logits [B, K].

    Args:
        name: a key of FAMILIES: slow, i3d, c2d, r3d, r2plus1d.
        depth: a key of the family's depths; 50 and more have bottlenecks.
        num_classes: K.
        width: channels of the stem.
        dropout: probability before the classifier.
        drop_path: probability that a clip skips the last residual block; it falls linearly to 0 at the first block
            (stochastic depth, Huang et al. 2016, arXiv:1603.09382).
        zero_init_residual: start every residual block as the identity.
        attention: builds the attention block for a number of channels; used at places.
        places: for each stage name, the residual blocks (0-based) that an attention block follows, or "all" of them.
        recompute_blocks: keep only the input of each residual block for the backward pass (activation checkpointing).

    Raises:
        ValueError: an unknown name or depth, or a place that the network does not have.
    """

    res2: Stage
    res3: Stage
    res4: Stage
    res5: Stage

    def __init__(
        self,
        name: str,
        depth: int,
        *,
        num_classes: int,
        width: int = 64,
        dropout: float = 0.5,
        drop_path: float = 0.0,
        zero_init_residual: bool = True,
        attention: Callable[[int], nn.Module] | None = None,
        places: Mapping[StageName, Sequence[int] | Literal["all"]] | None = None,
        recompute_blocks: bool = False,
    ) -> None:
        super().__init__()
        if name not in FAMILIES:
            raise ValueError(f"no network {name!r}; there are {', '.join(FAMILIES)}")
        family = FAMILIES[name]
        if depth not in family.depths:
            raise ValueError(f"no {name} of depth {depth}; its depths are {', '.join(map(str, family.depths))}")
        depths = family.depths[depth]
        positions = _resolve_places({} if attention is None else places or {}, depths)
        drop_paths = iter([drop_path * block / (sum(depths) - 1) for block in range(sum(depths))])
        self.stem = _stem(family, width)
        channels = width
        for index, (stage, num_blocks) in enumerate(zip(STAGES, depths, strict=True)):
            kernels = family.stage_kernels[index]
            blocks: list[nn.Module] = []
            for position in range(num_blocks):
                stage_width = width * 2**index
                out_channels = stage_width * (Bottleneck if depth in BOTTLENECK_DEPTHS else BasicBlock).expansion
                here = attention(out_channels) if attention and position in positions.get(stage, ()) else nn.Identity()
                stride = (family.temporal_stride, 2, 2) if index > 0 and position == 0 else (1, 1, 1)
                kernel = kernels[position % len(kernels)]
                drop = next(drop_paths)
                if depth in BOTTLENECK_DEPTHS:
                    blocks.append(
                        Bottleneck(channels, stage_width, kernel=kernel, stride=stride, drop_path=drop, attention=here)
                    )
                else:
                    blocks.append(
                        BasicBlock(
                            channels,
                            stage_width,
                            kernels=(kernel, family.second_kernel),
                            stride=stride,
                            factored=family.factored,
                            drop_path=drop,
                            attention=here,
                        )
                    )
                channels = out_channels
            setattr(self, stage, Stage(*blocks, recompute_blocks=recompute_blocks))
        self.temporal_pool = LeanMaxPool((2, 1, 1)) if family.temporal_pool else nn.Identity()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        self.reset_parameters(zero_init_residual)

    def reset_parameters(self, zero_init_residual: bool) -> None:
        """Initialise convolutions: Kaiming normal, fan out; norms: 1, 0 (last in block: 0 if asked); head: N(0, 0.01), 0."""
        for module in self.modules():
            if isinstance(module, Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (BasicBlock, Bottleneck)) and zero_init_residual:
                last = module.conv2 if isinstance(module, BasicBlock) else module.conv3
                nn.init.zeros_(last.norm.weight)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, clips: Tensor) -> Tensor:  # [B, 3, T, H, W]
        x = self.temporal_pool(self.res2(self.stem(clips)))
        x = self.res5(self.res4(self.res3(x)))  # [B, C, T', H', W']
        features = self.dropout(self.pool(x).flatten(1))
        with without_autocast(x.device):  # bfloat16 logits of 8 to 16 lie 1/16 apart: the best two tie in 2 % of clips
            return self.head(features.to(clips.dtype))


def _stem(family: Family, width: int) -> nn.Sequential:
    relu = nn.ReLU(inplace=True)
    if family.factored:
        mid_channels = 45 * width // 64
        spatial = ConvNorm(Conv3d(3, mid_channels, (1, 7, 7), (1, 2, 2)))
        return nn.Sequential(spatial, relu, ConvNorm(Conv3d(mid_channels, width, (family.stem_kernel, 1, 1))), relu)
    conv = ConvNorm(Conv3d(3, width, (family.stem_kernel, 7, 7), (1, 2, 2)))
    pool = LeanMaxPool((1, 3, 3), (1, 2, 2), (0, 1, 1)) if family.max_pool else nn.Identity()
    return nn.Sequential(conv, relu, pool)


def _shortcut(in_channels: int, out_channels: int, stride: _Sizes) -> nn.Module:
    if in_channels == out_channels and stride == (1, 1, 1):
        return nn.Identity()
    return ConvNorm(Conv3d(in_channels, out_channels, (1, 1, 1), stride))


def _drop_path(probability: float) -> nn.Module:
    return StochasticDepth(probability, mode="row") if probability > 0 else nn.Identity()


def _resolve_places(
    places: Mapping[StageName, Sequence[int] | Literal["all"]], depths: tuple[int, ...]
) -> dict[StageName, Sequence[int]]:
    """Return the block positions of every stage, with "all" spelt out."""
    num_blocks = dict(zip(STAGES, depths, strict=True))
    resolved = {}
    for stage, positions in places.items():
        if stage not in num_blocks:
            raise ValueError(f"attention place {stage!r} is not one of {', '.join(STAGES)}")
        resolved[stage] = range(num_blocks[stage]) if positions == "all" else positions
        outside = [position for position in resolved[stage] if not 0 <= position < num_blocks[stage]]
        if outside:
            raise ValueError(
                f"attention after block {outside[0]} of {stage}: at this depth the stage has blocks 0 to "
                f"{num_blocks[stage] - 1}"
            )
    return resolved
