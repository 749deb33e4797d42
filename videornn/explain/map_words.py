"""Describe maps in words for people who have not read the papers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from videornn.explain.attention_maps import BlockMaps, has_split
from videornn.explain.clip_places import Places, Query
from videornn.explain.heat_maps import HeatMap
from videornn.models.nonlocal_block import (
    AddedNonLocal,
    AttentionBlock,
    DisentangledNonLocal,
    GlobalContext,
    PairwiseNonLocal,
    UnaryNonLocal,
)

COLLAPSED = 0.8  # share of a map's weight on one place
FEW_KEYS = 2.0
SAME = 0.1  # query dependence below which all points attend to about the same places
IDLE = 0.01  # change below which a block hardly matters

_SCOPE = {
    "spacetime": "all {} places of the clip",
    "space": "the {} places of its own frame",
    "time": "its own place at {} moments",
}
_UNARY = {
    "spacetime": "what all points look at, whichever is asked",
    "space": "what all points of a frame look at",
    "time": "what the points of a place look at, of all its moments",
}


def block_captions(block: AttentionBlock, x: Tensor, numbers: dict[str, float]) -> list[str]:
    """Write the paragraphs above the maps of a block with input x [1, C, T, H, W]: purpose, how to read it, findings."""
    grid = block.attention_grid(x)
    num_keys = {"spacetime": grid[0] * grid[1] * grid[2], "space": grid[1] * grid[2], "time": grid[0]}[block.axes]
    scope = _SCOPE[block.axes].format(num_keys)
    reading = (
        f"Colours: how much weight a place has. 1x is what it would have if the weight were spread evenly over {scope}; 10x "
        "is ten times that. Dark: less. Every map has its own scale, at its right. In its corner: how much of all its "
        f"weight lies {_moment(grid[0])}."
    )
    return [_what(block, scope), reading, _found(block, numbers, num_keys)]


def block_heat_maps(block: AttentionBlock, maps: BlockMaps, seconds: Sequence[float]) -> list[HeatMap]:
    """Return the maps of a block as they are drawn, with their captions."""
    heat_maps = []
    name = "pairwise" if isinstance(block, PairwiseNonLocal) else "attention"
    where = {"spacetime": "over all frames", "space": "in its own frame", "time": "at its own place in all frames"}[
        block.axes
    ]
    if maps.unary is not None:
        heat_maps.append(_heat_map("unary", _UNARY[block.axes], maps.unary, maps.places, seconds))
    if maps.unary_term is not None:
        text = "what this map would be, for all points, without its pairwise term"
        heat_maps.append(_heat_map("unary term alone", text, maps.unary_term, maps.places, seconds))
    for number, (query, heat) in enumerate(zip(maps.queries, maps.maps, strict=True), start=1):
        text = f"what point +{number} looks at, {where}"
        heat_maps.append(_heat_map(f"{name} +{number}", text, heat, maps.places, seconds, query, number))
        if maps.pairwise_terms:
            text = f"what the map of +{number} would be without its unary term"
            heat = maps.pairwise_terms[number - 1]
            heat_maps.append(_heat_map(f"pairwise term of +{number} alone", text, heat, maps.places, seconds, query, number))
    return heat_maps


def grad_cam_captions(class_name: str, score: float, stage: str, cam: Tensor) -> list[str]:
    """Write the paragraphs above a Grad-CAM [t, h, w]."""
    size = " x ".join(map(str, cam.shape))
    captions = [
        f"Grad-CAM (Selvaraju et al. 2017): places whose features, put out by {stage}, speak for {class_name!r}, to which "
        f"the network gives {100 * score:.0f} % in this clip. What speaks against it is left out.",
        f"Colours: how strongly. 1x is the mean over the {size} places (time, height, width) of the clip; 5x is five times "
        "that. Dark: little or nothing. It cannot be finer than these places. In the corner: how much of it lies "
        f"{_moment(cam.shape[0])}.",
    ]
    if not cam.any():
        captions.append(
            f"The map is empty: the features of {stage}, weighted by mean gradients, nowhere speak for {class_name!r}. "
            "That says more about Grad-CAM than about the clip; try another stage (--stage)."
        )
    return captions


def _what(block: AttentionBlock, scope: str) -> str:
    if isinstance(block, (DisentangledNonLocal, AddedNonLocal)):
        name = "disentangled non-local" if isinstance(block, DisentangledNonLocal) else "non-local"
        return (
            f"A {name} block adds to every point of the clip what it finds at {scope}, twice: at places "
            "that all points look at (unary) and at places that are like the point itself (pairwise)."
        )
    if isinstance(block, PairwiseNonLocal):
        return (
            f"A pairwise block adds to every point of the clip what it finds at {scope}: at those that are like the point "
            "itself, wherever they are."
        )
    if isinstance(block, UnaryNonLocal):
        context = "global context" if isinstance(block, GlobalContext) else "unary"
        return f"A {context} block adds the same to all points of the clip: what it finds at the places marked by this map."
    if has_split(block):
        return (
            f"A non-local block adds to every point of the clip what it finds at {scope}, by one softmax. The softmax is of "
            "a sum of two terms, one that all points share (unary) and one of each point itself (pairwise); the maps of "
            "either term alone show which one made the map."
        )
    return (
        f"A non-local block without a softmax adds to every point of the clip what it finds at {scope}. What it finds at "
        "blue places is taken away."
    )


def _found(block: AttentionBlock, numbers: dict[str, float], num_keys: int) -> str:
    """Describe the numbers of a block in sentences."""
    change = numbers["change"]
    idle = ", hardly at all: its maps matter little" if change < IDLE else ""
    said = [f"In this clip the block changes its input by {_percent(change)}{idle}."]
    if "query_dependence" in numbers:
        dependence, num_effective = numbers["query_dependence"], numbers["effective_keys"] * num_keys
        same = ": all points look at nearly the same" if dependence < SAME else ""
        said.append(
            f"Maps of different points differ by {_percent(dependence)} from their mean (0 %: all the same; 100 %: nothing "
            f"in common){same}."
        )
        if num_effective < FEW_KEYS:
            said.append(
                f"A point looks, in effect, at {num_effective:.1f} of {num_keys} places: this softmax has collapsed in "
                "training to single places, which is no fault of the picture."
            )
        else:
            said.append(f"A point looks, in effect, at {num_effective:.0f} of {num_keys} places.")
    if "unary_effective_keys" in numbers:
        num_effective = numbers["unary_effective_keys"] * num_keys
        said.append(f"The unary map covers, in effect, {num_effective:.0f} of {num_keys} places.")
    if "overlap" in numbers:
        said.append(f"Unary and mean pairwise map have {_percent(numbers['overlap'])} of their weight in common.")
    if "pairwise_share" in numbers:
        share = numbers["pairwise_share"]
        said.append(
            f"The pairwise term makes {_percent(share)} of the variance of the logits, the unary term {_percent(1 - share)}."
        )
    return " ".join(said)


def _heat_map(
    name: str,
    text: str,
    heat: Tensor,
    places: Places,
    seconds: Sequence[float],
    query: Query | None = None,
    number: int = 0,
) -> HeatMap:
    """Make a map with its caption and remarks."""
    strength = heat.abs()
    largest = float(strength.max() / strength.sum().clamp_min(1e-30))
    if not strength.any():
        text += "; it has no weight at all"
    elif largest >= COLLAPSED:
        step = int(strength.flatten(1).amax(dim=1).argmax())
        second = seconds[places.frame(step)]
        text += f"; it has collapsed: {_percent(largest)} of the weight lies on a single place, at {second:.2f} s"
    elif float(strength.max()) < 1.5:
        text += f"; nearly even, between {float(strength.min()):.2f}x and {float(strength.max()):.2f}x"
    return HeatMap(name, text, heat, places, query, number)


def _moment(num_moments: int) -> str:
    """Say what the share in a corner counts; without the number of moments, frames of one moment seem to exceed 100 %."""
    return f"at this moment, one of {num_moments} (frames can share one)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"
