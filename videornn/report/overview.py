"""A run in words: what was trained, when and where, and the settings that are not the defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from videornn.report.render import plural
from videornn.report.run_results import RunResults
from videornn.schema import Section

FAMILIES = {"slow": "Slow-only", "i3d": "I3D", "c2d": "C2D", "r3d": "R3D", "r2plus1d": "R(2+1)D"}
BLOCKS = {
    "nl": "non-local",
    "nl_gaussian": "non-local (Gaussian)",
    "nl_dot_product": "non-local (dot product)",
    "nl_concatenation": "non-local (concatenation)",
    "pairwise": "pairwise non-local",
    "unary": "unary non-local",
    "gc": "global context",
    "dnl": "disentangled non-local",
    "nl_add": "non-local (terms added)",
    "nl_own_mask": "non-local (own mask)",
}


def what_was_trained(run: RunResults) -> str:
    """Say in a sentence which network, blocks and data."""
    model, data = run.config.model, run.config.data
    blocks = "without attention blocks"
    if model.attention.kind != "none":
        places = [place for stage, blocks in model.attention.places.items() for place in _places(stage, blocks)]
        blocks = f"with {BLOCKS[model.attention.kind]} blocks after {', '.join(places)}"
    used = run.list_counts("train").get("used")
    classes = model.num_classes or (len(run.test.class_names) if run.test else None)
    videos = "" if used is None else f" on {plural(used, 'video')}"
    of = f" of {plural(classes, 'class')}" if classes else ""
    apart = "" if data.sampling == "segments" else f" ({data.temporal_stride} apart)"
    clips = f"clips of {data.num_frames} frames{apart} of {data.crop_size} x {data.crop_size} pixels"
    return f"{FAMILIES[model.name]} ResNet-{model.depth} {blocks}, trained{videos}{of} with {clips}."


def _places(stage: str, blocks: tuple[int, ...] | str) -> list[str]:
    return [f"every block of {stage}"] if blocks == "all" else [f"{stage}.{block}" for block in blocks]


def start_line(start: dict[str, Any]) -> str:
    """Say in a line when a start was, on what, and with which versions and settings."""
    code, versions, training = start.get("code", {}), start.get("versions", {}), start.get("training", {})
    when = start.get("time", "unknown time").replace("T", " ").replace("+00:00", " UTC")
    step = start.get("start", {}).get("step", 0)
    went_on = f"Taken up after step {step:,}, {when}" if step else f"Started {when}"
    commit = f"commit {(code.get('commit') or 'unknown')[:10]}{' with changes' if code.get('dirty') else ''}"
    names = [f"{name} {versions[name]}" for name in ("videornn", "torch", "python") if versions.get(name)]
    keys = {"precision": "", "batch_size": "batch ", "seed": "seed "}
    settings = [f"{word}{training[key]}" for key, word in keys.items() if key in training]
    parts = [went_on, _hardware(start.get("machine", {}), training), ", ".join(names), commit, ", ".join(settings)]
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def _hardware(machine: dict[str, Any], training: dict[str, Any]) -> str:
    ranks, gpus = training.get("ranks", 1), machine.get("gpus")
    of_ranks = f", {ranks} processes" if ranks > 1 else ""
    if training.get("device") != "cpu" and gpus:
        return f"{len(gpus)} x {gpus[0].get('name', 'GPU')} a node{of_ranks}"
    return f"{machine.get('cores', '?')} cores of {machine.get('cpu', 'a CPU')}{of_ranks}"


def differences(config: Section, default: Section, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """List the settings that are not the defaults: dotted key, value and default as config.yaml has them, and meaning."""
    plain, usual = config.model_dump(mode="json"), default.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            yield from differences(value, getattr(default, name), f"{prefix}{name}.")
        elif plain[name] != usual[name]:
            yield prefix + name, _yaml(plain[name]), _yaml(usual[name]), field.description or ""


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)).removesuffix("...\n").strip()
