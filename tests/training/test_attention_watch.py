"""Numbers of attention blocks on the log lines of a training, and the remarks on maps that are of no use."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from videornn.models import ATTENTION_KINDS, ResNet3d
from videornn.models.nonlocal_block import DisentangledNonLocal
from videornn.training.attention_watch import AttentionWatch

CLIP = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def _network(kind: str = "dnl", **options) -> ResNet3d:
    torch.manual_seed(0)
    attention = partial(ATTENTION_KINDS[kind], **options)
    return ResNet3d("slow", 10, num_classes=3, width=8, attention=attention, places={"res3": (0,), "res4": (0,)}).train()


def _watch(model: nn.Module, num_steps: int = 10) -> AttentionWatch:
    return AttentionWatch(model, num_steps=num_steps, precision="fp32")


def _scaled(factor: float, **options) -> ResNet3d:
    """A network whose queries and keys are factor times as long as at the start."""
    model = _network(**options)
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, DisentangledNonLocal):
                block.query.weight *= factor
                if not block.has_learnt_scale:
                    block.key.weight *= factor
    return model


def test_every_block_has_its_numbers_and_the_network_is_left_as_it_was() -> None:
    model = _network()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    numbers = _watch(model).numbers(CLIP)
    names = ("change", "logit_deviation", "effective_keys", "query_dependence", "unary_effective_keys")
    assert sorted(numbers) == sorted(f"{place}/{name}" for place in ("res3.0", "res4.0") for name in names)
    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_numbers_are_those_of_the_map_in_eval_mode() -> None:
    model = _scaled(30.0)
    numbers, seen = _watch(model).numbers(CLIP), {}
    block = model.res3[0].attention
    hook = block.register_forward_hook(lambda block, inputs, output: seen.update(x=inputs[0]))
    with torch.no_grad():
        model.eval()(CLIP)
    hook.remove()
    pairwise, _ = block.attention(seen["x"])
    by_the_book = (-pairwise * pairwise.log()).sum(2).exp().mean() / pairwise.shape[2]
    assert numbers["res3.0/effective_keys"] == pytest.approx(float(by_the_book), rel=1e-4)
    assert numbers["res3.0/effective_keys"] < 0.9
    assert numbers["res3.0/logit_deviation"] == pytest.approx(
        float(pairwise.log().var(2, correction=0).mean().sqrt()), rel=1e-3
    )


def test_kernels_are_those_of_the_run_but_for_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, cudnn = _network(), [], torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    model.res3.register_forward_hook(lambda *_: seen.append((cudnn.enabled, cudnn.benchmark, cudnn.deterministic)))
    before = cudnn.enabled, cudnn.deterministic
    _watch(model).numbers(CLIP)
    assert seen == [(before[0], False, before[1])] and cudnn.benchmark


def test_ways_out_are_those_that_the_blocks_have() -> None:
    collapsed, even = {"res3.0/effective_keys": 0.01}, {"res3.0/effective_keys": 0.999}
    learnt, dot_product = _watch(_network(scale="learnt")), _watch(_network("nl_dot_product"))
    assert "scale=learnt" in _watch(_network()).remark(9, collapsed)
    assert learnt.remark(9, collapsed).endswith("of the places")
    assert learnt.remark(9, even).endswith("; a lower model.attention.temperature, in a new run, lets them choose")
    assert dot_product.remark(9, even).endswith("of the places")


def test_networks_without_blocks_have_no_numbers() -> None:
    assert _watch(ResNet3d("slow", 10, num_classes=3, width=8)).numbers(CLIP) == {}
    assert set(_watch(_network("unary")).numbers(CLIP)) == {
        f"{place}/{name}" for place in ("res3.0", "res4.0") for name in ("change", "unary_effective_keys")
    }


def test_collapsed_and_even_maps_are_told_of_once_and_not_too_early() -> None:
    watch = _watch(_network())
    collapsed = {"res3.0/effective_keys": 0.016, "res3.0/unary_effective_keys": 0.001, "res4.0/effective_keys": 0.5}
    even = {"res3.0/effective_keys": 0.999, "res4.0/effective_keys": 0.5}
    assert watch.remark(1, collapsed) is None and watch.remark(4, even) is None
    assert "have collapsed: a query attends to 1.6 % (res3.0) of the places" in watch.remark(2, collapsed)
    assert "are still even: a query attends to 99.9 % (res3.0)" in watch.remark(5, even)
    assert watch.remark(6, collapsed) is None and watch.remark(7, even) is None
    assert _watch(_network()).remark(9, {"res3.0/effective_keys": 0.4, "res3.0/unary_effective_keys": 0.99}) is None


def test_weights_that_grow_collapse_the_maps_of_the_paper_and_not_those_of_a_learnt_scale() -> None:
    at_start = {scale: _watch(_network(scale=scale)).numbers(CLIP) for scale in ("paper", "learnt")}
    grown = {scale: _watch(_scaled(100.0, scale=scale)).numbers(CLIP) for scale in ("paper", "learnt")}
    assert at_start["paper"]["res3.0/effective_keys"] > 0.9 and grown["paper"]["res3.0/effective_keys"] < 0.05
    assert grown["learnt"] == pytest.approx(at_start["learnt"], rel=1e-3)


def test_a_run_writes_the_numbers_of_its_blocks(tiny_run: Path) -> None:
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    for line in lines:
        assert 0 < line["res3.0/effective_keys"] <= 1.0001 and line["res4.0/logit_deviation"] > 0
    assert len({line["res3.0/logit_deviation"] for line in lines}) > 1
