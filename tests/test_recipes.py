"""Every recipe under configs/: it builds, takes a step, says what it is, and differs from its neighbours in that alone."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

from videornn.config import Config, DataConfig, config_to_yaml, load_config
from videornn.data.transforms import train_transform
from videornn.models import build_model
from videornn.models.nonlocal_block import DisentangledNonLocal, NonLocal
from videornn.training.optim import build_optimizer, lr_at
from videornn.training.step import train_step

CONFIGS = ROOT / "configs"
RECIPES = sorted(CONFIGS.rglob("*.yaml"))
# on schedules of their own, for one network
SINGLE = {"slow_r50_8x8_in1k_mmaction2", "slow_r50_8x8_dnl_trained"}
KINETICS = [path for path in sorted((CONFIGS / "kinetics400").glob("*.yaml")) if path.stem not in SINGLE]
NAME = re.compile(r"(slow|i3d|c2d)_r(50|101)_(8x8|4x16)(_nl|_dnl)?(_in1k)?")

# top-1 / top-5 over 30 views, as their sources give them: the model zoos of SlowFast and PyTorchVideo (from scratch),
# video-nonlocal-net's README (I3D and C2D from ImageNet) and MMAction2's (Slow-only from ImageNet)
PUBLISHED = {
    "slow_r50_8x8": ["74.8 / 91.6", "74.58 / 91.63"],
    "slow_r50_4x16": ["72.7 / 90.3", "72.40 / 90.18"],
    "i3d_r50_8x8": ["73.5 / 90.8", "73.27 / 90.70"],
    "i3d_r50_8x8_nl": ["74.0 / 91.1"],
    "c2d_r50_8x8": ["71.46 / 89.68"],
    "c2d_r50_8x8_in1k": ["71.9 / 90.0"],
    "c2d_r50_8x8_nl_in1k": ["74.4 / 91.4"],
    "i3d_r50_8x8_in1k": ["73.4 / 90.9"],
    "i3d_r50_8x8_nl_in1k": ["74.7 / 91.6"],
    "slow_r50_8x8_in1k_mmaction2": ["76.45 / 92.55", "75.96 / 92.40"],  # README, metafile
    "slow_r50_8x8_nl_in1k": ["76.65 / 92.47"],
    "slow_r50_4x16_in1k": ["75.12 / 91.72"],
    "slow_r50_4x16_nl_in1k": ["75.07 / 91.69"],
}
# parameters of the network with 400 classes, in millions: PyTorchVideo's model zoo, MMAction2's for Slow-only with blocks
MILLIONS = {"slow_r50_8x8": 32.45, "i3d_r50_8x8": 28.04, "c2d_r50_8x8": 24.33, "slow_r50_8x8_nl": 39.81}


def _header(path: Path) -> str:
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def _learning_rates(config: Config, epochs: list[float]) -> list[float]:
    return [lr_at(config.train, epoch, config.train.epochs) for epoch in epochs]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_and_takes_a_step(path: Path) -> None:
    tiny = ["model.width=4", "model.num_classes=5", "model.init=null", "train.precision=fp32"]
    config = load_config(path, tiny)
    torch.set_num_threads(1)  # so small a step only waits for a second thread
    torch.manual_seed(0)
    model, section = build_model(config.model), config.train
    optimizer = build_optimizer(model, section)
    ends = [model.stem[0].conv.weight, model.head.weight]
    before = [weight.detach().clone() for weight in ends]
    clips, labels = torch.randn(2, 3, config.data.num_frames, 32, 32), torch.tensor([1, 4])
    result = train_step(model, [(clips, labels)], optimizer, label_smoothing=section.label_smoothing)
    assert torch.isfinite(result.loss)
    assert not any(torch.equal(old, new) for old, new in zip(before, ends, strict=True))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_header_says_where_it_runs_and_by_which_command(path: Path) -> None:
    header, name = _header(path), path.relative_to(CONFIGS.parent).as_posix()
    assert f"videornn train {name}" in header
    assert re.search(r"\b(GPUs?|CPU)\b", header)


def test_there_is_a_recipe_for_every_network_block_and_start() -> None:
    bases = ["slow_r50_8x8", "i3d_r50_8x8", "c2d_r50_8x8", "slow_r50_4x16", "i3d_r101_8x8"]
    expected = {f"{base}{kind}{init}" for base in bases for kind in ("", "_nl", "_dnl") for init in ("", "_in1k")}
    assert {path.stem for path in KINETICS} == expected


@pytest.mark.parametrize("path", KINETICS, ids=lambda path: path.stem)
def test_the_name_of_a_recipe_tells_the_truth(path: Path) -> None:
    family, depth, clip, kind, init = NAME.fullmatch(path.stem).groups()
    config = load_config(path)
    model = config.model
    assert (model.name, model.depth) == (family, int(depth))
    assert f"{config.data.num_frames}x{config.data.temporal_stride}" == clip
    assert model.attention.kind == (kind or "_none")[1:]
    assert model.init == (f"resnet{depth}.pth" if init else None)
    places = {"res3": [1, 3], "res4": [1, 3, 5] if depth == "50" else [6, 13, 20]}
    block_class = {None: (), "_nl": NonLocal, "_dnl": DisentangledNonLocal}[kind]
    network = build_model(model.model_copy(update={"width": 4}))
    found = {
        stage: [number for number, block in enumerate(getattr(network, stage)) if isinstance(block.attention, block_class)]
        for stage in ("res2", "res3", "res4", "res5")
    }
    assert found == {"res2": [], "res3": [], "res4": [], "res5": []} | (places if kind else {})


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_a_recipe_builds_the_network_that_its_source_counts(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_model(load_config(CONFIGS / f"kinetics400/{name}.yaml").model)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_defaults_are_those_that_recipes_rely_on() -> None:
    """Recipes say what they change. Who changes a default writes the old value into every recipe that had it, then here."""

    def known(values: dict, before: dict) -> dict:
        return {key: known(values[key], old) if isinstance(old, dict) else values[key] for key, old in before.items()}

    before = yaml.safe_load((ROOT / "tests/defaults.yaml").read_text())
    before["model"]["attention"]["places"] = str(before["model"]["attention"]["places"])  # one value, no section
    now = yaml.safe_load(config_to_yaml(Config()))
    now["model"]["attention"]["places"] = str(now["model"]["attention"]["places"])
    assert known(now, before) == before


def test_recipes_of_one_start_differ_in_nothing_but_what_their_names_say() -> None:
    rest: dict[bool, dict] = {}
    for path in KINETICS:
        values = load_config(path).model_dump(mode="json")
        del values["model"]["name"], values["model"]["depth"]
        del values["model"]["attention"]["kind"], values["model"]["attention"]["places"]
        del values["data"]["num_frames"], values["data"]["temporal_stride"]
        init = values["model"].pop("init")
        assert rest.setdefault(init is not None, values) == values, path.stem
    scratch, imagenet = rest[False], rest[True]
    schedule = {"epochs", "lr", "schedule", "end_lr", "step_epochs", "step_factor", "warmup_epochs", "warmup_start"}
    assert {key: value for key, value in scratch["train"].items() if key not in schedule} == {
        key: value for key, value in imagenet["train"].items() if key not in schedule
    }
    assert all(scratch[section] == imagenet[section] for section in ("seed", "model", "data", "test"))


@pytest.mark.parametrize("path", KINETICS, ids=lambda path: path.stem)
def test_a_recipe_follows_its_published_one(path: Path) -> None:
    config = load_config(path)
    section, data, test = config.train, config.data, config.test
    assert (section.batch_size, section.lr_batch_size, section.optimizer, section.momentum) == (64, 64, "sgd", 0.9)
    assert (section.weight_decay, section.norm_weight_decay, section.precise_bn) == (1e-4, 0.0, 200)
    assert (section.label_smoothing, section.clip_norm, section.ema_decay, section.layer_decay) == (0.0, None, None, 1.0)
    assert (data.short_side, data.crop_size, data.sampling_fps, data.hflip) == ((256, 320), 224, 30.0, 0.5)
    assert train_transform(data, ()) == train_transform(
        DataConfig(), ()
    )  # which tests/data/test_transforms.py holds to pixels
    assert (data.rand_augment, data.mixup_alpha, data.cutmix_alpha, config.model.dropout) == (0, 0, 0, 0.5)
    assert (test.num_clips, test.num_crops, test.short_side, test.crop_size) == (10, 3, 256, 256)
    if path.stem.endswith("_in1k"):
        assert section.epochs == 118
        assert _learning_rates(config, [0, 43.9, 44, 88, 117]) == pytest.approx([0.01, 0.01, 1e-3, 1e-4, 1e-4])
    else:
        assert section.epochs == 196
        assert _learning_rates(config, [0, 98]) == pytest.approx([0.01, 0.05])
        assert _learning_rates(config, [34]) == pytest.approx([0.092757], rel=1e-4)


def _changes(name: str, base: str) -> dict[str, object]:
    """Settings of a recipe that another has otherwise."""
    values, others = (load_config(CONFIGS / f"kinetics400/{stem}.yaml").model_dump(mode="json") for stem in (name, base))
    return {
        f"{section}.{key}": value
        for section in ("model", "data", "train", "test")
        for key, value in values[section].items()
        if others[section][key] != value
    }


def test_the_recipe_of_mmaction2_is_its_config_where_its_number_comes_from() -> None:
    name = "slow_r50_8x8_in1k_mmaction2"
    assert _changes(name, "slow_r50_8x8_in1k") == {
        "data.sampling_fps": None,
        "data.short_videos": "loop",
        "data.crop": "resized",
        "data.mean": [0.485, 0.456, 0.406],
        "data.std": [0.229, 0.224, 0.225],
        "train.epochs": 150,
        "train.batch_size": 128,
        "train.lr": 0.02,
        "train.lr_batch_size": 128,
        "train.step_epochs": [90, 130],
        "train.warmup_epochs": 10.0,
        "train.norm_weight_decay": 1e-4,
        "train.clip_norm": 40.0,
        "train.precise_bn": 0,
    }
    config = load_config(CONFIGS / f"kinetics400/{name}.yaml")
    rates = [0.002, 0.011, 0.02, 0.02, 0.002, 0.0002]
    assert _learning_rates(config, [0, 5, 10, 89.9, 90, 130]) == pytest.approx(rates)
    header = _header(CONFIGS / f"kinetics400/{name}.yaml")
    assert re.findall(r"\d\d\.\d+ / \d\d\.\d+", header) == PUBLISHED[name]
    assert "16 clips each" in header and "resnet50.pth" in header


def test_blocks_are_put_into_the_trained_network_at_the_rate_of_a_trained_network() -> None:
    name = "slow_r50_8x8_dnl_trained"
    changes = _changes(name, "slow_r50_8x8_dnl")
    assert changes.pop("model.init") == "runs/slow_r50_8x8/checkpoints/best.pt"
    assert set(changes) == {f"train.{key}" for key in ("epochs", "lr", "schedule", "step_epochs", "warmup_epochs")}
    assert changes.items() <= {**_changes("slow_r50_8x8_in1k", "slow_r50_8x8_dnl")}.items()
    header = _header(CONFIGS / f"kinetics400/{name}.yaml")
    assert "no published number" in header and "model.attention.kind=none" in header


@pytest.mark.parametrize("path", KINETICS, ids=lambda path: path.stem)
def test_a_header_tells_every_way_in_which_its_clips_and_decay_differ_from_its_source(path: Path) -> None:
    header, config = _header(path), load_config(path)
    window = torch.linspace(0, 63, config.data.num_frames).long()  # as SlowFast's datasets/decoder.py takes it
    apart = int(window[1] - window[0])
    assert (
        f"frames are {config.data.temporal_stride} apart, there {apart}, for SlowFast spreads {len(window)} over 64"
        in header
    )
    for part in (
        "bf16 for float32",
        "evenly in 1/size",
        "middle of each tenth",
        "biases are not decayed",
        "pooled as a whole",
    ):
        assert part in header, part
    assert ("begin from N(0, 0.01)" in header) == (config.model.attention.kind == "nl")


@pytest.mark.parametrize("path", KINETICS, ids=lambda path: path.stem)
def test_a_header_has_its_source_the_published_numbers_and_what_the_user_must_bring(path: Path) -> None:
    header, name = _header(path), path.stem
    assert "Source: " in header and re.search(r"configs/Kinetics/(SLOW|I3D|C2D)_\w+\.yaml", header)
    assert re.findall(r"\d\d\.\d+ / \d\d\.\d+", header) == PUBLISHED.get(name, [])
    assert ("no published number" in header) == (name not in PUBLISHED)
    for part in ("8 GPUs", "torchrun --nproc_per_node=8", f"--out runs/{name}", f"test runs/{name}/"):
        assert part in header, part
    family, depth, clip, kind, init = NAME.fullmatch(name).groups()
    if init:
        assert f"resnet{depth}.pth" in header and "nothing is downloaded" in header
    elif kind:
        assert f"model.init=runs/{family}_r{depth}_{clip}/checkpoints/" in header


def test_fine_tuning_keeps_batch_norm_and_spares_the_early_stages() -> None:
    section = load_config(CONFIGS / "finetune.yaml").train
    assert section.batch_norm == "frozen" and section.precise_bn == 0 and section.layer_decay < 1
    assert section.lr * section.batch_size / section.lr_batch_size < 0.01 and section.epochs <= 30


def test_headers_give_the_hours_and_cores_that_the_steps_of_docs_gpu_md_make() -> None:
    """At 28.2 and 72.5 clips/s a core, which docs/benchmarks.md has, and one core for each GPU."""
    page = (CONFIGS.parent / "docs/gpu.md").read_text()
    steps = {}
    for name, kinds, ms in re.findall(r"^\| (\w+?)(_nl, _dnl)? \| ([\d.]+) ms \|", page, re.MULTILINE):
        steps |= {f"{name}{kind}": float(ms) for kind in (kinds.split(", ") if kinds else [""])}
    assert len(steps) == 15
    for path in KINETICS:
        found = re.search(r"docs/gpu.md\): ([\d.]+) h at least, with (\d+) CPU cores .* or (\d+) cores", _header(path))
        name = path.stem.removesuffix("_in1k")
        if found is None:
            assert name not in steps, path.stem
            continue
        rate = 8 / (steps[name] / 1e3)  # clips per second of a GPU
        cores = [8 * (math.ceil(rate / core_rate) + 1) for core_rate in (72.5, 28.2)]
        assert float(found[1]) == round(load_config(path).train.epochs * 240_000 / (8 * rate) / 3600, 1), path.stem
        assert [int(found[2]), int(found[3])] == cores, path.stem
