"""Load the data of a training run, check it, and collect remarks before the first step."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from videornn.config import Config
from videornn.data.annotations.load import VideoTable, check_labels
from videornn.data.annotations.on_ranks import check_list, load_list
from videornn.data.transforms import mirrored_labels
from videornn.errors import UserError
from videornn.system.cudnn_faults import known_faults

SMALL_NORM_BATCH = 4  # with fewer clips, statistics of batch norm are known to be poor


@dataclass(frozen=True)
class TrainingData:
    """Tables of a run, and the names of its classes; val is None if nothing is validated."""

    train: VideoTable
    val: VideoTable | None
    class_names: tuple[str, ...]


def load_training_data(config: Config) -> tuple[TrainingData, Config]:
    """Load the tables that a config names, once for all ranks, and fill in num_classes of the config; collective.

    Raises:
        UserError: there is no training list, a label is out of range, or the number of classes is contradictory.
    """
    section = config.data
    if config.train.batch_norm == "frozen" and config.model.init is None:
        raise UserError("train.batch_norm=frozen keeps statistics that a new network does not have: give model.init=FILE")
    if section.train is None:
        raise UserError("there is nothing to train on: give data.train=LIST_OR_FOLDER")
    table = load_list(section, section.train, "train")
    num_classes = config.model.num_classes or len(table.class_names) or int(table.labels.max()) + 1
    if table.class_names and len(table.class_names) != num_classes:
        raise UserError(f"model.num_classes={num_classes}, but {section.train} has {len(table.class_names)} class names")
    class_names = table.class_names or tuple(f"class {label}" for label in range(num_classes))
    check_labels(table, num_classes)
    check_list(table)
    val_table = None
    if section.val is not None:
        val_table = load_list(section, section.val, "val").with_classes(class_names)
        check_labels(val_table, num_classes)
        check_list(val_table)
    model = config.model.model_copy(update={"num_classes": num_classes})
    return TrainingData(table, val_table, class_names), config.model_copy(update={"model": model})


def empty_classes(data: TrainingData) -> list[str]:
    """Return the classes that have no training video."""
    counts = np.bincount(data.train.labels, minlength=len(data.class_names))
    return [name for name, count in zip(data.class_names, counts, strict=True) if count == 0]


def check_batch_norm(model: nn.Module, clip_shape: tuple[int, int, int], num_clips: int, bn_clips: int | None) -> None:
    """Try num_clips clips of a shape (T, H, W) in training, by shapes only, without computing anything.

    Args:
        bn_clips: how many of them share statistics in batch norm; None: all.

    Raises:
        UserError: a layer has no position left, or a batch norm has one value per channel, or clips are left over.
    """
    if bn_clips and num_clips % bn_clips:
        raise UserError(
            f"train.bn_clips={bn_clips} does not divide the {num_clips} clips that go through at once on a rank; they are "
            f"train.batch_size / (ranks x train.accumulate)"
        )
    num_clips = bn_clips or num_clips
    try:
        with torch.no_grad():
            copy.deepcopy(model).to("meta").train()(torch.empty(num_clips, 3, *clip_shape, device="meta"))
    except (ValueError, RuntimeError) as error:
        size = " x ".join(map(str, clip_shape))
        raise UserError(
            f"the network cannot train on {num_clips} clip(s) of {size} at a time ({error}); use larger clips "
            f"(data.num_frames, data.crop_size) or more of them (train.batch_size, fewer ranks, a smaller train.accumulate)"
        ) from error


def remarks(config: Config, data: TrainingData, clips_at_once: int) -> list[str]:
    """Return a sentence for each thing about a run that its user should know and may not."""
    val_remarks = replace(data.val, class_names=()).remarks() if data.val else []  # the names are those of the other list
    sentences = [*data.train.remarks(), *val_remarks]
    empty = empty_classes(data)
    if len(data.class_names) == 1:
        sentences.append(f"there is one class only, {data.class_names[0]}, and the network will call everything that")
    if empty:
        names = ", ".join(empty[:10]) + (f", and {len(empty) - 10} more" if len(empty) > 10 else "")
        from_1 = empty == ["class 0"]  # labels without names
        sentences.append(
            f"{len(empty)} of {len(data.class_names)} classes have no training video, so the network will never name them: "
            f"{names}{'; labels begin at 0, and those of the list at 1' if from_1 else ''}"
        )
    mirrored = mirrored_labels(data.class_names) if config.data.hflip else ()
    never, swapped = mirrored.count(-1), sum(there not in (-1, here) for here, there in enumerate(mirrored))
    if never or swapped:
        sentences.append(f"flips swap the labels of {swapped} classes, {never} are never flipped")
    if config.train.batch_norm == "batch" and (config.train.bn_clips or clips_at_once) < SMALL_NORM_BATCH:
        sentences.append(
            f"batch norm takes its statistics of {config.train.bn_clips or clips_at_once} clips at a time, which makes them "
            f"poor: train.batch_norm=sync (several ranks) or frozen (with model.init) may help"
        )
    return sentences


def cudnn_remarks(device: torch.device, precision: str) -> list[str]:
    """Return a sentence for each known fault of this cuDNN with this PyTorch that affects training in this precision."""
    if device.type != "cuda" or precision == "fp32":
        return []
    faults = known_faults(torch.__version__, torch.backends.cudnn.version(), torch.version.cuda)
    return [f"{fault}: {remedy}" for fault, remedy in faults]
