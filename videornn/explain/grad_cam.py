"""Grad-CAM over the frames of a clip: where a stage's features speak for a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videornn.models.resnet3d import STAGES

MIN_PLACES = 7  # along height and width: as many as res5 has for clips of 224 pixels


def grad_cam(model: nn.Module, clip: Tensor, stage: str, label: int) -> Tensor:
    """Compute Grad-CAM of a class on the grid of a stage, float [t, h, w], at least 0, on the CPU.

        a_k = mean over t, y, x of d y_c / d A_k(t, y, x),  L(t, y, x) = ReLU(sum_k a_k A_k(t, y, x))

    A_k are the output features of the stage, y_c is the logit of the class. Selvaraju et al. 2017, eq. 1 and 2,
    arXiv:1610.02391, with time as a third axis.

    Args:
        model: ResNet3d in eval mode.
        clip: float [1, 3, T, H, W], normalised, on the model's device.
    """
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)  # until the end of the pass: earlier layers need no gradient, nor the memory for it
        return kept[0]

    hook = getattr(model, stage).register_forward_hook(cut)
    try:
        with torch.no_grad():
            logit = model(clip)[0, label]
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(logit, kept)
    weights = gradient.float().mean(dim=(2, 3, 4))  # [1, C]
    return torch.einsum("bc,bcthw->thw", weights, kept[0].detach().float()).relu().cpu()


def default_stage(grids: dict[str, tuple[int, int, int]]) -> str:
    """Choose the deepest stage whose grid (t, h, w) has at least MIN_PLACES x MIN_PLACES places, else the finest.

    Deep features tell classes apart, but those of small clips lie on 2 x 2 places, too few to localise anything.
    """
    fine = [stage for stage in STAGES if min(grids[stage][1:]) >= MIN_PLACES]
    return fine[-1] if fine else max(STAGES, key=lambda stage: (min(grids[stage][1:]), stage))
