"""torch.compile with the graphs counted; the backend that runs them as they are needs no C++ compiler."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import CommandOnRanks
from helpers import CONFIG
from torch import Tensor, nn

from videornn.config import MultigridConfig, TrainConfig
from videornn.data.plan import BatchPlan, BatchShape
from videornn.errors import UserError
from videornn.models.norms import set_batch_norm
from videornn.models.resnet3d import ResNet3d
from videornn.training import train as job
from videornn.training.compiling import compiled, graphs_of
from videornn.training.multigrid import multigrid_phases

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """The shape of the batch that each graph was made for."""
    made = []

    def note(graph: torch.fx.GraphModule, inputs: list) -> object:
        (clips,) = (value for value in inputs if isinstance(value, Tensor) and value.ndim == 5 and not value.requires_grad)
        made.append(clips.shape)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def test_every_shape_has_a_graph_of_its_own_and_one_too_many_is_a_sentence(graphs: list[torch.Size]) -> None:
    model = compiled(nn.Conv3d(3, 2, 1))
    shapes = [torch.Size((b, 3, t, s, s)) for b, t, s in product((1, 2), (2, 4), (3, 5, 6))]
    with graphs_of(len(shapes)):
        for shape in shapes + shapes[::-1]:
            model(torch.zeros(shape)).sum().backward()
    assert graphs == shapes and len(shapes) > 8  # torch's limit
    with pytest.raises(UserError, match=r"train\.compile: torch .* wants more than 11 graphs .* 3 shapes"), graphs_of(3):
        model(torch.zeros(7, 3, 2, 3, 3))
    assert model(torch.zeros(7, 3, 2, 3, 3)).shape == (7, 2, 2, 3, 3)  # outside torch does what it always does


@pytest.mark.slow
def test_a_network_of_ours_is_compiled_for_all_shapes_of_multigrid(graphs: list[torch.Size]) -> None:
    cycles = MultigridConfig(long_cycle=True, short_cycle=True)
    section = TrainConfig(epochs=30, schedule="step", step_epochs=(10, 20), multigrid=cycles)
    phases = multigrid_phases(BatchShape(1, 7, 32), section)
    shapes = BatchPlan(40, phases).shapes
    train = SimpleNamespace(accumulate=1, compile=True)
    model = set_batch_norm(ResNet3d("slow", 10, num_classes=5, width=8), "batch", 1, CPU)
    parallel = job.parallel_network(SimpleNamespace(model=model, device=CPU, config=SimpleNamespace(train=train)))
    with graphs_of(len(shapes)):
        for _ in range(2):
            for shape in shapes:
                clips = torch.zeros(shape.num_videos, 3, shape.num_frames, shape.crop_size, shape.crop_size)
                parallel(clips).sum().backward()
                model.eval()(clips)  # as in a validation, which is not compiled
                model.train()
    assert [(clips[0], clips[2], clips[3]) for clips in graphs] == [
        (shape.num_videos, shape.num_frames, shape.crop_size) for shape in shapes
    ]
    assert len(shapes) > 8


def _compile_without_a_compiler() -> None:
    torch.compile = partial(torch.compile, backend="aot_eager")


@pytest.mark.slow
def test_two_ranks_train_alike_compiled_and_not(tiny_settings: list[str], tmp_path: Path) -> None:
    arguments = ["train", CONFIG, *tiny_settings, "data.val=null", "train.batch_norm=sync"]
    as_it_is = CommandOnRanks(2, tmp_path / "as it is", *arguments, "--out", tmp_path / "a")
    assert as_it_is.wait() == [0, 0], as_it_is.said()
    compiling = CommandOnRanks(
        2,
        tmp_path / "compiling",
        *arguments,
        "train.compile=true",
        "--out",
        tmp_path / "b",
        before=_compile_without_a_compiler,
    )
    assert compiling.wait() == [0, 0], compiling.said()
    plain, made = ([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in "ab")
    assert [record["step"] for record in made] == [record["step"] for record in plain]
    for ours, theirs in zip(made, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
