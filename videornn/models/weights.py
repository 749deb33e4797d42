"""Load weights from files: our own checkpoints, those of other projects, and image networks inflated to video.

A file is recognised by the names of its tensors, which are translated into ours (foreign_names).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videornn.errors import UserError
from videornn.models import ATTENTION_KINDS
from videornn.models.foreign_names import (
    FORMATS,
    MMACTION2,
    OUR_NAMES,
    SLOWFAST,
    TWO_PATHWAYS,
    VIDEORNN,
    Format,
    slowfast_clip,
)
from videornn.models.resnet3d import BASIC_DEPTHS, BOTTLENECK_DEPTHS, FAMILIES, STAGES, ResNet3d
from videornn.models.tensor_files import read_content, tensors_of
from videornn.schema import Inflation

MIN_SHARE = 0.95

# parts of a network that a report names; it counts the rest
MAX_GROUPS = 8

AFFINITY_NOTE = (
    "names do not tell a softmax from a dot product: model.attention.kind must be what the file was trained with, nl or "
    "nl_dot_product"
)
POOLING_NOTE = (
    "MMAction2 pools keys and values after their convolutions, videornn before: with key_pool the logits differ a little"
)
STRIDE_NOTE = "the I3D of MMAction2 also halves time in the stem and in the first pool, that of videornn does not"


@dataclass(frozen=True)
class Weights:
    """The content of a file of weights, in our names.

    source: path of the file.
    format: name of the recognised format.
    state: our names -> tensors, on the CPU, in the shapes of the file.
    names: our names -> names in the file.
    unused: names in the file that have no counterpart in our networks.
    data: settings of data that the file says it was trained with, all (ours) or the clip's (SlowFast); None if none.
    class_names: the classes of the rows of the head; empty if the file does not tell.
    """

    source: str
    format: str
    state: dict[str, Tensor]
    names: dict[str, str]
    unused: tuple[str, ...]
    data: dict[str, Any] | None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadReport:
    """The outcome of loading a file into a network; counters of batches are left out.

    loaded, inflated, new: our names of tensors that were copied, copied with a time axis added, left as they were.
    unused: names in the file that were not loaded.
    notes: sentences that a user should read.
    data: as in Weights.
    """

    source: str
    format: str
    loaded: tuple[str, ...]
    inflated: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    data: dict[str, Any] | None

    def lines(self) -> list[str]:
        """Return the report as lines to print."""
        rows = (
            ("loaded", self.loaded, ""),
            ("inflated", self.inflated, ""),
            ("new", self.new, _groups(self.new)),
            ("unused", self.unused, _groups(self.unused)),
        )
        lines = [f"  {label:<8} {len(names):>4}  {groups}".rstrip() for label, names, groups in rows]
        return [f"weights of {self.source} ({self.format})", *lines, *(f"  note: {note}" for note in self.notes)]


def read_weights(path: str | Path) -> Weights:
    """Read a file of weights and translate its names.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and plain types; no format fits its names; or
            it is a SlowFast network of two pathways.
    """
    content = read_content(Path(path).expanduser())
    tensors = tensors_of(content)
    plain = {name: name.removeprefix("module.") for name in tensors}
    if any(re.match(TWO_PATHWAYS, name) for name in plain.values()):
        raise UserError(f"{path} is a SlowFast network of two pathways; videornn has networks of one: Slow, I3D, C2D")
    found = [form for form in FORMATS if any(re.match(form.mark, name) for name in plain.values())]
    if not found:
        examples = f", such as {', '.join(list(tensors)[:2])}" if tensors else ""
        raise UserError(
            f"{path} has {len(tensors)} tensors{examples}, but is no network that videornn knows: "
            f"{', '.join(form.name for form in FORMATS)}"
        )
    renamed = {found[0].to_our_name(name): file_name for file_name, name in plain.items()}
    names = {name: file_name for name, file_name in renamed.items() if re.fullmatch(OUR_NAMES, name)}
    state = {name: tensors[file_name] for name, file_name in names.items()}
    if found[0] is MMACTION2:
        _add_out_biases_(state)
    unused = tuple(file_name for name, file_name in renamed.items() if name not in names)
    class_names = _class_names(content) if found[0] is VIDEORNN else ()
    return Weights(str(path), found[0].name, state, names, unused, _data(content, found[0]), class_names)


def load_weights(
    model: ResNet3d,
    path: str | Path | Weights,
    *,
    inflation: Inflation = "average",
    class_names: Sequence[str] = (),
    force: bool = False,
) -> LoadReport:
    """Copy the weights of a file, given by path or as read by `read_weights`, into a network, in place.

    Tensors are matched by name and shape; attention blocks and the head are taken whole or not at all. Tensors that the
    file lacks, or has in another shape, stay as they were.

    Args:
        inflation: how a 2D kernel becomes one of t frames: repeated and divided by t, or zero but for the middle frame.
        class_names: of the network; the head of a file that names other classes, or another order, is not taken.
        force: load whatever fits, however little it is.

    Raises:
        UserError: see `read_weights`; or less than 95 % of the backbone's layers (a convolution and its norm), counting
            those of the network and of the file together, fit. The network is then unchanged.
    """
    weights = path if isinstance(path, Weights) else read_weights(path)
    ours = model.state_dict()
    if has_others := bool(class_names and weights.class_names and tuple(class_names) != weights.class_names):
        body = {name: tensor for name, tensor in weights.state.items() if not name.startswith("head.")}
        weights = replace(weights, state=body)
    candidates = {name: _fit(weights.state[name], ours[name].shape, inflation) for name in ours if name in weights.state}
    misfits = [name for name in _counted({**ours, **weights.state}) if candidates.get(name) is None]
    if not force:
        _check_backbone(weights, ours, misfits)
    broken = {_unit(name) for name in misfits} - {None}
    fits = {name: fit for name, fit in candidates.items() if fit is not None and _unit(name) not in broken}
    for name, fit in fits.items():
        ours[name].copy_(fit)
    counted = _counted(ours)
    inflated = {name for name in fits if _is_flat(weights.state[name].shape, ours[name].shape)}
    unused = [weights.names[name] for name in _counted(weights.names) if name not in fits]
    return LoadReport(
        weights.source,
        weights.format,
        loaded=tuple(name for name in counted if name in fits and name not in inflated),
        inflated=tuple(name for name in counted if name in inflated),
        new=tuple(name for name in counted if name not in fits),
        unused=(*unused, *weights.unused),
        notes=_notes(weights, ours, fits, misfits, has_others),
        data=weights.data,
    )


def infer_network(weights: Weights) -> dict[str, Any]:
    """Infer the network that a file was made for from its names and shapes alone.

    Returns:
        name, depth, width, num_classes (None without a head) and attention (kind, and places if it is not "none"), as in
        the model section of a config. name is None for an image network: the caller decides what it becomes.

    Raises:
        UserError: no network of ours has these blocks, kernels or attention.
    """
    state = weights.state
    blocks = tuple(len({name.split(".")[1] for name in state if name.startswith(stage)}) for stage in STAGES)
    depths = BOTTLENECK_DEPTHS if "res2.0.conv3.conv.weight" in state else BASIC_DEPTHS
    depth = next((depth for depth, counts in depths.items() if counts == blocks), None)
    stem = state.get("stem.2.conv.weight", state.get("stem.0.conv.weight"))
    if depth is None or stem is None:
        raise UserError(f"{weights.source} ({weights.format}) has {blocks} residual blocks, as no network of videornn has")
    head = state.get("head.weight")
    return {
        "name": None if stem.ndim == 4 else _family(weights, depth, stem.shape[0]),
        "depth": depth,
        "width": stem.shape[0],
        "num_classes": None if head is None else head.shape[0],
        "attention": _attention(weights),
    }


def _data(content: object, form: Format) -> dict[str, Any] | None:
    """Read what a file says about the clips that its weights were trained on."""
    if not isinstance(content, dict):
        return None
    if form is SLOWFAST:
        return slowfast_clip(content.get("cfg"))
    config = content.get("config") if form is VIDEORNN else None
    data = config.get("data") if isinstance(config, dict) else None
    return data if isinstance(data, dict) else None


def _class_names(content: object) -> tuple[str, ...]:
    """Read the class names of one of our checkpoints; empty if they are only numbers."""
    names = content.get("class_names") if isinstance(content, dict) else None
    names = tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
    return () if all(name == f"class {label}" for label, name in enumerate(names)) else names


def _family(weights: Weights, depth: int, width: int) -> str:
    kernels = _kernels(weights.state)
    for name, family in FAMILIES.items():
        if depth in family.depths:
            with torch.device("meta"):
                network = ResNet3d(name, depth, num_classes=1, width=width)
            if _kernels(network.state_dict()) == kernels:
                return name
    raise UserError(f"{weights.source} ({weights.format}) has the kernels of none of {', '.join(FAMILIES)} at depth {depth}")


def _kernels(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items() if tensor.ndim == 5 and _unit(name) is None}


def _attention(weights: Weights) -> dict[str, Any]:
    places: dict[str, list[int]] = {}
    for unit in _blocks(weights.state):
        stage, block, _ = unit.split(".")
        places.setdefault(stage, []).append(int(block))
    if not places:
        return {"kind": "none"}
    parts = {name.split(".", 3)[3] for name in _counted(weights.state) if ".attention." in name}
    for kind, build in ATTENTION_KINDS.items():
        # kinds that differ only by a softmax have the same names; the first of them wins
        with torch.device("meta"):
            block = build(2)
        if parts == set(_counted(block.state_dict())):
            return {"kind": kind, "places": {stage: sorted(blocks) for stage, blocks in sorted(places.items())}}
    raise UserError(f"{weights.source} ({weights.format}) has attention of no kind of videornn: {', '.join(sorted(parts))}")


def _add_out_biases_(state: dict[str, Tensor]) -> None:
    """Add zero biases: MMCV's last convolution of a non-local block has no bias before the norm, ours has."""
    for name in [name for name in state if name.endswith(".attention.out.weight")]:
        state.setdefault(name.removesuffix("weight") + "bias", state[name].new_zeros(len(state[name])))


def _fit(tensor: Tensor, shape: torch.Size, inflation: Inflation) -> Tensor | None:
    """Return the tensor in our shape, or None if it does not fit."""
    if tensor.shape == shape:
        return tensor
    if _is_flat(tensor.shape, shape):
        frames, kernel = shape[2], tensor.reshape(*shape[:2], 1, *shape[3:])
        if inflation == "average":
            return kernel.expand(shape) / frames
        return kernel * torch.eye(frames, dtype=kernel.dtype)[frames // 2].view(-1, 1, 1)
    # caffe2 writes matrices and 1x1x1 kernels with more or fewer trailing sizes of 1
    is_matrix = tensor.shape[:2] == shape[:2] and tensor.numel() == shape.numel() == shape[:2].numel()
    return tensor.reshape(shape) if is_matrix else None


def _is_flat(shape: torch.Size, ours: torch.Size) -> bool:
    """Return whether a kernel [O, I, h, w] or [O, I, 1, h, w] is to become one of [O, I, t, h, w]."""
    return len(ours) == 5 and shape != ours and shape in ((*ours[:2], *ours[3:]), (*ours[:2], 1, *ours[3:]))


def _unit(name: str) -> str | None:
    """Return the unit that a tensor is loaded with: its attention block or the head; None in the backbone.

    A trained gate in front of untrained weights would damage a trained network.
    """
    match = re.match(r"(res\d\.\d+\.attention|head)\.", name)
    return match[1] if match else None


def _blocks(names: Iterable[str]) -> set[str]:
    return {unit for name in names if (unit := _unit(name)) not in (None, "head")}


def _counted(names: Iterable[str]) -> list[str]:
    """Drop the names of the norms' counters of batches, which many files lack and no network here uses."""
    return [name for name in names if not name.endswith("num_batches_tracked")]


def _check_backbone(weights: Weights, ours: Mapping[str, Tensor], misfits: Collection[str]) -> None:
    # layers, not tensors: five of six tensors belong to norms, whose shapes tell nothing about temporal kernels
    backbone = {_layer(name) for name in {**ours, **weights.state} if _unit(name) is None}
    misfits = [name for name in misfits if _unit(name) is None]
    share = 1 - len({_layer(name) for name in misfits}) / len(backbone)
    if share >= MIN_SHARE:
        return
    examples = "; ".join(
        f"{name} is {_shape(ours.get(name))} in the network and {_shape(weights.state.get(name))} in the file"
        for name in misfits[:3]
    )
    raise UserError(
        f"{weights.source} ({weights.format}) fits {100 * share:.0f} % of the layers of the backbone, less than "
        f"{100 * MIN_SHARE:.0f} %: {examples}. Set model.name, model.depth and model.width to those of the file, or load "
        f"what fits all the same, with force (videornn convert --force)"
    )


def _layer(name: str) -> str:
    """Return the layer, a convolution and its norm, of a backbone tensor: "res3.0.conv1", "stem.0"."""
    return ".".join(name.split(".")[: 2 if name.startswith("stem") else 3])


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else "x".join(map(str, tensor.shape))


def _notes(
    weights: Weights, ours: Mapping[str, Tensor], fits: Collection[str], misfits: Collection[str], has_others: bool
) -> tuple[str, ...]:
    state, notes = weights.state, []
    if has_others:
        notes.append(f"the head is new: the file has other classes ({', '.join(weights.class_names[:2])}, ...)")
    elif "head.weight" not in fits:
        classes = f"{len(state['head.weight'])} classes" if "head.weight" in state else "none"
        notes.append(f"the head is new: the file has {classes}, the network {len(ours['head.weight'])}")
    in_file, here, loaded = _blocks(state), _blocks(ours), _blocks(fits)
    unused, halves = in_file - here, (in_file & here) - loaded
    if unused:
        notes.append(f"attention of the file at {_places(unused)} is unused: the network has none there")
    if halves:
        different = sorted({name.split(".", 3)[3] for name in misfits if _unit(name) in halves})
        notes.append(
            f"attention at {_places(halves)} stays new: the file has another kind or width of block there "
            f"({', '.join(different)} differ), and part of it behind its trained gate would damage the network"
        )
    if loaded and weights.format != VIDEORNN.name:
        notes.append(AFFINITY_NOTE)
    if loaded and weights.format == MMACTION2.name:
        notes.append(POOLING_NOTE)
    if weights.format == MMACTION2.name and ours["stem.0.conv.weight"].shape[2] == 5:
        notes.append(STRIDE_NOTE)
    return tuple(notes)


def _places(blocks: Iterable[str]) -> str:
    return ", ".join(sorted(block.removesuffix(".attention") for block in blocks))


def _groups(names: Iterable[str]) -> str:
    """Count names by the part of the network that they belong to: "res3.1.attention (13), head (2)"."""
    counts = Counter(".".join(name.split(".")[:-1][:3]) or name for name in names)
    shown = [f"{group} ({count})" for group, count in counts.items()]
    return ", ".join(shown if len(shown) <= MAX_GROUPS else [*shown[:MAX_GROUPS], f"and {len(shown) - MAX_GROUPS} more"])
