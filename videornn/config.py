"""The one schema of a run: typed, frozen, strict; an unknown key is an error that names the nearest one.

A config is a YAML file plus overrides `section.key=value`. Every field is followed by its meaning and unit, which
`videornn config` prints beside the value. Only the four jobs (train, evaluate, predict, explain) read a whole Config.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from videornn.errors import UserError

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Section(BaseModel):
    """A frozen group of settings; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class AttentionConfig(Section):
    kind: Literal["none", "nl", "nl_gaussian", "nl_dot_product", "nl_concatenation", "pairwise", "unary", "gc", "dnl"] = (
        "none"
    )
    """Attention block: non-local (nl: embedded Gaussian), its two halves, global context, disentangled non-local."""
    places: dict[Literal["res2", "res3", "res4", "res5"], tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]] = {
        "res3": (1, 3),
        "res4": (1, 3, 5),
    }
    """After which residual blocks (0-based, or all) of which stages a block stands."""
    key_pool: tuple[Count, Count, Count] | None = (1, 2, 2)
    """Max-pooling (t, h, w) of keys, values and the unary map; null keeps every position (as SNL and GCNet do)."""
    axes: Literal["spacetime", "space", "time"] = "spacetime"
    """Positions that see each other: all, those of the same frame, or those of the same place in all frames."""
    gate: Literal["norm", "scalar"] = "norm"
    """What starts at zero: the gain of the block's last norm, or a scalar on the pairwise half (the public 2D code)."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature of the pairwise softmax; null: 0.05 for dnl and pairwise, 1 for nl and nl_gaussian."""


class ModelConfig(Section):
    name: Literal["slow", "i3d", "c2d", "r3d", "r2plus1d"] = "slow"
    """3D ResNet family: where the temporal kernels and strides sit."""
    depth: Literal[10, 18, 34, 50, 101, 152] = 50
    """Number of layers; 10, 18 and 34 have basic blocks, 50 and more (slow, i3d, c2d) have bottlenecks."""
    width: Annotated[int, Field(ge=4)] = 64
    """Channels of the stem (64 in every published network); the stages have 1, 2, 4, 8 times as many."""
    num_classes: Count | None = None
    """Number of classes; null takes it from the class names or the training list."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Dropout probability before the classifier."""
    zero_init_residual: bool = True
    """Start every residual block as the identity: good for long schedules, slow in runs of a few thousand steps."""
    attention: AttentionConfig = AttentionConfig()
    """Attention blocks."""
    recompute_blocks: bool = False
    """Activation checkpointing: keep only the input of each residual block for the backward pass; slower, less memory."""
    init: str | None = None
    """Weights to start from (not a resume): of videornn, torchvision, PyTorchVideo, SlowFast, caffe2 or MMAction2."""
    inflation: Literal["average", "centre"] = "average"
    """How init makes 3D kernels of 2D ones: repeated and divided by their length, or zero but for the middle frame."""


class DataConfig(Section):
    train: str | None = None
    """Training videos: a list file, own or official, or a folder with one folder per class."""
    val: str | None = None
    """Videos evaluated after every epoch; null skips it."""
    test: str | None = None
    """Videos of `videornn test`; null takes val."""
    root: str | None = None
    """Folder of the videos: list paths are relative to it, official lists searched under it; null: each list's own."""
    labels: str | None = None
    """File of class names: one a line, `id name` lines, or JSON; null: labels.txt beside each list if there is one."""
    fold: Literal[1, 2, 3] = 1
    """Which of the official splits, where a folder of lists holds three (UCF101, HMDB51)."""
    num_frames: Count = 8
    """Frames of a clip."""
    temporal_stride: Count = 8
    """Frames of a sampling_fps video from one sampled frame to the next (sampling: clip)."""
    sampling_fps: Annotated[float, Field(gt=0)] | None = 30.0
    """Frames per second that temporal_stride refers to; null: every video's own frames."""
    sampling: Literal["clip", "segments"] = "clip"
    """clip (dense): num_frames at a fixed stride; segments (TSN): one frame from each of num_frames equal parts."""
    short_videos: Literal["repeat_last", "loop"] = "repeat_last"
    """What a clip has past the end of a video that is too short for it: its last frame again, or the video again."""
    clips_per_video: Count = 1
    """Training clips cut from every opened video (repeated augmentation); train.batch_size counts clips."""
    class_sampling: Literal["natural", "sqrt", "balanced"] = "natural"
    """Classes of an epoch: as in the list, as likely as the square root of their size, or all equally likely."""
    frame_order: Literal["time", "shuffled", "single"] = "time"
    """time, or a control that takes motion away: shuffled order, or one frame repeated."""
    crop_size: Annotated[int, Field(ge=16)] = 224
    """Side of the square training crop, in pixels."""
    crop: Literal["scale_jitter", "resized"] = "scale_jitter"
    """Random training crop: a square after scaling to short_side, or a box of crop_area and crop_aspect made square."""
    short_side: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] = (256, 320)
    """Range of the random short side that training videos are scaled to before the crop, in pixels (scale_jitter)."""
    crop_area: Range = (0.08, 1.0)
    """Range of the crop's share of the frame's area (resized), 0..1."""
    crop_aspect: Range = (0.75, 1.3333)
    """Range of the crop's width / height before it is made square (resized)."""
    aspect: Literal["keep", "squeeze"] = "keep"
    """keep: square crops of the frame as it is; squeeze: make the whole frame square first, so that no side is cut off."""
    hflip: Probability = 0.5
    """Probability of a horizontal flip; swaps classes named left and right; 0 where other names tell the two apart."""
    color_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of brightness, contrast and saturation of a training clip."""
    rand_augment: Annotated[int, Field(ge=0)] = 0
    """RandAugment: number of random operations on a training clip; 0 is off, 2 is usual."""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of RandAugment's operations, 0..30."""
    erasing: Probability = 0.0
    """Probability that a random box of a training clip, 2 to 33 % of it, is painted with the mean."""
    mixup_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Mixup: the share of a clip in a blend of two is Beta(alpha, alpha); 0 is off, 0.8 is usual."""
    cutmix_alpha: Annotated[float, Field(ge=0)] = 0.0
    """CutMix: the share of a clip that a box of another leaves is Beta(alpha, alpha); 0 is off, 1 is usual."""
    mix_probability: Probability = 1.0
    """Share of the training batches that are mixed, if mixup_alpha or cutmix_alpha is above 0."""
    cutmix_share: Probability = 0.5
    """Share of the mixed batches that take CutMix, if both are on."""
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    """Mean per RGB channel that is subtracted, for values in 0..1."""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        0.225,
        0.225,
        0.225,
    )
    """Standard deviation per RGB channel, for values in 0..1."""
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = "auto"
    """Video back end; auto takes the first of pyav, torchcodec and decord that works."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that a video may take to open, and to decode, before it counts as bad."""
    num_workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes per rank; 0 loads in the training process."""
    max_bad_share: Probability = 0.1
    """Share of the videos that may fail to decode before a run stops."""

    @model_validator(mode="after")
    def crop_fits_short_side(self) -> DataConfig:
        low, high = self.short_side
        if self.crop == "scale_jitter" and not self.crop_size <= low <= high:
            raise ValueError(
                f"crop_size <= short_side[0] <= short_side[1] must hold, got crop_size {self.crop_size} and "
                f"short_side [{low}, {high}]"
            )
        return self

    @model_validator(mode="after")
    def crop_ranges_ascend(self) -> DataConfig:
        for key, (low, high), limit in (("crop_area", self.crop_area, 1.0), ("crop_aspect", self.crop_aspect, math.inf)):
            if not low <= high <= limit:
                at_most = " <= 1" if limit == 1 else ""
                raise ValueError(f"{key}[0] <= {key}[1]{at_most} must hold, got [{low}, {high}]")
        return self


class TrainConfig(Section):
    epochs: Count = 100
    """Passes over the training videos."""
    batch_size: Count = 64
    """Clips of one optimizer step, over all ranks together."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate, for batch_size."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    """Length of the linear warm-up, in epochs."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 weight decay; normalisation weights and biases have none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread over all classes."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; null does not clip."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of convolutions and matrix products; bf16 runs under autocast."""
    log_every: Count = 10
    """Steps between two log lines."""
    val_every: Count = 1
    """Epochs between two validations; the last epoch always has one."""
    save_every: Count = 1
    """Epochs between two checkpoints; the last epoch always has one."""


class TestConfig(Section):
    num_clips: Count = 10
    """Clips of a video, evenly over its length."""
    num_crops: Literal[1, 3] = 3
    """Crops of a clip: 1 (centre) or 3 (along the longer side)."""
    short_side: Annotated[int, Field(ge=16)] = 256
    """Short side that test videos are scaled to, in pixels."""
    crop_size: Annotated[int, Field(ge=16)] = 256
    """Side of the square test crop, in pixels."""
    batch_size: Count = 16
    """Views that go through the network at once."""

    @model_validator(mode="after")
    def crop_fits_short_side(self) -> TestConfig:
        if self.crop_size > self.short_side:
            raise ValueError(f"crop_size {self.crop_size} is larger than short_side {self.short_side}")
        return self


class Config(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of weights, order, clips and crops."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto is cuda if there is one, else cpu."""
    model: ModelConfig = ModelConfig()
    """The network."""
    data: DataConfig = DataConfig()
    """Videos, clips and crops."""
    train: TrainConfig = TrainConfig()
    """Optimisation."""
    test: TestConfig = TestConfig()
    """Views of `videornn test`, `infer` and `explain`."""


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The config of a YAML file with overrides applied.

    Args:
        overrides: `section.key=value` strings; the value is YAML.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown, a value has the wrong type or range; the
            message names the file and line, or the override, and the nearest key.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"config {path} does not exist{_nearest_config(path)}")
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of sections such as `model:` and `data:`, not a {_kind(values)}")
    places = {key: f"{path}:{line}" for key, line in _key_lines(node).items()}
    return _validate(values, overrides or [], places, str(path))


def override_config(config: Config, overrides: list[str]) -> Config:
    """A copy of the config with `section.key=value` strings applied; raises UserError like load_config."""
    return _validate(config.model_dump(mode="json"), overrides, {}, "config")


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """The config stored in a checkpoint; source names it in errors."""
    return _validate(values, [], {}, source)


def config_to_yaml(config: Config, *, comments: bool = False) -> str:
    """The resolved config as YAML, with the meaning of every field above it if comments is set."""
    return "\n".join(_yaml_lines(config, "", comments)).lstrip("\n") + "\n"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _validate(values: dict, overrides: list[str], places: dict[str, str], source: str) -> Config:
    values = json.loads(json.dumps(values, default=str))  # a deep copy, of plain JSON types
    for override in overrides:
        key, value = _parse_override(override)
        _set_dotted(values, key, value, override)
        places = places | {key: f"override {override!r}"}
    try:
        # JSON mode is as strict as Python mode but takes a list for a tuple, which is all that YAML has
        return Config.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UserError(_sentence(error, places, source)) from None


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form section.key=value")
    try:
        return key, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML") from error


def _set_dotted(values: dict, key: str, value: Any, override: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {section} is a value, not a section")
    values[name] = value


def _sentence(error: ValidationError, places: dict[str, str], source: str) -> str:
    first, *others = error.errors(include_url=False)
    # pydantic adds the branch of a union or "[key]" to the place: keep the part that is a key of the file
    keys = [str(part) for part in first["loc"]]
    known = next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in places), 0)
    key = ".".join(keys)
    place = places.get(".".join(keys[:known]), source)
    if first["type"] == "extra_forbidden":
        problem = f"unknown key {key!r}; {_nearest_key(key)}"
    else:
        got = "" if isinstance(first["input"], dict) else f", got {json.dumps(first['input'])} ({_kind(first['input'])})"
        problem = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}{got}".replace("value error, ", "")
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {problem}{more}"


def _nearest_key(key: str) -> str:
    keys = _dotted_keys(Config)
    same_name = [known for known in keys if known.split(".")[-1] == key.split(".")[-1]]
    near = same_name or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    section = key.rpartition(".")[0]
    names = [known for known in keys if known.rpartition(".")[0] == section] or list(Config.model_fields)
    return f"known keys are {', '.join(names)}"


def _dotted_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        is_class = get_origin(field.annotation) is None and isinstance(field.annotation, type)
        if is_class and issubclass(field.annotation, BaseModel):
            keys += _dotted_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _key_lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """Line (from 1) of every dotted key of a composed YAML document."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    lines = {}
    for key, value in node.value:
        lines[prefix + key.value] = key.start_mark.line + 1
        lines |= _key_lines(value, f"{prefix}{key.value}.")
    return lines


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true/false", int: "whole number", float: "number", list: "list", type(None): "null"}
    return names.get(type(value), "mapping")


def _nearest_config(path: Path) -> str:
    parent = path.parent if path.parent.is_dir() else Path("configs")
    near = difflib.get_close_matches(path.name, [file.name for file in parent.glob("*.yaml")], n=1)
    return f"; did you mean {parent / near[0]}?" if near else "; the recipes are in configs/"


def _yaml_lines(section: Section, indent: str, comments: bool) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        nested = isinstance(value, Section)
        if comments:
            choices = (
                f" ({' | '.join(map(str, get_args(field.annotation)))})" if get_origin(field.annotation) is Literal else ""
            )
            lines += [""] * nested + [f"{indent}# {field.description}{choices}"]
        if nested:
            lines += [f"{indent}{name}:", *_yaml_lines(value, indent + "  ", comments)]
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
            lines.append(f"{indent}{name}: {text.removesuffix('...' + chr(10)).strip()}")
    return lines
