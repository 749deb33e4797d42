"""Explain a network on a video: draw the maps of its attention blocks and Grad-CAM on the frames of one clip."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videornn.checkpoints.trained import Trained
from videornn.data.annotations.labels import class_key
from videornn.data.dataset import ViewSpec
from videornn.data.loader import view_spec
from videornn.data.sampling import clip_indices
from videornn.data.video.base import FrameVideo
from videornn.data.video.decoders import read_frames
from videornn.data.video.errors import memory_of_video
from videornn.errors import UserError
from videornn.explain.attention_maps import attention_blocks, block_maps, observe, over_even, strongest_points
from videornn.explain.attention_numbers import MEANING, block_numbers
from videornn.explain.clip_places import Places, Query
from videornn.explain.grad_cam import default_stage, grad_cam
from videornn.explain.heat_maps import HeatMap, Scene, draw_movie, draw_sheet
from videornn.explain.map_words import block_captions, block_heat_maps, grad_cam_captions
from videornn.models.nonlocal_block import AttentionBlock
from videornn.models.resnet3d import STAGES
from videornn.system.files import make_folder, short_enough, write_text


@dataclass(frozen=True)
class Clip:
    """A clip: views uint8 [1, 3, T, S, S] as the network sees them, and the position of their frames in the video.

    seconds: when they appear, [T]; indices: their numbers among the num_frames of the video, [T].
    """

    views: Tensor
    seconds: list[float]
    indices: list[int]
    num_frames: int

    @property
    def frames(self) -> np.ndarray:
        """Frames uint8 [T, S, S, 3]."""
        return self.views[0].permute(1, 2, 3, 0).numpy()


def explain(
    trained: Trained,
    video: str,
    out: Path,
    queries: list[Query],
    *,
    start: float | None = None,
    stage: str | None = None,
    class_name: str | None = None,
    movies: bool = True,
    name: str | None = None,
) -> list[Path]:
    """Draw the maps of every attention block, and Grad-CAM, for one clip (centre crop) of a video, and write their numbers.

    Args:
        queries: points whose maps are drawn; if empty, for every block the points to which it adds most.
        start: second of the video at which the clip starts; by default the clip in the middle is taken.
        stage: of Grad-CAM, one of STAGES; by default what default_stage chooses.
        class_name: of Grad-CAM; by default the predicted class.
        movies: write an mp4 beside every picture.
        name: name of the video in pictures; by default that of its file.

    Returns:
        The files written: a picture and a movie for every block in order, those of Grad-CAM, the numbers as JSON.

    Raises:
        UserError: the video cannot be read, the folder cannot be written, a query or the start is outside, there is no
            such stage or class.
    """
    label = None if class_name is None else _find_class(class_name, trained.class_names)
    if stage is not None and stage not in STAGES:
        raise UserError(f"--stage {stage}: there is no such stage; the stages are {', '.join(STAGES)}")
    clip = load_clip(trained, video, start)
    last = len(clip.seconds) - 1
    for query in queries:
        if query.frame > last:
            raise UserError(f"--query frame {query.frame} is outside the clip, which has frames 0 to {last}")
    make_folder(out)
    inputs = trained.normalize(clip.views)
    seen = observe(trained.model, inputs)
    trained.check_finite(seen.logits, f"{video}: ")
    scores = seen.logits.softmax(dim=0).cpu()
    predicted = int(scores.argmax())
    best, sure = trained.class_names[predicted], round(float(scores[predicted]), 6)
    stem = short_enough(Path(video).stem)
    title = f"{name or Path(video).name}: this clip is recognised as {best} ({100 * sure:.0f} %)"
    written, records = [], []
    try:
        for place, block in attention_blocks(trained.model).items():
            short = place.removesuffix(".attention")
            captions, maps, numbers = _explain_block(
                block, *seen.blocks[place], seen.places[place.split(".")[0]], clip, queries
            )
            scene = Scene(f"{title}; attention after {short}", captions, clip.frames, clip.seconds, maps)
            written += _draw(out / f"{stem}_{short}", scene, movies)
            records.append({"name": short, "kind": trained.config.model.attention.kind, **numbers})
        stage = stage or default_stage({name: places.grid for name, places in seen.places.items()})
        label = predicted if label is None else label
        asked, score = trained.class_names[label], round(float(scores[label]), 6)
        cam = grad_cam(trained.model, inputs, stage, label)
        text, heat = f"what speaks for {asked!r}", over_even(cam.flatten()).reshape(cam.shape)
        heat_map = HeatMap(f"Grad-CAM of {stage}", text, heat, seen.places[stage])
        captions = grad_cam_captions(asked, score, stage, cam)
        scene = Scene(f"{title}; Grad-CAM of {stage}", captions, clip.frames, clip.seconds, [heat_map])
        written += _draw(out / f"{stem}_grad_cam", scene, movies)
        content = {
            "video": str(video),
            "frame_seconds": [round(second, 4) for second in clip.seconds],
            "prediction": {"class": best, "score": sure},
            "blocks": records,
            "grad_cam": {"stage": stage, "class": asked, "score": score, "grid": list(cam.shape)},
            "meaning": MEANING,
        }
        written.append(out / f"{stem}_numbers.json")
        write_text(written[-1], json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    return written


def load_clip(trained: Trained, video: str, start: float | None = None) -> Clip:
    """Load the clip of a video, centre crop, that starts at a second, or the middle one; raises UserError."""
    data, spec = trained.config.data, _one_view(trained)
    if start is not None and data.sampling == "segments":
        raise UserError(
            f"--start {start:g}: this network takes frames of the whole video (data.sampling is segments); leave --start out"
        )
    where: list[Any] = []

    def choose(opened: FrameVideo) -> Tensor:
        if start is None:
            indices = spec.choose(opened)
        elif 0 <= start < opened.duration:
            first, step = int(start * opened.fps), spec.clip.frame_step(opened.fps)
            indices = clip_indices(opened.num_frames, data.num_frames, step, first, data.short_videos)
            indices = opened.on_screen(indices)[None]
        else:
            raise UserError(f"--start {start:g} is outside the video, which has seconds 0 to {opened.duration:.2f}: {video}")
        where[:] = opened.times[indices[0].numpy()].tolist(), indices[0].tolist(), opened.num_frames
        return indices

    with memory_of_video(video):
        crops = read_frames(
            video, choose, [spec.cut], decoder=data.decoder, timeout=data.timeout, max_pixels=data.max_frame_pixels
        )
        views = spec.views(crops)
    return Clip(views, *where)


def cut_masks(trained: Trained, clip: Clip, masks: np.ndarray, num_labels: int) -> Tensor:
    """Return the share of label 1, 2, ... in every pixel of a clip, float [num_labels, T, S, S] in 0..1.

    Args:
        masks: labels of all frames of the clip's video, uint8 [num_frames, H, W]; they are cut and scaled as the frames are.
    """
    planes = torch.from_numpy(masks[clip.indices]).unsqueeze(3) == torch.arange(1, num_labels + 1)
    cut = _one_view(trained).cut
    pixels = torch.stack([cut(frame)[0] for frame in 255 * planes.byte()])  # [T, S, S, num_labels]
    return pixels.permute(3, 0, 1, 2).float() / 255


def _one_view(trained: Trained) -> ViewSpec:
    """Return the spec of a single view: the centre of the middle clip."""
    return view_spec(trained.config.data, trained.config.test.model_copy(update={"num_clips": 1, "num_crops": 1}))


def _explain_block(
    block: AttentionBlock, x: Tensor, output: Tensor, places: Places, clip: Clip, queries: list[Query]
) -> tuple[list[str], list[HeatMap], dict[str, Any]]:
    """Make captions, maps and numbers of a block from its input and output [1, C, T, H, W]."""
    points = queries or (strongest_points(x, output, places) if block.has_queries else [])
    maps, numbers = block_maps(block, x, places, points), block_numbers(block, x, output)
    heat_maps = block_heat_maps(block, maps, clip.seconds)
    return block_captions(block, x, numbers), heat_maps, {"queries": [asdict(query) for query in maps.queries], **numbers}


def _draw(path: Path, scene: Scene, movies: bool) -> list[Path]:
    """Draw a picture and, if asked for, a movie beside it; path has no suffix."""
    sheet = path.with_name(f"{path.name}.png")
    draw_sheet(sheet, scene)
    if not movies:
        return [sheet]
    draw_movie(path.with_name(f"{path.name}.mp4"), scene)
    return [sheet, path.with_name(f"{path.name}.mp4")]


def number_lines(path: Path) -> list[str]:
    """Format the numbers that explain wrote: a line for every block."""
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for block in record["blocks"]:
        numbers = [f"{name.replace('_', ' ')} {block[name]:.3f}" for name in MEANING if name in block]
        lines.append(f"{block['name']} ({block['kind']}): {', '.join(numbers)}")
    return lines


def _find_class(name: str, class_names: tuple[str, ...]) -> int:
    """Find the id of a class by its name, in nearly any spelling; raises UserError with the nearest name."""
    keys = [class_key(known) for known in class_names]
    if class_key(name) in keys:
        return keys.index(class_key(name))
    near = difflib.get_close_matches(class_key(name), keys, n=1)
    way_out = f"did you mean {class_names[keys.index(near[0])]!r}?" if near else f"some are {', '.join(class_names[:5])}"
    raise UserError(f"--class {name!r} is not among the {len(keys)} classes of the network; {way_out}")
