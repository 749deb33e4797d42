"""What our own sentences advise is what a resumed run may have; all else that they name is refused with a way out."""

import ast
import re
from pathlib import Path

import pytest
import torch
from helpers import CONFIG, ROOT

from videornn.checkpoints.checkpoint import load_checkpoint
from videornn.config import load_config
from videornn.errors import UserError
from videornn.training import validation
from videornn.training.advice import what_is_lacking
from videornn.training.logger import RunLogger
from videornn.training.preflight import load_training_data
from videornn.training.resume import check_resumable
from videornn.training.run import new_run
from videornn.training.step import build_scaler

CPU = torch.device("cpu")
# another value of every setting that a sentence of ours names, by what --resume makes of it
FREE = {  # nothing: the weights will be the same
    "data.labels": "names.txt",
    "data.max_bad_share": "0.5",
    "data.max_frame_pixels": "100000",
    "data.num_workers": "0",
    "data.root": "/elsewhere",
    "data.test": "test.txt",
    "data.timeout": "600.0",
    "data.train": "other.txt",
    "data.val": "val.txt",
    "model.recompute_blocks": "true",
    "test.average": "logits",
    "test.batch_size": "1",
    "test.crop_size": "32",
    "train.accept_other_data": "true",
    "train.elastic": "true",
    "train.keep": "9",
    "train.log_every": "3",
    "train.max_skipped": "99",
    "train.nonfinite": "skip",
    "train.save_every": "2",
    "train.timeout": "9.0",
    "train.val_every": "7",
}
REMARKED = {  # a remark
    "data.decoder": "pyav",
    "train.accumulate": "2",
    "train.bn_clips": "2",
    "train.clip_norm": "1.0",
    "train.compile": "true",
    "train.deterministic": "true",
    "train.precision": "fp16",
}
REFUSED = {  # an error: advice for the beginning of a run, and said so where it can come later
    "data.clips_per_video": "2",
    "data.crop_size": "32",
    "data.num_frames": "4",
    "data.sampling": "segments",
    "data.temporal_stride": "9",
    "model.attention.kind": "gc",
    "model.attention.scale": "paper",
    "model.attention.temperature": "0.5",
    "model.depth": "18",
    "model.init": "weights.pt",
    "model.name": "c2d",
    "model.num_classes": "11",
    "model.width": "32",
    "train.batch_norm": "sync",
    "train.batch_size": "4",
    "train.epochs": "99",
    "train.freeze": "[stem]",
    "train.lr": "0.001",
    "train.multigrid.epoch_factor": "2.0",
    "train.multigrid.long_cycle": "true",
    "train.schedule": "polynomial",
    "train.step_epochs": "[5]",
}
ALONE = {"train.step_epochs": ["train.schedule=step"]}  # settings that others need beside them


def _keys_in_sentences() -> set[str]:
    """Settings that texts of the package name, but for docstrings."""
    known, named = set(_flat(load_config(CONFIG).model_dump())), set()
    for path in (ROOT / "videornn").rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                named |= known.intersection(re.findall(r"\b(?:data|model|train|test)(?:\.[a-z_]+)+", node.value))
    return named


def _flat(section: dict, prefix: str = "") -> list[str]:
    return [
        key
        for name, value in section.items()
        for key in (_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name])
    ]


def _resumed(setting: str, value: str) -> list[str]:
    config = load_config(CONFIG)
    saved = {"config": config.model_dump(mode="json"), "num_videos": 20, "num_ranks": 1, "meters": []}
    now = load_config(CONFIG, [*ALONE.get(setting, []), f"{setting}={value}"])
    return check_resumable(now, saved, Path("last.pt"), num_videos=20, num_ranks=1)


def test_it_is_known_of_every_setting_that_a_sentence_names_what_resume_makes_of_it() -> None:
    named = _keys_in_sentences()
    assert "train.accumulate" in named and len(named) > 30
    assert named - {*FREE, *REMARKED, *REFUSED} == set()


def test_what_changes_no_weight_is_taken_without_a_word() -> None:
    assert {setting: _resumed(setting, value) for setting, value in FREE.items()} == {key: [] for key in FREE}


def test_remedies_are_taken_and_said() -> None:
    for setting, value in REMARKED.items():
        (remark,) = _resumed(setting, value)
        assert re.match(rf"{re.escape(setting)} is .* now and was .*: the weights will not be, bit for bit, those", remark)


def test_another_recipe_is_refused_with_the_way_out() -> None:
    way_out = r"now and was .* in last\.pt; use the same value, or another --out for a new run, .*model\.init=last\.pt"
    for setting, value in REFUSED.items():
        with pytest.raises(UserError, match=way_out):
            _resumed(setting, value)


@pytest.mark.parametrize(
    ("before", "skipped_before", "now", "skips_now", "scale"),
    [
        ("fp32", False, "fp32", True, 1.0),  # an empty state
        ("fp32", True, "fp32", False, 1.0),
        ("fp32", True, "fp16", False, 2.0**16),
        ("fp16", False, "bf16", True, 1.0),
        ("fp16", False, "fp16", True, 2.0**9),  # that of before
    ],
)
def test_the_loss_scaler_goes_on_where_it_is_the_same_one_and_else_begins_anew(
    before: str, skipped_before: bool, now: str, skips_now: bool, scale: float, tiny_run: Path, tiny_settings: list[str]
) -> None:
    path = tiny_run / "checkpoints/last.pt"
    saved = load_checkpoint(path)
    old = build_scaler(CPU, before, skip_nonfinite=skipped_before)
    saved["scaler"] = old.state_dict() | ({"scale": 2.0**9} if before == "fp16" else {})
    saved["config"]["train"]["precision"] = before
    settings = [*tiny_settings, f"train.precision={now}", f"train.nonfinite={'skip' if skips_now else 'stop'}"]
    data, config = load_training_data(load_config(CONFIG, settings))
    run = new_run(config, tiny_run, data, CPU, load_init=False)
    run.load(saved, path)
    assert run.scaler.get_scale() == scale and run.step == 4


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        (
            ["train.accumulate=2"],
            r"train\.accumulate=4 \(.*\) or model\.recompute_blocks=true needs less, also with --resume; a ",
        ),
        (
            ["train.accumulate=8"],
            r"model\.recompute_blocks=true needs less, also with --resume; a smaller",
        ),  # one clip at once
        (
            ["train.accumulate=8", "model.recompute_blocks=true"],
            r"a smaller data\.crop_size or data\.num_frames needs less in a new",
        ),
    ],
)
def test_out_of_memory_advises_what_is_left(
    settings: list[str], ways: str, tiny_settings: list[str], tmp_path: Path
) -> None:
    data, config = load_training_data(load_config(CONFIG, [*tiny_settings, *settings]))
    run = new_run(config, tmp_path, data, CPU, load_init=False)
    assert re.search(f"clips at once; {ways}", what_is_lacking(run, MemoryError()))


def test_out_of_memory_in_a_validation_is_not_blamed_on_the_steps(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(validation, "score_all", no_memory)
    for settings, advice in (["test.batch_size=6"], "test.batch_size=3"), (["test.batch_size=1"], "a lower test.crop_size"):
        data, config = load_training_data(load_config(CONFIG, [*tiny_settings, *settings]))
        run = new_run(config, tmp_path, data, CPU, load_init=False)
        with pytest.raises(UserError, match=rf"in the validation after step 0 with \d videos at once; {advice} needs less"):
            validation.validate(run, validation.validation_loader(run), RunLogger(None, num_steps=4), last=True)
