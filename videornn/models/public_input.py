"""The clips that public weights were trained on, which no tensor tells: frames, stride, normalisation."""

from __future__ import annotations

from typing import Any

from videornn.config import Config, DataConfig
from videornn.models.weights import LoadReport

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_TORCHVISION_VIDEO = {
    "mean": [0.43216, 0.394666, 0.37645],
    "std": [0.22803, 0.22145, 0.216989],
    "short_side": [128, 160],
    "crop_size": 112,
}
# settings of data and test for the public networks of a format, where they differ from videornn's defaults
INPUTS: dict[str, dict[str, dict[str, Any]]] = {
    "torchvision image ResNet": {"data": _IMAGENET},
    "torchvision video ResNet": {"data": _TORCHVISION_VIDEO, "test": {"short_side": 128, "crop_size": 112}},
    # the stride counts frames of the video itself (mmaction2, SampleFrames)
    "MMAction2": {"data": {**_IMAGENET, "sampling_fps": None, "short_videos": "loop"}},
}
# SlowFast's and PyTorchVideo's "8x8" and "4x16" spread their frames from the first to the last of 64, both included
# (torch.linspace in SlowFast's datasets/decoder.py and in pytorchvideo's UniformTemporalSubsample)
_SPREAD = ((8, 9), (4, 21))
# num_frames and temporal_stride of the public networks of a format, the most common first
CLIPS: dict[str, tuple[tuple[int, int], ...]] = {
    "SlowFast": _SPREAD,
    "PyTorchVideo Slow": _SPREAD,
    "PyTorchVideo C2D or I3D": _SPREAD,
    "MMAction2": ((8, 8), (4, 16)),
    "torchvision video ResNet": ((16, 2),),
}
# settings of data that change what a network sees of a video
_MEANING = ("num_frames", "temporal_stride", "sampling_fps", "mean", "std", "crop_size")


def public_input(form: str, num_frames: int | None = None) -> dict[str, dict[str, Any]]:
    """Return the settings of data and test, other than defaults, that the public networks of a format were trained with.

    Args:
        num_frames: of a clip; with None, or a number that none of them has, that of most of them is taken.
    """
    settings = {section: dict(values) for section, values in INPUTS.get(form, {}).items()}
    if form in CLIPS:
        clips = dict(CLIPS[form])
        frames = num_frames if num_frames in clips else CLIPS[form][0][0]
        settings.setdefault("data", {}).update(num_frames=frames, temporal_stride=clips[frames])
    return settings


def input_remark(config: Config, report: LoadReport) -> str | None:
    """Say in a sentence how a config's clips differ from those that loaded weights were trained on; None if they do not.

    Weights of images have no clips, and caffe2's do not tell theirs.
    """
    ours = config.data.model_dump(mode="json")
    if report.data is not None:
        theirs, who = report.data, report.source
    elif report.format in CLIPS:
        theirs = DataConfig().model_dump(mode="json") | public_input(report.format, config.data.num_frames)["data"]
        who = f"public {report.format} networks"
    else:
        return None
    keys: tuple[str, ...] = ("sampling", *_MEANING)
    if "segments" in (ours["sampling"], theirs.get("sampling")):
        keys = tuple(key for key in keys if key not in ("temporal_stride", "sampling_fps"))  # segments have neither
    other = [key for key in keys if key in theirs and theirs[key] != ours[key]]
    if not other:
        return None
    pairs = ", ".join(f"data.{key}={_text(theirs[key])} (here {_text(ours[key])})" for key in other)
    return f"{who} learnt from other clips than this config has: {pairs}"


def clip_words(config: Config) -> str:
    """Describe the clips of a config in words."""
    data = config.data
    rate = "as the video counts them" if data.sampling_fps is None else f"at {data.sampling_fps:g} fps"
    return f"{data.num_frames} frames, {data.temporal_stride} apart {rate}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
