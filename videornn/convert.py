"""A foreign checkpoint made into one of videornn: network told from the tensors, with the input that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from videornn.checkpoint import save_checkpoint
from videornn.config import config_from_dict, override_config
from videornn.data.annotations import load_labels
from videornn.errors import UserError
from videornn.models import build_model
from videornn.models.weights import LoadReport, infer_network, load_weights, read_weights

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
# the input that the public networks of a format were trained on, where it is not videornn's default
INPUTS: dict[str, dict[str, dict[str, Any]]] = {
    "torchvision image ResNet": {"data": _IMAGENET},
    "MMAction2": {"data": _IMAGENET},
    "torchvision video ResNet": {
        "data": {
            "mean": [0.43216, 0.394666, 0.37645],
            "std": [0.22803, 0.22145, 0.216989],
            "num_frames": 16,
            "temporal_stride": 2,
            "short_side": [128, 160],
            "crop_size": 112,
        },
        "test": {"short_side": 128, "crop_size": 112},
    },
}


def convert(
    source: Path, out: Path, overrides: list[str] | None = None, *, labels: Path | None = None, force: bool = False
) -> LoadReport:
    """Write the weights of another project as a checkpoint that test, infer, explain and model.init take.

    Args:
        overrides: `section.key=value` settings that the tensors do not tell, or tell wrongly; an image network needs
            model.name, for it can become any of them.
        labels: file with one class name a line; without it classes are called by their numbers.
        force: keep whatever fits.

    Raises:
        UserError: the source cannot be read, is of videornn already, has no head, or is no network of ours; the labels
            are not as many as its classes; an override is wrong.
    """
    overrides = overrides or []
    names = None if labels is None else load_labels(labels)  # first: weights can take a minute
    weights = read_weights(source)
    if weights.format == "videornn":
        raise UserError(f"{source} is a checkpoint of videornn already")
    network = infer_network(weights)
    if network["name"] is None:
        if not any(override.startswith("model.name=") for override in overrides):
            raise UserError(f"{source} is an image network: say what it is to become, model.name=slow, i3d or c2d")
        network["name"] = "c2d"  # until the override is applied
    defaults = INPUTS.get(weights.format, {})
    config = override_config(config_from_dict({**defaults, "model": network}, str(source)), overrides)
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
    return report
