"""Watch attention blocks while a network trains: numbers for its log lines, and remarks on useless maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videornn.explain.attention_maps import attention_blocks, observe
from videornn.explain.attention_numbers import numbers_on_device
from videornn.models.forward import Precision, autocast

SHOWN = ("change", "logit_deviation", "effective_keys", "query_dependence", "unary_effective_keys")
NUM_QUERIES = 256  # per clip: enough for a mean
COLLAPSED = 0.03  # share of the keys that a query effectively attends to
EVEN = 0.98
EARLY = 0.2  # share of a run in which maps are still forming


class AttentionWatch:
    """A watch on every attention block of a network in training, on one clip at a time.

    Args:
        model: the bare network, in training mode; it is left as it was.
        num_steps: of the whole run.
    """

    def __init__(self, model: nn.Module, *, num_steps: int, precision: Precision) -> None:
        self._model, self._blocks = model, attention_blocks(model)
        self._num_steps, self._precision = num_steps, precision
        self._remarked: set[str] = set()
        blocks = self._blocks.values()
        can_learn = any("learnt" in block.scales and not block.has_learnt_scale for block in blocks)
        self._bounds = "; model.attention.scale=learnt, in a new run, bounds their logits" if can_learn else ""
        sharpens = ["a lower model.attention.temperature"] if any(block.own_temperature for block in blocks) else []
        sharpens += ["model.attention.scale=learnt"] if can_learn else []
        self._sharpens = f"; {' or '.join(sharpens)}, in a new run, lets them choose" if sharpens else ""

    def numbers(self, clip: Tensor) -> dict[str, float]:
        """Measure the numbers SHOWN of each block ("res3.1/effective_keys") on a normalised clip [1, 3, T, H, W].

        The clip goes through the network as in a test. Waits once for the device.
        """
        if not self._blocks:
            return {}
        found: dict[str, Tensor] = {}
        cudnn = torch.backends.cudnn
        searches, cudnn.benchmark = cudnn.benchmark, False  # no search for the fastest kernels for a single clip
        try:
            with autocast(clip.device, self._precision):
                for name, (x, output) in observe(self._model.eval(), clip).blocks.items():
                    numbers = numbers_on_device(self._blocks[name], x, output, NUM_QUERIES)
                    place = name.removesuffix(".attention")
                    found |= {f"{place}/{key}": numbers[key] for key in SHOWN if key in numbers}
        finally:
            cudnn.benchmark = searches
            self._model.train()
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))

    def remark(self, step: int, numbers: dict[str, float]) -> str | None:
        """Return a sentence, once a run, on maps that have collapsed, and one on maps still even after half of the run."""
        if step < EARLY * self._num_steps:
            return None
        keys = {name.partition("/")[0]: value for name, value in numbers.items() if name.endswith("/effective_keys")}
        collapsed = {place: share for place, share in keys.items() if share < COLLAPSED}
        even = {place: share for place, share in keys.items() if share > EVEN and step >= self._num_steps / 2}
        if collapsed and "collapsed" not in self._remarked:
            self._remarked.add("collapsed")
            return f"pairwise maps have collapsed: a query attends to {_shares(collapsed)} of the places{self._bounds}"
        if even and "even" not in self._remarked:
            self._remarked.add("even")
            return f"pairwise maps are still even: a query attends to {_shares(even)} of the places{self._sharpens}"
        return None


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f} % ({place})" for place, share in shares.items())
