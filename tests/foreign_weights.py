"""Weights of our networks in files as other projects write them; the names are those of their zoos' own files."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videornn.checkpoints.checkpoint import save_checkpoint

# our names without their last part -> theirs
SLOWFAST = {
    "stem.0.conv": "s1.pathway0_stem.conv",
    "stem.0.norm": "s1.pathway0_stem.bn",
    "conv1.conv": "s{stage}.pathway0_res{block}.branch2.a",
    "conv1.norm": "s{stage}.pathway0_res{block}.branch2.a_bn",
    "conv2.conv": "s{stage}.pathway0_res{block}.branch2.b",
    "conv2.norm": "s{stage}.pathway0_res{block}.branch2.b_bn",
    "conv3.conv": "s{stage}.pathway0_res{block}.branch2.c",
    "conv3.norm": "s{stage}.pathway0_res{block}.branch2.c_bn",
    "shortcut.conv": "s{stage}.pathway0_res{block}.branch1",
    "shortcut.norm": "s{stage}.pathway0_res{block}.branch1_bn",
    "attention.query": "s{stage}.pathway0_nonlocal{block}.conv_theta",
    "attention.key": "s{stage}.pathway0_nonlocal{block}.conv_phi",
    "attention.value": "s{stage}.pathway0_nonlocal{block}.conv_g",
    "attention.out": "s{stage}.pathway0_nonlocal{block}.conv_out",
    "attention.norm": "s{stage}.pathway0_nonlocal{block}.bn",
    "head": "head.projection",
}
CAFFE2 = {
    "stem.0.conv": "conv1",
    "stem.0.norm": "res_conv1_bn",
    "conv1.conv": "res{stage}_{block}_branch2a",
    "conv1.norm": "res{stage}_{block}_branch2a_bn",
    "conv2.conv": "res{stage}_{block}_branch2b",
    "conv2.norm": "res{stage}_{block}_branch2b_bn",
    "conv3.conv": "res{stage}_{block}_branch2c",
    "conv3.norm": "res{stage}_{block}_branch2c_bn",
    "shortcut.conv": "res{stage}_{block}_branch1",
    "shortcut.norm": "res{stage}_{block}_branch1_bn",
    "attention.query": "nonlocal_conv{stage}_{block}_theta",
    "attention.key": "nonlocal_conv{stage}_{block}_phi",
    "attention.value": "nonlocal_conv{stage}_{block}_g",
    "attention.out": "nonlocal_conv{stage}_{block}_out",
    "attention.norm": "nonlocal_conv{stage}_{block}_bn",
    "head": "pred",
}
MMACTION2 = {
    "stem.0.conv": "backbone.conv1.conv",
    "stem.0.norm": "backbone.conv1.bn",
    "conv1.conv": "backbone.layer{layer}.{block}.conv1.conv",
    "conv1.norm": "backbone.layer{layer}.{block}.conv1.bn",
    "conv2.conv": "backbone.layer{layer}.{block}.conv2.conv",
    "conv2.norm": "backbone.layer{layer}.{block}.conv2.bn",
    "conv3.conv": "backbone.layer{layer}.{block}.conv3.conv",
    "conv3.norm": "backbone.layer{layer}.{block}.conv3.bn",
    "shortcut.conv": "backbone.layer{layer}.{block}.downsample.conv",
    "shortcut.norm": "backbone.layer{layer}.{block}.downsample.bn",
    "attention.query": "backbone.layer{layer}.{block}.non_local_block.theta.conv",
    "attention.key": "backbone.layer{layer}.{block}.non_local_block.phi.0.conv",
    "attention.value": "backbone.layer{layer}.{block}.non_local_block.g.0.conv",
    "attention.out": "backbone.layer{layer}.{block}.non_local_block.conv_out.conv",
    "attention.norm": "backbone.layer{layer}.{block}.non_local_block.conv_out.bn",
    "head": "cls_head.fc_cls",
}


def translate(state: dict[str, Tensor], table: dict[str, str]) -> dict[str, Tensor]:
    theirs = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        block = re.fullmatch(r"res(\d)\.(\d+)\.(.+)", layer)
        if block:
            stage = int(block[1])
            layer = table[block[3]].format(stage=stage, layer=stage - 1, block=block[2])
        else:
            layer = table[layer]
        theirs[f"{layer}.{leaf}"] = tensor
    return theirs


def caffe2_blobs(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    blobs = {"lr": np.float32(0.1), "model_iter": np.zeros(1, np.int64), "conv1_w_momentum": np.zeros(3, np.float32)}
    for name, tensor in translate(state, CAFFE2).items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        short = {"weight": "s" if layer.endswith("bn") else "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}
        values = tensor[..., None, None, None] if name == "pred.weight" else tensor
        blobs[f"{layer}_{short[leaf]}"] = values.numpy().copy()
    return blobs


def mmaction2_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in translate(state, MMACTION2).items() if not name.endswith("conv_out.conv.bias")}


def write_slowfast(state: dict[str, Tensor], path: Path) -> None:
    content = {"epoch": 1, "model_state": translate(state, SLOWFAST), "optimizer_state": {"lr": 0.1}, "cfg": "a: 1"}
    torch.save(content, path)


def write_caffe2(state: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(pickle.dumps({"blobs": caffe2_blobs(state), "cfg": "a: 1"}, protocol=2))


def write_mmaction2(state: dict[str, Tensor], path: Path) -> None:
    meta = {"epoch": 1, "top1": np.float64(0.7), "history": np.arange(3.0)}
    torch.save({"meta": meta, "state_dict": mmaction2_state(state)}, path)


def write_videornn(state: dict[str, Tensor], path: Path) -> None:
    save_checkpoint(path, {"model": state, "optimizer": {}, "step": 3})


WRITERS = {
    "SlowFast": write_slowfast,
    "caffe2": write_caffe2,
    "MMAction2": write_mmaction2,
    "videornn": write_videornn,
}
