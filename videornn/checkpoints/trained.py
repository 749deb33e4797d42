"""Load a trained network, with all that is needed to use it, from its checkpoint alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from videornn.checkpoints.checkpoint import load_model, load_network
from videornn.config import Config, config_from_dict, override_config
from videornn.errors import UserError
from videornn.models import build_model
from videornn.models.forward import Normalize, average_views, predict_logits
from videornn.system.device import pick_device


@dataclass(frozen=True)
class Trained:
    """A network in eval mode on its device, and what its checkpoint says about it.

    class_names: K names by id; step: of its training; normalize: makes its input from clips.
    """

    config: Config
    model: nn.Module
    class_names: tuple[str, ...]
    step: int
    normalize: Normalize

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.normalize.device

    def logits(self, clips: Tensor) -> Tensor:
        """Compute logits float32 [B, K], on the CPU, of clips uint8 [B, 3, T, H, W] on any device, test.batch_size at once.

        Raises:
            UserError: they are not finite.
        """
        logits = predict_logits(
            self.model,
            self.normalize,
            clips,
            precision=self.config.train.precision,
            views_at_once=self.config.test.batch_size,
        )
        self.check_finite(logits)
        return logits

    def check_finite(self, logits: Tensor, of: str = "") -> None:
        """Raise UserError if outputs are not finite, whose scores would be NaN; of: what they belong to."""
        if not logits.isfinite().all():
            precision = self.config.train.precision
            more = "" if precision == "fp32" else f" in {precision}; train.precision=fp32 has more room"
            raise UserError(f"{of}the network's outputs are not finite{more}")

    def scores(self, views: Tensor) -> Tensor:
        """Compute scores float32 [K] in 0..1 of a video from views uint8 [V, 3, T, H, W], averaged as test.average says."""
        return average_views(self.logits(views), self.config.test.average)


def load_trained(checkpoint: str | Path, overrides: list[str] | None = None) -> Trained:
    """Load the network of a checkpoint, its config changed by `section.key=value` overrides.

    Raises:
        UserError: the checkpoint is missing, damaged or not of videornn; an override is wrong or changes the network.
    """
    content = load_network(checkpoint)
    stored = config_from_dict(content["config"], str(checkpoint))
    config = override_config(stored, overrides or [])
    if config.model != stored.model:
        raise UserError(f"{checkpoint}: the model section is part of the checkpoint and cannot be overridden")
    class_names = tuple(content["class_names"])
    if len(class_names) != config.model.num_classes:
        raise UserError(f"{checkpoint} has {len(class_names)} class names for {config.model.num_classes} classes")
    with torch.random.fork_rng(devices=[]):  # initial weights are random, and not needed
        model = build_model(config.model)
    load_model(model, content, checkpoint)
    device = pick_device(config.device)
    model = model.to(device).to(memory_format=torch.channels_last_3d).eval()
    return Trained(config, model, class_names, content["step"], Normalize(config.data.mean, config.data.std, device))
