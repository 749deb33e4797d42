from pathlib import Path

import pytest

from videornn.config import Config, config_to_yaml, load_config
from videornn.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def _load(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, list(overrides))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_resolved_form_loads_to_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    for comments in (False, True):
        assert _load(tmp_path, config_to_yaml(config, comments=comments)) == config


def test_overrides_win_over_the_file_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    config = _load(tmp_path, "train:\n  lr: 1e-2\n  epochs: 30\n", ("train.lr=5e-3", "model.attention.places={res3: [0]}"))
    assert (config.train.lr, config.train.epochs, config.train.momentum) == (0.005, 30, 0.9)
    assert config.model.attention.places == {"res3": (0,)}


PLACES = "model:\n  attention:\n    places: {res3: every}\n"
SAID = "give the numbers of blocks from 0, such as [1, 3], or all"


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("modle:\n  depth: 18\n", (), ["run.yaml:1", "'modle'", "'model'"]),
        ("train:\n  epochs: 2\n  momentun: 0.9\n", (), ["run.yaml:3", "'train.momentun'", "'train.momentum'"]),
        ("model:\n  depth: 17\n", (), ["run.yaml:2", "model.depth", "17"]),
        ("train:\n  lr: fast\n", (), ["run.yaml:2", "train.lr", '"fast" (text)']),
        ("train:\n  lr: .inf\n", (), ["run.yaml:2", "train.lr: input should be a finite number"]),
        ("", ("data.sampling_fps=1e-9",), ["override 'data.sampling_fps=1e-9'", "greater than or equal to 0.01"]),
        ("train:\n  epochs: 1.5\n", (), ["run.yaml:2", "train.epochs", "1.5"]),
        ("train:\n  epochs: 2\n  epochs: 3\n", (), ["run.yaml:3", "'epochs'", "twice"]),
        ("data:\n  crop_size: 300\n", (), ["crop_size 300", "[256, 320]"]),
        ("- a\n", (), ["run.yaml", "list"]),
        ("a: [\n", (), ["run.yaml", "YAML"]),
        ("", ("lr=1",), ["override 'lr=1'", "'train.lr'"]),
        ("", ("model.dept=18",), ["override 'model.dept=18'", "'model.depth'"]),
        ("", ("train.epochs=0",), ["override 'train.epochs=0'", "greater than or equal to 1"]),
        ("", ("seed=-1",), ["override 'seed=-1'", "greater than or equal to 0"]),
        ("", ("seed=3000000000",), ["override 'seed=3000000000'", "less than 2147483648"]),
        ("", ("train",), ["'train'", "section.key=value"]),
        ("model:\n  depth: 18\n", ("model.depth.x=1",), ["model.depth.x=1", "not a section"]),
        ("", ("model.attention.places={res9: [1]}",), ["model.attention.places.res9: input should be 'res2', "]),
        (PLACES, (), ["run.yaml:3: model.attention.places.res3: ", SAID, ', got "every" (text)']),
        (PLACES, ("model.attention.places={res3: 1}",), ["override 'model.attention.places={res3: 1}': ", SAID, "got 1"]),
        (PLACES, ("model.attention.places.res3=[1, -1]",), ["override 'model.att", SAID, "got [1, -1]"]),
        ("", ("model.attention.places={res3: [true]}",), ["places.res3: ", SAID, "got [true] (list)"]),
    ],
)
def test_a_mistake_is_one_sentence_with_value_place_and_way_out(
    tmp_path: Path, text: str, overrides: tuple[str, ...], parts: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        _load(tmp_path, text, overrides)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_missing_config_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    with pytest.raises(UserError, match=r"quickstrat\.yaml does not exist; did you mean .*quickstart\.yaml"):
        load_config(tmp_path / "quickstrat.yaml")


def test_a_folder_given_as_a_config_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give a file, such as .*config\.yaml"):
        load_config(tmp_path)
