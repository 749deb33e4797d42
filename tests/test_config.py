from pathlib import Path

import pytest
from helpers import ROOT

from videornn.config import Config, config_from_dict, config_to_yaml, load_config, override_config
from videornn.errors import UserError

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


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


def _laughs() -> str:
    """Ten lines that are a hundred million values, written out."""
    first, *others = ("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", *range(1, 9))
    return "\n".join([first, *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in others)])


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("train:\n  lr: " + "[" * 100_000, 2, "nested too deep"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(1000)), 20, "nested too deep"),
        ("train: &a\n  lr: *a\n", 2, "*a stands inside of what it repeats"),
        ("train:\n  betas: &a [*a]\n", 2, "*a stands inside of what it repeats"),
        (_laughs(), 4, "these are too many values"),
        ("".join(f"key{number}: 1\n" for number in range(6000)), 5000, "these are too many values"),
        ("\nseed: " + "9" * 5000, 2, "a number of 5,000 digits is too long"),
        ("\nseed: 0x" + "9" * 5000, 2, "a number of 5,002 digits is too long"),
        ("train:\n  lr: 1" + ":20" * 4000, 2, "a number of 12,001 digits is too long"),
        ("train:\n  1: 2\n", 2, "a key is text, not '1' as here"),
        ("train:\n  on: 2\n", 2, "a key is text, not 'on' as here"),
        ("? [a, b]\n: c\n", 1, "a key is text, not a sequence as here"),
        ("? {a: b}\n: c\n", 1, "a key is text, not a mapping as here"),
        ("seed: !!int one\n", 1, "this is not what the tag before it, tag:yaml.org,2002:int, says"),
        ("seed: !!timestamp now\n", 1, "this is not what the tag before it, tag:yaml.org,2002:timestamp, says"),
        ("train: !!set {a, b}\n", 1, "this is not what the tag before it, tag:yaml.org,2002:set, says"),
        ("\nseed: \x01\n", 2, "the character 0x1 is no text"),
        ('data: {train: "\\ud800"}\n', 1, "has half a character"),
    ],
)
def test_what_yaml_could_choke_on_is_one_sentence_with_the_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(UserError) as error:
        _load(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/run.yaml:{line}: not valid YAML: ") and problem in message
    assert "\n" not in message and len(message) < len(str(tmp_path)) + 300


def test_parts_of_a_config_may_be_repeated_by_aliases_and_a_date_is_text(tmp_path: Path) -> None:
    config = _load(
        tmp_path, "train: &train\n  betas: &betas [0.5, 0.5]\ndata:\n  mean: [0.5, 0.5, 0.5]\n  train: 2020-13-45\n"
    )
    assert config.train.betas == (0.5, 0.5) and config.data.train == "2020-13-45"
    text = "data:\n  mean: &half [0.5, 0.5, 0.5]\n  std: *half\ntest: &views {num_clips: 3}\n"
    config = _load(tmp_path, text)
    assert config.data.std == config.data.mean == (0.5, 0.5, 0.5) and config.test.num_clips == 3


def test_a_config_is_text_in_utf_8_with_a_byte_order_mark_or_without(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  train: größer\n", encoding="utf-8-sig")
    assert load_config(path).data.train == "größer"
    for encoding, problem in (
        ("utf-16", "is written in UTF-16: save it in UTF-8"),
        ("latin-1", "yaml:2: byte 0xf6 is not UTF-8"),
    ):
        path.write_text("data:\n  train: größer\n", encoding=encoding)
        with pytest.raises(UserError, match=problem):
            load_config(path)


def test_what_a_checkpoint_holds_in_the_place_of_a_config_is_one_sentence() -> None:
    loop: dict[str, object] = {}
    loop["train"] = loop
    for value in (None, 5, [1], [["seed", 2]], {(1, 2): 3}, loop):
        with pytest.raises(UserError, match=r"^a\.pt: there is no config in it that could be read$"):
            config_from_dict(value, "a.pt")
    with pytest.raises(UserError, match=r"^a\.pt: unknown key '1'; known keys are seed"):
        config_from_dict({1: 2}, "a.pt")


def test_an_override_that_is_long_or_deep_is_one_short_sentence() -> None:
    for override in ("train.lr=" + "[" * 50_000, ".".join("a" * 50_000) + "=1", "seed=" + "9" * 50_000):
        with pytest.raises(UserError) as error:
            override_config(Config(), [override])
        assert str(error.value).startswith(f"override '{override[:20]}") and len(str(error.value)) < 500


def test_a_missing_config_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    with pytest.raises(UserError, match=r"quickstrat\.yaml does not exist; did you mean .*quickstart\.yaml"):
        load_config(tmp_path / "quickstrat.yaml")


def test_a_folder_given_as_a_config_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give a file, such as .*config\.yaml"):
        load_config(tmp_path)


@pytest.mark.parametrize("key", ["data.train", "data.val", "data.test", "data.root", "data.labels", "model.init"])
def test_a_url_is_no_file_and_its_secrets_go_nowhere(
    videornn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """No setting can be a URL: FFmpeg reads them for infer alone, and a run would write them down in many places."""
    url = "https://me:s3cret@host/a.txt?token=s3cret"
    (tmp_path / "a.yaml").write_text("{}\n")
    code, out, err = videornn("train", tmp_path / "a.yaml", f"{key}={url}", "--out", tmp_path / "run")
    assert code == 2 and "s3cret" not in out + err and not (tmp_path / "run").exists()
    assert f"override '{key}=https://***@host/a.txt?token=***': {key} is a URL, and files are read from this machine" in err
    section, _, name = key.partition(".")
    (tmp_path / "b.yaml").write_text(f"{section}:\n  {name}: {url}\n")
    with pytest.raises(UserError, match=rf"b\.yaml:2: {key} is a URL"):
        load_config(tmp_path / "b.yaml")
    stored = Config().model_dump(mode="json")
    stored[section][name] = url
    config_from_dict(stored, "an old checkpoint")  # which can still be used for what does without
    monkeypatch.chdir(tmp_path)
    Path("http:/host").mkdir(parents=True)
    assert load_config(tmp_path / "a.yaml", [f"{key}=http://host"])  # a folder that is there
