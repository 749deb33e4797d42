"""Describe a network: stages, output shapes, parameters and FLOPs in one table."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from videornn.checkpoints.checkpoint import load_network
from videornn.config import Config, config_from_dict, load_config, override_config
from videornn.models import build_model
from videornn.models.flops import flops_by_module
from videornn.models.max_pool import LeanMaxPool
from videornn.models.resnet3d import BasicBlock, Bottleneck, Factored3d, Stage

PARTS = ("stem", "res2", "temporal_pool", "res3", "res4", "res5", "head")


def describe(source: Path, overrides: list[str]) -> Table:
    """Return a table of the network of a config file or checkpoint.

    FLOPs are multiply-adds for one clip of the training size, as papers of this field count them.

    Raises:
        UserError: the source cannot be read.
    """
    config = _config_of(source, overrides)
    if config.model.num_classes is None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": 400})})
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model).eval()
    clip = torch.zeros(1, 3, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    flops, shapes = flops_by_module(model, clip), _output_shapes(model, clip)
    attention = "" if config.model.attention.kind == "none" else f" + {config.model.attention.kind}"
    table = Table(
        title=f"{config.model.name} r{config.model.depth}{attention}: clip 3 x {' x '.join(map(str, clip.shape[2:]))}, "
        f"{config.model.num_classes} classes",
        title_justify="left",
    )
    table.add_column("part")
    table.add_column("layers")
    for name in ("output C,T,H,W", "parameters", "GFLOPs"):
        table.add_column(name, justify="right")
    for name in PARTS:
        part = getattr(model, name)
        if isinstance(part, nn.Identity):
            continue
        parameters = sum(parameter.numel() for parameter in part.parameters())
        shape = " x ".join(map(str, shapes[name]))
        table.add_row(
            name.replace("temporal_", ""),
            _layers(part, config.model.attention.kind),
            shape,
            f"{parameters:,}",
            f"{flops[name] / 1e9:.2f}",
        )
    total = sum(parameter.numel() for parameter in model.parameters())
    table.add_section()
    table.add_row("total", "", "", f"{total:,}", f"{flops[''] / 1e9:.2f}")
    return table


def _config_of(source: Path, overrides: list[str]) -> Config:
    if source.suffix in (".pt", ".pth"):
        return override_config(config_from_dict(load_network(source)["config"], str(source)), overrides)
    return load_config(source, overrides)


def _layers(part: nn.Module, kind: str) -> str:
    if not isinstance(part, Stage):
        return ", ".join(_sizes(module) for module in part.modules() if _sizes(module))
    convs = [block.conv1.conv for block in part if isinstance(block, BasicBlock | Bottleneck)]
    kernels = [
        f"1+{conv.temporal.kernel_size[0]}" if isinstance(conv, Factored3d) else f"{conv.kernel_size[0]}" for conv in convs
    ]
    if len(set(kernels)) == 1:
        kernels = kernels[:1]
    elif len(kernels) > 6:
        kernels = [*kernels[:4], "..."]
    places = [str(place) for place, block in enumerate(part) if not isinstance(block.attention, nn.Identity)]
    after = f", {kind} after {'all' if len(places) == len(part) else ' '.join(places)}" if places else ""
    return f"{len(part)} x {type(part[0]).__name__}, temporal kernel {' '.join(kernels)}{after}"


def _sizes(module: nn.Module) -> str:
    if isinstance(module, (nn.Conv3d, LeanMaxPool)):
        return f"{'conv' if isinstance(module, nn.Conv3d) else 'max-pool'} {'x'.join(map(str, module.kernel_size))}"
    return f"linear {module.in_features} -> {module.out_features}" if isinstance(module, nn.Linear) else ""


@torch.no_grad()
def _output_shapes(model: nn.Module, clip: torch.Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = [
        getattr(model, name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.__setitem__(name, tuple(output.shape[1:]))
        )
        for name in PARTS
    ]
    model(clip)
    for hook in hooks:
        hook.remove()
    return shapes
