"""The schema of a run: typed, frozen, strict sections; every field is followed by its meaning and unit.

`videornn config` prints the meanings beside the values. Only the jobs (train, evaluate, ...) read a whole Config.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


def _blocks(given: object) -> object:
    """Check blocks with one error sentence of our own, where a union would give two that also cover each other's values."""
    if given == "all":
        return given
    if not isinstance(given, (list, tuple)) or any(type(block) is not int or block < 0 for block in given):
        raise ValueError("give the numbers of blocks from 0, such as [1, 3], or all")
    return tuple(given)


AttentionKind = Literal[
    "none",
    "nl",
    "nl_gaussian",
    "nl_dot_product",
    "nl_concatenation",
    "nl_add",
    "nl_own_mask",
    "pairwise",
    "unary",
    "gc",
    "dnl",
]
Axes = Literal["spacetime", "space", "time"]
Gate = Literal["norm", "scalar"]
Scale = Literal["paper", "learnt"]
Inflation = Literal["average", "centre"]
Sampling = Literal["clip", "segments"]
ShortVideos = Literal["repeat_last", "loop"]
FrameOrder = Literal["time", "shuffled", "single"]
ClassSampling = Literal["natural", "sqrt", "balanced"]
Crop = Literal["scale_jitter", "resized"]
Decoder = Literal["auto", "pyav", "decord", "torchcodec"]
ClassWeights = Literal["none", "sqrt", "balanced"]
Precision = Literal["fp32", "bf16", "fp16"]
BatchNormKind = Literal["batch", "sync", "frozen"]
Average = Literal["scores", "logits"]
StageName = Literal["res2", "res3", "res4", "res5"]
Blocks = Annotated[tuple[int, ...] | Literal["all"], BeforeValidator(_blocks)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class AttentionConfig(Section):
    kind: AttentionKind = "none"
    """Attention block: non-local (nl: embedded Gaussian), its two halves, global context, disentangled non-local."""
    places: dict[StageName, Blocks] = {
        "res3": (1, 3),
        "res4": (1, 3, 5),
    }
    """After which residual blocks (0-based, or all) of which stages a block stands."""
    key_pool: tuple[Count, Count, Count] | None = (1, 2, 2)
    """Max-pooling (t, h, w) of keys, values and the unary map; null keeps every position (as SNL and GCNet do)."""
    axes: Axes = "spacetime"
    """Positions that see each other: all, those of the same frame, or those of the same place in all frames."""
    gate: Gate = "norm"
    """What starts at zero: the gain of the block's last norm, or a scalar on the pairwise half (the public 2D code)."""
    scale: Scale = "paper"
    """Of the pairwise logits of nl, pairwise and dnl: the papers' own; or learnt, for queries and keys of one embedding."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature of the pairwise softmax; null: 0.05 for dnl and pairwise, 1 for the others and a learnt scale."""


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
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Stochastic depth: probability that a clip skips the last residual block, less for earlier ones down to 0."""
    zero_init_residual: bool = True
    """Start every residual block as the identity: good for long schedules, slow in runs of a few thousand steps."""
    attention: AttentionConfig = AttentionConfig()
    """Attention blocks."""
    recompute_blocks: bool = False
    """Activation checkpointing: keep only the input of each residual block for the backward pass; slower, less memory."""
    init: str | None = None
    """Weights to start from (not a resume): of videornn, torchvision, PyTorchVideo, SlowFast, caffe2 or MMAction2."""
    inflation: Inflation = "average"
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
    sampling_fps: Annotated[float, Field(ge=0.01, le=10_000)] | None = 30.0
    """Frames per second that temporal_stride refers to; null: every video's own frames."""
    sampling: Sampling = "clip"
    """clip (dense): num_frames at a fixed stride; segments (TSN): one frame from each of num_frames equal parts."""
    short_videos: ShortVideos = "repeat_last"
    """What a clip has past the end of a video that is too short for it: its last frame again, or the video again."""
    clips_per_video: Count = 1
    """Training clips cut from every opened video (repeated augmentation); train.batch_size counts clips."""
    class_sampling: ClassSampling = "natural"
    """Classes of an epoch: as in the list, as likely as the square root of their size, or all equally likely."""
    frame_order: FrameOrder = "time"
    """time, or a control that takes motion away: shuffled order, or one frame repeated."""
    crop_size: Annotated[int, Field(ge=16)] = 224
    """Side of the square training crop, in pixels."""
    crop: Crop = "scale_jitter"
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
    decoder: Decoder = "auto"
    """Video back end; auto takes the first of pyav, torchcodec and decord that works."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that a video may take to open, and to decode, before it counts as bad."""
    max_frame_pixels: Annotated[int, Field(ge=2**16, lt=2**31)] = 8192 * 4352
    """Width x height beyond which frames are not decoded and their video counts as bad; 8K has 33 million."""
    num_workers: Annotated[int, Field(ge=0, le=1000)] = 2
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


class MultigridConfig(Section):
    long_cycle: bool = False
    """Begin every step of the schedule with many small clips and end it with few full ones (train.schedule: step)."""
    short_cycle: bool = False
    """Turn from step to step between small, middle and full crops, with as many more clips."""
    epoch_factor: Annotated[float, Field(gt=0)] = 1.5
    """Epochs of a multigrid run as a multiple of train.epochs."""


class TrainConfig(Section):
    epochs: Count = 100
    """Passes over the training videos."""
    batch_size: Count = 64
    """Clips of one optimizer step, over all ranks together."""
    accumulate: Count = 1
    """Parts that a rank's share of a batch goes through the network in, one after the other; their gradients add up."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: SGD with Nesterov momentum, or AdamW."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate, for lr_batch_size."""
    lr_batch_size: Count | None = None
    """The batch_size that lr is meant for: lr is used times batch_size / lr_batch_size; null: lr is used as it is."""
    schedule: Literal["cosine", "step", "polynomial"] = "cosine"
    """How the learning rate falls, from the first step of a run to its last."""
    end_lr: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Learning rate after the last step, as a share of lr (cosine, polynomial)."""
    step_epochs: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Epochs after which the learning rate falls by step_factor (step)."""
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What the learning rate is multiplied by at each of step_epochs (step)."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of the polynomial; 1 is a straight line (polynomial)."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    """Length of the linear warm-up, in epochs; it climbs to where the schedule is then."""
    warmup_start: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Learning rate at the start of the warm-up, as a share of lr."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum of SGD."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the mean and the mean square of the gradient (adamw)."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay of convolutions and the classifier (L2 for sgd, decoupled for adamw)."""
    norm_weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of normalisation weights and of biases."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a stage as a multiple of the next one's; 1 is off, 0.7 protects the early stages in fine-tuning."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; null does not clip."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread over all classes."""
    class_weights: ClassWeights = "none"
    """Weight of a clip's loss: 1, or one over (the square root of) how many training videos its class has; mean 1."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a moving average of the weights, which is then what is validated, tested and used; null: none."""
    precision: Precision = "bf16"
    """Precision of convolutions and matrix products; bf16 and fp16 run under autocast, fp16 with loss scaling."""
    compile: bool = False
    """Compile the network with torch.compile: minutes for every shape of a batch, faster steps on GPUs."""
    batch_norm: BatchNormKind = "batch"
    """Statistics of batch norm: of a rank's clips, of all ranks', or as loaded, weights too (frozen; not in new blocks)."""
    bn_clips: Count | None = None
    """Clips that batch norm takes statistics of together (sub-batch norm); null: all of a rank's that go through at once."""
    precise_bn: Annotated[int, Field(ge=0)] = 0
    """Training batches whose statistics replace batch norm's running averages before a validation; 0 is off, 200 usual."""
    freeze: tuple[Literal["stem", "res2", "res3", "res4", "res5", "attention"], ...] = ()
    """Parts that stay as they are loaded, with their batch norms; attention blocks learn on unless they are named too."""
    multigrid: MultigridConfig = MultigridConfig()
    """Variable clip shapes (Wu et al. 2020, arXiv:1912.00998)."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a gradient that is not finite does: stop the run, or skip the step; the batch's videos are written down."""
    max_skipped: Count = 10
    """Steps that may be skipped before a run stops (nonfinite: skip)."""
    deterministic: bool = False
    """Only deterministic algorithms, so that two runs on equal GPUs are bit-identical (on a CPU they always are); slower."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a rank waits for another before the run ends and names it."""
    elastic: bool = False
    """Let a resumed run have another number of ranks: the same samples, but other statistics of batch norm."""
    accept_other_data: bool = False
    """Let a resumed run have as many other videos, in another order, with other labels, or classes that were renamed."""
    keep: Count = 2
    """Checkpoints kept beside best.pt: the last one, and older ones that stand in if it is damaged."""
    log_every: Count = 10
    """Steps between two log lines."""
    val_every: Count = 1
    """Epochs between two validations; the last epoch always has one."""
    save_every: Count = 1
    """Epochs between two checkpoints; the last epoch always has one."""
    save_every_steps: Count | None = None
    """Steps between two checkpoints within an epoch; null: only at its end."""

    @model_validator(mode="after")
    def steps_ascend(self) -> TrainConfig:
        if list(self.step_epochs) != sorted(set(self.step_epochs)) or (self.step_epochs and self.schedule != "step"):
            raise ValueError(
                f"step_epochs must ascend and need schedule: step, got {list(self.step_epochs)} and {self.schedule}"
            )
        if self.schedule == "step" and not self.step_epochs:
            raise ValueError("schedule step needs step_epochs, such as [44, 88]")
        return self

    @model_validator(mode="after")
    def warmup_ends(self) -> TrainConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs:g} must end before epochs={self.epochs}; lower it")
        return self

    @model_validator(mode="after")
    def norms_agree(self) -> TrainConfig:
        if self.bn_clips is not None and self.batch_norm != "batch":
            raise ValueError(
                f"bn_clips={self.bn_clips} splits a rank's clips, which batch_norm: {self.batch_norm} does not; drop one"
            )
        if self.precise_bn and self.batch_norm == "frozen":
            raise ValueError("precise_bn would change the statistics that batch_norm: frozen keeps; drop one")
        return self


class EvalConfig(Section):
    num_clips: Count = 10
    """Clips of a video, evenly over its length."""
    num_crops: Literal[1, 3] = 3
    """Crops of a clip: 1 (centre) or 3 (along the longer side)."""
    short_side: Annotated[int, Field(ge=16)] = 256
    """Short side that test videos are scaled to, in pixels."""
    crop_size: Annotated[int, Field(ge=16)] = 256
    """Side of the square test crop, in pixels."""
    average: Average = "scores"
    """What is averaged over the views of a video: softmax scores, or logits."""
    batch_size: Count = 16
    """Views that go through the network at once; fewer need less memory."""

    @model_validator(mode="after")
    def crop_fits_short_side(self) -> EvalConfig:
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
    test: EvalConfig = EvalConfig()
    """Views of `videornn test`, `infer` and `explain`."""
