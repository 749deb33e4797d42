"""The synthetic data set: only motion tells the classes apart, and the same seed gives the same folder."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from videornn.data.synthetic import make as synthetic
from videornn.data.synthetic import moving_shapes
from videornn.data.synthetic.make import load_masks, make_synthetic, mask_path
from videornn.data.synthetic.moving_shapes import CLASSES, FOLLOWERS, HEADINGS, Scene

# Way of an object in one period, in cell sizes (x to the right, y down).
WAYS = {"right": (2, 0), "left": (-2, 0), "up": (0, -2), "down": (0, 2)}
TINY = {"num_train": 1, "num_val": 1, "num_test": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("made") / "set", **TINY, seed=3, num_workers=2)


def _scenes(class_name: str, num_scenes: int, seed: int = 0) -> list[Scene]:
    class_id = CLASSES.index(class_name)
    return [moving_shapes.draw_scene(np.random.default_rng([seed, class_id, i]), class_name) for i in range(num_scenes)]


def _moves(scene: Scene, times: np.ndarray) -> np.ndarray:
    """[2, T - 1, 2] moves (x, y) of both objects between T times, in cell sizes, freed of the wrap-around."""
    moves = np.diff(moving_shapes.positions(scene, times), axis=1)
    return (moves + 0.5) % 1.0 - 0.5


def _ways(scene: Scene) -> np.ndarray:
    """[2, 2] ways (x, y) of both objects in the period that starts at 0.7 seconds."""
    return _moves(scene, 0.7 + np.linspace(0, scene.period_seconds, 400)).sum(axis=1)


def _bytes_by_name(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _decode(path: Path) -> tuple[np.ndarray, float]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames), float(container.streams.video[0].average_rate)


# The folder ----------------------------------------------------------------------------------------------


def test_same_seed_gives_same_bytes_for_any_number_of_workers(made: Path, tmp_path: Path) -> None:
    again = make_synthetic(tmp_path / "again", **TINY, seed=3, num_workers=1)
    expected = _bytes_by_name(made)
    assert len(expected) == 2 * 3 * len(CLASSES) + 6
    assert _bytes_by_name(again) == expected


def test_another_seed_gives_another_set() -> None:
    first, second = (_scenes("approach", 1, seed)[0] for seed in (0, 1))
    assert not np.allclose(first.starts, second.starts)


def test_lists_name_every_video_with_the_label_of_its_class(made: Path) -> None:
    names = (made / "labels.txt").read_text().split()
    assert tuple(names) == CLASSES and len(set(CLASSES)) == 10
    for split in synthetic.SPLITS:
        lines = [line.rsplit(" ", 1) for line in (made / f"{split}.txt").read_text().splitlines()]
        assert [int(label) for _, label in lines] == list(range(len(CLASSES)))
        for name, label in lines:
            assert name == f"videos/{split}/{names[int(label)]}/{names[int(label)]}_0000.mp4"
            assert (made / name).is_file() and mask_path(made / name).is_file()
    assert not list(made.rglob("*.tmp")) and not (made / "synthetic.partial.json").exists()


@pytest.mark.parametrize("class_name", ["same_up", "left_follows"])
def test_video_and_masks_are_as_drawn(made: Path, class_name: str) -> None:
    rng = np.random.default_rng([3, synthetic.SPLITS.index("val"), CLASSES.index(class_name), 0])
    scene = moving_shapes.draw_scene(rng, class_name)
    path = made / f"videos/val/{class_name}/{class_name}_0000.mp4"
    frames, fps = _decode(path)
    masks = load_masks(mask_path(path), len(frames))
    assert frames.shape == (scene.num_frames, scene.height, scene.width, 3)
    assert masks.shape == frames.shape[:3] and masks.dtype == np.uint8
    assert fps == scene.fps
    assert set(np.unique(masks)) == {0, 1, 2}
    assert np.abs(frames[masks > 0].mean(axis=0) - frames[masks == 0].mean(axis=0)).max() > 40


@pytest.mark.parametrize("class_name", ["orbit_cw", "right_follows"])
def test_masks_lie_where_the_tracks_are(made: Path, class_name: str) -> None:
    rng = np.random.default_rng([3, synthetic.SPLITS.index("train"), CLASSES.index(class_name), 0])
    scene = moving_shapes.draw_scene(rng, class_name)
    path = made / f"masks/train/{class_name}/{class_name}_0000.png"
    masks = load_masks(path, scene.num_frames)
    tracks = moving_shapes.positions(scene, np.arange(scene.num_frames) / scene.fps)
    visible = moving_shapes.opacity(tracks) > 0.5
    centres = scene.cells[:, None] + scene.cell_size * tracks
    reach = 1.3 * 0.22 * scene.cell_size[0] + 2.5  # the farthest corner of a shape, and the shake
    for which, t in np.ndindex(visible.shape):
        y, x = np.nonzero(masks[t] == which + 1)
        assert (len(x) > 0) == visible[which, t]
        assert (np.hypot(x - centres[which, t, 0], y - centres[which, t, 1]) < reach).all()


def test_load_masks_refuses_a_wrong_number_of_frames(made: Path) -> None:
    path = made / "masks/train/part/part_0000.png"
    with pytest.raises(ValueError, match=r"part_0000\.png"):
        load_masks(path, 100_003)


def test_complete_folder_is_reused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_make_videos", None)  # calling it would fail
    assert make_synthetic(made, **TINY, seed=3) == made


def test_other_parameters_in_the_same_folder_are_refused(made: Path) -> None:
    with pytest.raises(ValueError, match=r"seed 3 instead of 4.*another folder") as caught:
        make_synthetic(made, **TINY, seed=4)
    assert str(made) in str(caught.value)


def test_interrupted_run_is_continued(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "set")
    lost, kept = (folder / f"videos/test/{name}/{name}_0000.mp4" for name in ("part", "approach"))
    expected, kept_at = lost.read_bytes(), kept.stat().st_mtime_ns
    (folder / "synthetic.json").unlink()
    lost.unlink()
    calls: list[tuple[int, int]] = []
    make_synthetic(folder, **TINY, seed=3, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(29, 30), (30, 30)]
    assert lost.read_bytes() == expected and kept.stat().st_mtime_ns == kept_at
    assert (folder / "synthetic.json").is_file()


def test_interrupted_run_is_not_continued_with_other_parameters(tmp_path: Path) -> None:
    def interrupt(num_done: int, num_total: int) -> None:
        if num_done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path, **TINY, seed=3, num_workers=1, on_progress=interrupt)
    assert not (tmp_path / "synthetic.json").exists()
    with pytest.raises(ValueError, match="seed 3 instead of 5"):
        make_synthetic(tmp_path, **TINY, seed=5, num_workers=1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("num_train", 0), ("num_val", -2), ("num_test", 0), ("num_workers", 0), ("seed", -1)],
)
def test_impossible_arguments_are_refused(tmp_path: Path, argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{argument}.* {value}$"):
        make_synthetic(tmp_path / "set", **{argument: value})
    assert not (tmp_path / "set").exists()


# The motion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CLASSES)
def test_objects_head_where_the_class_says(class_name: str) -> None:
    expected = [WAYS[heading] for heading in HEADINGS[class_name]]
    for scene in _scenes(class_name, 10):
        assert np.allclose(_ways(scene), expected)


@pytest.mark.parametrize(
    ("class_name", "left", "right"),
    [("same_right", (2, 0), (2, 0)), ("approach", (2, 0), (-2, 0)), ("orbit_cw", (0, -2), (0, 2))],
)
def test_named_motions_mean_what_they_say(class_name: str, left: tuple, right: tuple) -> None:
    assert np.allclose(_ways(_scenes(class_name, 1)[0]), [left, right])


@pytest.mark.parametrize("class_name", CLASSES)
def test_one_object_follows_the_other(class_name: str) -> None:
    """The follower moves when the other one moved a lag ago; who follows is open in the classes without a follower."""
    found = []
    for scene in _scenes(class_name, 20):
        times = np.linspace(1.2, 3.2, 2000)
        moved_before = _is_moving(scene, times - moving_shapes.LAG * scene.period_seconds)
        agreement = (_is_moving(scene, times) == moved_before[::-1]).mean(axis=1)  # [2] of each object with the other one
        found.append(int(agreement.argmax()))
        assert agreement.max() > 0.98 and agreement.min() < 0.7
    assert set(found) == ({FOLLOWERS[class_name]} if class_name in FOLLOWERS else {0, 1})


def _is_moving(scene: Scene, times: np.ndarray) -> np.ndarray:
    """[2, T] whether each object moves at each time."""
    steps = moving_shapes.positions(scene, times + 1e-3) - moving_shapes.positions(scene, times)
    return np.abs(steps).max(axis=-1) > 1e-9


# No leak -------------------------------------------------------------------------------------------------


def _distance_to_uniform(values: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic of [N] values against the uniform law on [0, 1)."""
    ordered, num = np.sort(values), len(values)
    ranks = np.arange(num)
    return max((ordered - ranks / num).max(), ((ranks + 1) / num - ordered).max())


@pytest.mark.parametrize("class_name", CLASSES)
def test_positions_at_any_instant_are_uniform_and_independent(class_name: str) -> None:
    """Limits hold with a chance of 0.999 (K-S: 1.95 / sqrt(N)) and more; the seeds are fixed."""
    num_scenes = 1500
    scenes = _scenes(class_name, num_scenes)
    now = np.stack([moving_shapes.positions(s, np.array([0.0, 1.3, 3.4])) for s in scenes])  # [N, 2, 3, 2]
    assert now.min() >= 0 and now.max() < 1
    for t in range(now.shape[2]):
        coordinates = now[:, :, t].reshape(num_scenes, 4)  # left x, left y, right x, right y
        for values in coordinates.T:
            assert _distance_to_uniform(values) < 1.95 / np.sqrt(num_scenes)
        for a, b in itertools.combinations(coordinates.T, 2):
            for mixed in ((a - b) % 1, (a + b) % 1):  # on a torus, dependence shows in these
                assert _distance_to_uniform(mixed) < 2.3 / np.sqrt(num_scenes)
        correlations = np.corrcoef(coordinates.T)[np.triu_indices(4, 1)]
        assert np.abs(correlations).max() < 4 / np.sqrt(num_scenes)


@pytest.mark.parametrize("seed", range(5))
def test_classes_share_everything_but_headings_and_who_follows(seed: int) -> None:
    """The same random numbers give the same geometry, frame rate, length, period and starts for every class."""

    def nuisances(class_name: str) -> list[float]:
        scene = moving_shapes.draw_scene(np.random.default_rng(seed), class_name)
        shape = [scene.width, scene.height, scene.fps, scene.num_frames, scene.period_seconds]
        return [*shape, *scene.cells.ravel(), *scene.cell_size, *scene.starts.ravel()]

    assert all(nuisances(name) == nuisances(CLASSES[0]) for name in CLASSES)


@pytest.mark.parametrize("seed", range(5))
def test_places_of_an_object_do_not_tell_its_heading(seed: int) -> None:
    """In one period it spends the same time at the same places: the Fourier coefficients of the two laws are equal."""
    waves = 2j * np.pi * np.stack(np.meshgrid([-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2]), axis=-1).reshape(-1, 2)

    def occupancy(class_name: str) -> np.ndarray:
        scene = moving_shapes.draw_scene(np.random.default_rng(seed), class_name)
        visited = moving_shapes.positions(scene, np.linspace(0, scene.period_seconds, 3000, endpoint=False))
        return np.exp(visited @ waves.T).mean(axis=1)  # [2, 25]

    reference = occupancy(CLASSES[0])
    assert np.abs(reference).max(axis=0)[6] > 0.05  # not all of them vanish
    for class_name in CLASSES[1:]:
        assert np.abs(occupancy(class_name) - reference).max() < 5e-3
