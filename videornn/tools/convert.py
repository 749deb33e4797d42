"""Convert a foreign checkpoint to one of videornn: infer the network from its tensors, and set the input of its training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from videornn.checkpoints.checkpoint import save_checkpoint
from videornn.config import Config, config_from_dict, override_config
from videornn.data.annotations.load import load_labels
from videornn.errors import UserError
from videornn.models import build_model
from videornn.models.public_input import CLIPS, clip_words, input_remark, public_input
from videornn.models.weights import LoadReport, infer_network, load_weights, read_weights


def convert(
    source: Path, out: Path, overrides: list[str] | None = None, *, labels: Path | None = None, force: bool = False
) -> LoadReport:
    """Write the weights of another project as a checkpoint that test, infer, explain and model.init take.

    Args:
        overrides: `section.key=value` settings that the tensors do not tell, or tell wrongly; an image network needs
            model.name, because it can become any of them.
        labels: file with one class name a line; without it classes are named by their numbers.
        force: keep whatever fits.

    Raises:
        UserError: the source cannot be read, is of videornn already, has no head, or is no network of ours; the number of
            labels is not that of its classes; an override is wrong.
    """
    overrides = overrides or []
    names = None if labels is None else load_labels(labels)  # first, because weights can take a minute
    weights = read_weights(source)
    if weights.format == "videornn":
        raise UserError(f"{source} is a checkpoint of videornn already")
    network = infer_network(weights)
    if network["name"] is None:
        if not _says(overrides, "model.name"):
            raise UserError(f"{source} is an image network: say what it is to become, model.name=slow, i3d or c2d")
        network["name"] = "c2d"  # until the override is applied
    trained = public_input(weights.format)
    trained["data"] = trained.get("data", {}) | (weights.data or {})
    config = override_config(config_from_dict({**trained, "model": network}, str(source)), overrides)
    if weights.format in CLIPS and weights.data is None and not _says(overrides, "data.temporal_stride"):
        data = public_input(weights.format, config.data.num_frames)["data"]  # the stride belongs to the number of frames
        config = override_config(config, [f"data.temporal_stride={data['temporal_stride']}"])
    if config.model.num_classes is None:
        raise UserError(f"{source} has no classifier: start a training from it (model.init={source}) instead")
    class_names = tuple(map(str, range(config.model.num_classes))) if names is None else names
    if len(class_names) != config.model.num_classes:
        raise UserError(f"{labels} has {len(class_names)} class names, the network {config.model.num_classes} classes")
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model)
    report = load_weights(model, weights, inflation=config.model.inflation, force=force)
    content = {
        "model": model.state_dict(),
        "step": 0,
        "best_top1": -1.0,
        "config": config.model_dump(mode="json"),
        "class_names": list(class_names),
    }
    save_checkpoint(out, content)
    return replace(report, notes=(*report.notes, *_input_notes(config, report)))


def _says(overrides: list[str], key: str) -> bool:
    """Return whether overrides give a setting, or the section that it is in."""
    return any(override.partition("=")[0] in (key, key.partition(".")[0]) for override in overrides)


def _input_notes(config: Config, report: LoadReport) -> tuple[str, ...]:
    """Say which clips a converted network will be given, and why."""
    if report.format == "torchvision image ResNet":  # it has no clips
        return ()
    clips = f"test and infer take clips of {clip_words(config)}"
    if report.format not in CLIPS:
        return (f"{clips}; the file does not tell what it was trained on: set data.num_frames and data.temporal_stride",)
    if remark := input_remark(config, report):
        return clips, remark
    if report.data is not None:
        return (f"{clips}, which its file says it was trained on",)
    others = [f"data.num_frames={frames}" for frames, _ in CLIPS[report.format] if frames != config.data.num_frames]
    ending = f"; if this one had another number of frames, give {' or '.join(others)}" if others else ""
    return (f"{clips}, as public {report.format} networks were trained{ending}",)
