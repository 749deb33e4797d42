"""A network from its checkpoint: what is in the place of its parts, and numbers that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from videornn.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from videornn.checkpoints.trained import load_trained
from videornn.errors import UserError


@pytest.fixture(scope="module")
def content(tiny_run: Path) -> dict[str, Any]:
    return load_checkpoint(tiny_run / "checkpoints/best.pt")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config", None, "its config is missing; "),
        ("config", 5, "its config is no dict as it was written; "),
        ("config", {1: 2}, "its config is no dict as it was written; "),
        ("class_names", "ab", "its class_names is no list as it was written; "),
        ("class_names", [1] * 10, "its class_names is no list as it was written; "),
        ("class_names", ["a", "b"], "has 2 class names for 10 classes"),
        ("step", torch.ones(1), "its step is no int as it was written; "),
        ("model", [torch.ones(1)], "its model is no dict as it was written; "),
        ("model", {"head.weight": "text"}, "its weights are not those of the network that its config describes"),
    ],
)
def test_a_checkpoint_with_something_else_in_the_place_of_a_part_is_one_sentence(
    content: dict[str, Any], tmp_path: Path, name: str, value: object, message: str
) -> None:
    path = tmp_path / "a.pt"
    parts = {key: part for key, part in content.items() if key != name}
    save_checkpoint(path, parts if value is None else parts | {name: value})
    with pytest.raises(UserError) as error:
        load_trained(path)
    assert str(path) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_outputs_that_are_not_finite_are_a_sentence_and_no_scores(
    content: dict[str, Any], motion_set: Path, tmp_path: Path, videornn
) -> None:
    weights = {name: torch.full_like(value, 1e30) if value.ndim == 5 else value for name, value in content["model"].items()}
    save_checkpoint(tmp_path / "a.pt", content | {"model": weights})
    video = motion_set / "videos/test/approach/approach_0000.mp4"
    said = "the network's outputs are not finite\n"
    for command in (["infer"], ["explain", "--out", tmp_path / "out"]):
        code, out, err = videornn(*command[:1], tmp_path / "a.pt", video, *command[1:])
        assert (code, out) == (2, "") and err.startswith("videornn: ") and err.endswith(said), err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
