"""The synthetic task of context: the class is how cue and objects go together, and in neither of them alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from videornn.data.synthetic import context_shapes
from videornn.data.synthetic import make as synthetic
from videornn.data.synthetic.context_shapes import ASKED, CUE, DISTRACTOR, OTHER, SHAPES, Scene
from videornn.data.synthetic.make import load_masks, make_synthetic, mask_path

TINY = {"num_train": 1, "num_val": 1, "num_test": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("made") / "set", **TINY, seed=3, task="context", num_workers=1)


def _scene(shape: str, seed: int, **options: object) -> Scene:
    return context_shapes.draw_scene(np.random.default_rng(seed), shape, **options)


def _decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _video(folder: Path, shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames and masks."""
    path = folder / f"videos/test/{shape}/{shape}_0000.mp4"
    frames = _decode(path)
    return frames, load_masks(mask_path(path), len(frames))


def _parts(scene: Scene) -> tuple[list, list]:
    """Things of the first and of the second part; the cue and the object asked for are the first ones."""
    return [thing for thing in scene.things if thing.is_early], [thing for thing in scene.things if not thing.is_early]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_class_is_the_shape_of_the_object_in_the_colour_of_the_cue(shape: str) -> None:
    for seed in range(50):
        first, second = _parts(_scene(shape, seed))
        assert [(thing.label, thing.shape) for thing in first] == [(CUE, "disc"), (DISTRACTOR, "diamond")]
        assert len({thing.shape for thing in second}) == 2 and {thing.shape for thing in second} <= set(SHAPES)
        assert [thing.colour for thing in first] == [thing.colour for thing in second]
        assert len({thing.colour for thing in first}) == 2
        assert [(thing.label, thing.shape) for thing in second if thing.colour == first[0].colour] == [(ASKED, shape)]


@pytest.mark.parametrize("seed", range(5))
def test_classes_share_everything_but_the_shapes_of_the_objects(seed: int) -> None:
    scenes = [_scene(shape, seed) for shape in SHAPES]
    for scene in scenes[1:]:
        for name in ("width", "height", "fps", "num_frames", "change_seconds"):
            assert getattr(scene, name) == getattr(scenes[0], name)
        for thing, other in zip(scene.things, scenes[0].things, strict=True):
            assert np.array_equal(thing.centre, other.centre)
            for name in ("label", "colour", "radius", "angle"):
                assert getattr(thing, name) == getattr(other, name)
    # every object has every shape in one of the classes
    shapes = [[thing.shape for thing in _parts(scene)[1]] for scene in scenes]
    assert all(sorted(of_object) == sorted(SHAPES) for of_object in zip(*shapes, strict=True))


def test_cues_pairs_of_colour_and_shape_and_quarters_are_equally_likely_in_every_class() -> None:
    """Limits are five standard deviations of a binomial law; the seeds are fixed."""
    num_scenes = 400
    for shape in SHAPES:
        cues, pairs, others, quarters = Counter(), Counter(), Counter(), (Counter(), Counter())
        for seed in range(num_scenes):
            scene = _scene(shape, seed)
            parts = _parts(scene)
            cues[parts[0][0].colour] += 1
            pairs[parts[1][0].colour, parts[1][0].shape] += 1
            for counts, (thing, *_) in zip(quarters, parts, strict=True):
                counts[tuple((thing.centre > np.array([scene.width, scene.height]) / 2).tolist())] += 1
            others[parts[1][1].shape] += 1
        shares = [(cues, 4, 1 / 4), (pairs, 4, 1 / 4), (others, 3, 1 / 3), *((counts, 4, 1 / 4) for counts in quarters)]
        for counts, values, chance in shares:
            assert len(counts) == values
            limit = 5 * np.sqrt(num_scenes * chance * (1 - chance))
            assert max(abs(count - num_scenes * chance) for count in counts.values()) < limit


def test_things_of_a_part_lie_apart_and_within_the_frame() -> None:
    for seed in range(100):
        scene = _scene("ring", seed)
        size = np.array([scene.width, scene.height])
        for part in _parts(scene):
            assert all((thing.centre - 1.15 * thing.radius > -1e-9).all() for thing in part)
            assert all((thing.centre + 1.15 * thing.radius < size + 1e-9).all() for thing in part)
            assert len({tuple((thing.centre > size / 2).tolist()) for thing in part}) == 2


def test_the_parts_follow_each_other_and_fill_the_video(made: Path) -> None:
    _, masks = _video(made, "ring")
    seen = ["".join(map(str, sorted(set(np.unique(mask)) - {0}))) for mask in masks]
    num_early = seen.count("14")
    assert seen == ["14"] * num_early + ["23"] * (len(seen) - num_early)
    assert 0.4 < num_early / len(seen) < 0.6


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_have_the_colours_of_cue_and_object(made: Path, shape: str) -> None:
    frames, masks = _video(made, shape)
    cue, asked = (frames[masks == label].mean(axis=0) for label in (CUE, ASKED))
    assert np.abs(cue - asked).max() < 40
    other, distractor = (frames[masks == label].mean(axis=0) for label in (OTHER, DISTRACTOR))
    assert np.abs(other - distractor).max() < 40 and np.abs(other - cue).max() > 60


def test_a_thing_left_out_is_background_and_all_else_stays(made: Path, tmp_path: Path) -> None:
    without = make_synthetic(tmp_path, **TINY, seed=3, task="context", without=[ASKED], num_workers=1)
    (frames, masks), (erased, masks_left) = _video(made, "cross"), _video(without, "cross")
    assert ASKED not in masks_left and np.array_equal(np.where(masks == ASKED, 0, masks), masks_left)
    background = np.median(frames[masks == 0], axis=0)
    assert np.abs(erased[masks == ASKED].mean(axis=0) - background).max() < 12
    assert np.abs(erased[masks == CUE].mean(axis=0) - frames[masks == CUE].mean(axis=0)).max() < 4


def test_without_its_objects_a_video_is_the_same_in_every_class() -> None:
    def frames(shape: str, *without: int) -> np.ndarray:
        _, drawn = synthetic.TASKS["context"].draw(0, "train", shape, 5, without)
        return np.stack([frame for frame, _ in drawn])

    assert all(np.array_equal(frames(shape, ASKED, OTHER), frames(SHAPES[0], ASKED, OTHER)) for shape in SHAPES)
    assert not np.array_equal(frames("ring", CUE), frames("cross", CUE))


def test_the_easy_task_shows_one_thing_of_every_colour_and_shape_all_the_time() -> None:
    classes = synthetic.TASKS["objects"].classes
    assert len(classes) == 4 * 6
    for class_name in classes:
        (thing,) = context_shapes.draw_object(np.random.default_rng(0), *reversed(class_name.split("_"))).things
        assert f"{thing.colour}_{thing.shape}" == class_name
    _, frames = synthetic.TASKS["objects"].draw(0, "val", "red_disc", 0, ())
    assert all(set(np.unique(mask)) == {0, 1} for _, mask in frames)


def test_another_task_in_the_same_folder_is_refused(made: Path) -> None:
    with pytest.raises(ValueError, match="another folder"):
        make_synthetic(made, **TINY, seed=3, task="motion")
    with pytest.raises(ValueError, match=r"without None instead of \[1\]"):
        make_synthetic(made, **TINY, seed=3, task="context", without=[CUE])


def test_a_set_made_before_there_were_tasks_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_make_videos", lambda *_: None)
    make_synthetic(tmp_path, **TINY, num_workers=1)
    assert "task" not in (tmp_path / "synthetic.json").read_text()
    monkeypatch.setattr(synthetic, "_make_videos", None)  # calling it would fail
    make_synthetic(tmp_path, **TINY, num_workers=1)


def test_lists_and_readme_are_of_the_task(made: Path) -> None:
    assert tuple((made / "labels.txt").read_text().split()) == SHAPES
    assert (made / "val.txt").read_text().splitlines()[2] == "videos/val/ring/ring_0000.mp4 2"
    assert "--task context" in (made / "README.txt").read_text()
