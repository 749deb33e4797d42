"""The synthetic data set: only motion tells the classes apart, and the same seed gives the same folder."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from videornn.data import moving_shapes, synthetic
from videornn.data.moving_shapes import CLASSES, DIRECTIONS, LAGS, Scene
from videornn.data.synthetic import load_masks, make_synthetic, mask_path

OPPOSITES = {"same_right": "same_left", "same_up": "same_down", "approach": "part", "orbit_cw": "orbit_ccw"}
OPPOSITES["right_follows"] = "left_follows"
OPPOSITES.update({opposite: name for name, opposite in OPPOSITES.items()})
TINY = {"num_train": 1, "num_val": 1, "num_test": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("made") / "set", **TINY, seed=3, num_workers=2)


def _scenes(class_name: str, num_scenes: int, seed: int = 0) -> list[Scene]:
    class_id = CLASSES.index(class_name)
    return [moving_shapes.draw_scene(np.random.default_rng([seed, class_id, i]), class_name) for i in range(num_scenes)]


def _moves(scene: Scene, num_steps: int = 400) -> np.ndarray:
    """[2, num_steps] steps (x, y) of both objects, freed of the wrap-around."""
    times = np.linspace(0, scene.num_frames / scene.fps, num_steps + 1)
    steps = np.diff(moving_shapes.positions(scene, times), axis=1)
    return (steps + 0.5) % 1.0 - 0.5


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
    assert tuple(names) == CLASSES and len(set(CLASSES)) == 11
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


@pytest.mark.parametrize("class_name", ["orbit_cw", "together"])
def test_masks_lie_where_the_tracks_are(made: Path, class_name: str) -> None:
    rng = np.random.default_rng([3, synthetic.SPLITS.index("train"), CLASSES.index(class_name), 0])
    scene = moving_shapes.draw_scene(rng, class_name)
    path = made / f"masks/train/{class_name}/{class_name}_0000.png"
    masks = load_masks(path, scene.num_frames)
    tracks = moving_shapes.positions(scene, np.arange(scene.num_frames) / scene.fps)
    visible = moving_shapes.opacity(tracks) > 0.5
    centres = scene.cells[:, None] + scene.cell_size * tracks
    reach = 1.3 * 0.21 * scene.cell_size[0] + 2.5  # the farthest corner of a shape, and the shake
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
    make_synthetic(folder, **TINY, seed=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(32, 33), (33, 33)]
    assert lost.read_bytes() == expected and kept.stat().st_mtime_ns == kept_at
    assert (folder / "synthetic.json").is_file()


def test_interrupted_run_is_not_continued_with_other_parameters(tmp_path: Path) -> None:
    def interrupt(num_done: int, num_total: int) -> None:
        if num_done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path, **TINY, seed=3, num_workers=1, progress=interrupt)
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


@pytest.mark.parametrize("class_name", DIRECTIONS)
def test_objects_move_in_the_directions_of_the_class(class_name: str) -> None:
    for scene in _scenes(class_name, 10):
        for moves, degrees in zip(_moves(scene), DIRECTIONS[class_name], strict=True):
            towards = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
            steps = moves * scene.cell_size  # in pixels: cells are not square
            cosines = steps @ towards / np.hypot(*steps.T)
            assert (cosines > np.cos(np.radians(moving_shapes.JITTER_DEGREES)) - 0.01).all()
            # 1.2 to 1.9 cell widths in a period of 1.3 to 1.6 seconds, for 3.5 to 4.5 seconds
            assert 1.2 * 3.5 / 1.6 * 0.93 < (steps @ towards).sum() / scene.cell_size[0] < 1.9 * 4.6 / 1.3


@pytest.mark.parametrize(
    ("class_name", "sign_left", "sign_right"), [("approach", 1, -1), ("part", -1, 1), ("same_left", -1, -1)]
)
def test_named_directions_mean_what_they_say(class_name: str, sign_left: int, sign_right: int) -> None:
    moved = np.array([_moves(scene)[..., 0].sum(axis=1) for scene in _scenes(class_name, 10)])
    assert (np.sign(moved) == [sign_left, sign_right]).all()


def test_clockwise_means_left_up_and_right_down() -> None:
    moved = np.array([_moves(scene)[..., 1].sum(axis=1) for scene in _scenes("orbit_cw", 10)])
    assert (moved[:, 0] < 0).all() and (moved[:, 1] > 0).all()  # y points down


@pytest.mark.parametrize("class_name", LAGS)
def test_right_object_lags_as_the_class_says(class_name: str) -> None:
    """The speed of the right object now is in step with that of the left one a lag earlier."""
    for scene in _scenes(class_name, 10):
        times = np.linspace(1.2, 3.2, 2000)
        lag_seconds = LAGS[class_name] * scene.period_seconds
        left = _is_moving(scene, times - lag_seconds)[0]
        right = _is_moving(scene, times)[1]
        assert (left == right).mean() > 0.98
        assert 0.35 < left.mean() < 0.65


def _is_moving(scene: Scene, times: np.ndarray) -> np.ndarray:
    """[2, T] whether each object moves at each time."""
    steps = moving_shapes.positions(scene, times + 1e-3) - moving_shapes.positions(scene, times)
    return np.abs(steps).max(axis=-1) > 1e-9


def test_pulses_of_the_direction_classes_are_not_tied() -> None:
    lags = [np.diff(s.offsets_seconds)[0] / s.period_seconds % 1.0 for s in _scenes("same_up", 400)]
    assert _distance_to_uniform(np.array(lags)) < 1.95 / np.sqrt(len(lags))


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


def _nuisances(scene: Scene) -> list[float]:
    sizes = [scene.width, scene.height, scene.fps, scene.num_frames / scene.fps, scene.period_seconds]
    return [*sizes, *scene.cell_size / (scene.width, scene.height), *scene.cells.ravel(), *scene.offsets_seconds]


def test_nuisances_follow_one_law_for_all_classes() -> None:
    """Means over 400 scenes per class differ from the mean over all by less than 4.5 standard errors."""
    drawn = np.array([[_nuisances(scene) for scene in _scenes(name, 400)] for name in CLASSES])
    errors = drawn.std(axis=(0, 1)) / np.sqrt(drawn.shape[1])
    assert (np.abs(drawn.mean(axis=1) - drawn.mean(axis=(0, 1))) < 4.5 * errors).all()


def _features(scene: Scene, is_reversed: bool) -> np.ndarray:
    """[60, 7] over time: the steps of both objects, their speeds, and 1; `is_reversed` plays it backwards."""
    steps = 60 * _moves(scene, 60).transpose(1, 0, 2)
    steps = -steps[::-1] if is_reversed else steps
    return np.concatenate([steps.reshape(60, 4), np.hypot(*steps.T).T, np.ones((60, 1))], axis=1)


@pytest.mark.parametrize("class_name", CLASSES)
def test_opposite_classes_are_time_reversals(class_name: str) -> None:
    """Mean products of features a while apart agree, to 4.5 standard errors, with the opposite reversed."""
    moments = []
    for name, is_reversed in ((class_name, False), (OPPOSITES.get(class_name, class_name), True)):
        scenes = _scenes(name, 500, seed=int(is_reversed))
        features = np.stack([_features(scene, is_reversed) for scene in scenes])
        products = np.einsum("nti,ntj->nij", features[:, :-4], features[:, 4:]) / 56
        moments.append((products.mean(axis=0), products.var(axis=0) / len(products)))
    (first, first_variance), (second, second_variance) = moments
    assert (np.abs(first - second) <= 4.5 * np.sqrt(first_variance + second_variance)).all()
