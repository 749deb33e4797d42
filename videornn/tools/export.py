"""Export a trained network to one file that runs without videornn: ONNX, or a program of torch.export.

It takes decoded clips, uint8 RGB [B, 3, T, S, S] of any B, and returns logits float32 [B, K]: normalisation is in the graph,
so that nobody can get it wrong; the softmax is not, because views may be averaged before or after it. What a clip is, and
the names of the classes, are in the file as JSON: `about`.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videornn.checkpoints.checkpoint import content_bytes
from videornn.checkpoints.trained import Trained, load_trained
from videornn.errors import UserError
from videornn.models.forward import predict_logits
from videornn.system.files import check_output_file, replacing, telling_if_full
from videornn.tools import ExportFormat
from videornn.training.manifest import package_versions

SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4  # of a logit, absolute plus relative
BATCH_SIZES = (1, 3)  # to compare; neither is the one that the graph is recorded with
RECORDED_BATCH = 2
# from here on torch.onnx uses torch.export by default; earlier versions fail to do so with today's onnxscript
ONNX_OF_PROGRAM = torch.__version__ >= "2.9"  # compared as versions

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """The result of an export: a file written and compared with PyTorch.

    clip_shape: [3, T, S, S] of its input; num_classes: K; num_bytes, seconds: size of the file and total time; difference,
    largest: the largest difference of a logit, and the largest logit.
    """

    path: Path
    clip_shape: tuple[int, ...]
    num_classes: int
    num_bytes: int
    seconds: float
    difference: float
    largest: float


def export(checkpoint: Path, format: ExportFormat, out: Path | None = None) -> Exported:
    """Write a trained network for another runtime, and check that this computes the same logits.

    This is done in float32 on the CPU, whatever train.precision and the training device; the file runs on others as well.

    Args:
        out: the file; by default beside the checkpoint, with the suffix of the format.

    Raises:
        UserError: the checkpoint cannot be read, a package is missing, out cannot be written, or the logits differ; out is
            then unchanged.
    """
    start = time.monotonic()
    out = checkpoint.with_suffix(SUFFIXES[format]) if out is None else out
    if out.resolve() == checkpoint.resolve():
        raise UserError(f"--out {out} is the checkpoint itself; name another file")
    check_output_file(out)
    if format == "onnx":
        _check_onnx()
    trained = load_trained(checkpoint, ["device=cpu"])
    shape = (3, trained.config.data.num_frames, *[trained.config.test.crop_size] * 2)
    network = _FromPixels(trained).eval().requires_grad_(False)
    example = torch.zeros(RECORDED_BATCH, *shape, dtype=torch.uint8)
    write, load = (_write_onnx, _load_onnx) if format == "onnx" else (_write_program, _load_program)
    with telling_if_full(out, content_bytes(trained.model.state_dict())), replacing(out) as temporary:
        with _silence(), torch.no_grad():
            write(temporary, network, example, about(trained))
            run = load(temporary)
            difference, largest = _compare(trained, run, shape)
        num_bytes = temporary.stat().st_size
    seconds = time.monotonic() - start
    return Exported(out, shape, len(trained.class_names), num_bytes, seconds, difference, largest)


def about(trained: Trained) -> dict[str, str]:
    """Return the description that is stored in a file: JSON texts by name.

    class_names: K names by id. normalization: mean and std of values in 0..1, which the graph applies itself. clip: how
    frames are chosen and cut, by the names of the settings. views: how many clips and crops a video is tested with.
    videornn: the network, its training step, and the version that wrote the file.
    """
    config = trained.config
    clip = config.data.model_dump(
        mode="json",
        include={
            "num_frames",
            "temporal_stride",
            "sampling_fps",
            "sampling",
            "short_videos",
            "frame_order",
            "aspect",
        },
    )
    clip |= {"short_side": config.test.short_side, "crop_size": config.test.crop_size, "color": "RGB"}
    parts = {
        "class_names": trained.class_names,
        "normalization": {"mean": config.data.mean, "std": config.data.std, "inside": True},
        "clip": clip,
        "views": config.test.model_dump(mode="json", include={"num_clips", "num_crops", "average"}),
        "videornn": {
            "version": package_versions()["videornn"],
            "step": trained.step,
            "network": config.model.model_dump(mode="json", exclude={"init", "inflation"}),
        },
    }
    return {name: json.dumps(part, ensure_ascii=False) for name, part in parts.items()}


class _FromPixels(nn.Module):
    """The network with its normalisation in front: clips uint8 [B, 3, T, H, W] -> logits float32 [B, K]."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model = trained.model
        self.normalize = trained.normalize

    def forward(self, clips: Tensor) -> Tensor:
        return self.model(self.normalize(clips))


def _check_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX files need {' and '.join(missing)}, not installed here: pip install 'videornn[onnx]'")


def _write_onnx(path: Path, network: nn.Module, example: Tensor, texts: dict[str, str]) -> None:
    import onnx

    axes: dict[str, Any] = (
        {"dynamic_shapes": {"clips": {0: torch.export.Dim("batch")}}}
        if ONNX_OF_PROGRAM
        else {"dynamic_axes": {"clips": {0: "batch"}, "logits": {0: "batch"}}}
    )
    torch.onnx.export(
        network,
        (example,),
        str(path),
        input_names=["clips"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
        **axes,
    )
    model = onnx.load(path)
    # shapes of inner values, some of them wrong, which runtimes infer anyway; source lines, with paths, of every node
    del model.graph.value_info[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)


def _load_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])


def _write_program(path: Path, network: nn.Module, example: Tensor, texts: dict[str, str]) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (example,), dynamic_shapes={"clips": {0: batch}}, strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # source lines, with paths
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=texts)
    path.write_bytes(content.getbuffer())  # not by torch, whose error would not say that a disk is full


def _load_program(path: Path) -> Runner:
    return torch.export.load(path).module()


def _compare(trained: Trained, run: Runner, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the largest difference between the logits of a loaded file and of PyTorch, and the largest logit.

    Raises:
        UserError: a logit differs by more than the tolerance, or is not finite.
    """
    difference = largest = 0.0
    for batch_size in BATCH_SIZES:
        clips = _random_clips(trained, batch_size, shape)
        ours = predict_logits(trained.model, trained.normalize, clips, views_at_once=batch_size)
        theirs = run(clips)
        difference = max(difference, (theirs - ours).abs().max().item())
        largest = max(largest, ours.abs().max().item())
        if not torch.allclose(theirs, ours, atol=TOLERANCE, rtol=TOLERANCE):
            raise UserError(
                f"the exported network computes other logits than PyTorch, by up to {difference:.2g} of {largest:.2g} "
                f"({TOLERANCE:g} is allowed), so nothing was written; the other --format may do"
            )
    return difference, largest


def _random_clips(trained: Trained, batch_size: int, shape: tuple[int, ...]) -> Tensor:
    """Make random clips uint8 [batch_size, *shape] with the mean, deviation and smoothness of videos."""
    generator = torch.Generator().manual_seed(batch_size)
    coarse = [max(length // 8, 2) for length in shape[1:]]
    noise = torch.randn(batch_size, 3, *coarse, generator=generator)
    noise = nn.functional.interpolate(noise, shape[1:], mode="trilinear")
    noise = (noise - noise.mean()) / noise.std()
    pixels = trained.normalize.mean + trained.normalize.std * noise
    return pixels.round().clamp(0, 255).to(torch.uint8)


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what exporters print, log and warn about, unless they fail."""
    said, logged = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, OSError):  # the exporter's output does not concern these
        raise
    except Exception:
        sys.stderr.write(said.getvalue())
        raise
    finally:
        logging.disable(logged)
