"""LAMB: Adam whose step on a tensor is as long as the tensor's own norm, for very large batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Lamb(torch.optim.Optimizer):
    """LAMB with bias correction and decoupled weight decay. You et al. 2020, algorithm 2, arXiv:1904.00962.

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay x
        x = x - lr |x| / |r| r

    |x| / |r|, the trust ratio, is 1 where either norm is 0 (a weight that starts at zero could never leave it) and, as is
    usual, for groups without weight decay (norms and biases). Nothing here waits for the device, so a step that
    GradScaler finds not finite is skipped by GradScaler's own look at it, not by this class.

    Args:
        params: parameters, or groups of them with their own lr and weight_decay.
        betas: b1 and b2.
        eps: the authors' 1e-6.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                self._update_(params, group)

    def _update_(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        grads = [parameter.grad for parameter in params]
        states = [self._state_of(parameter) for parameter in params]
        means, squares = ([state[key] for state in states] for key in ("mean", "mean_square"))
        for state in states:
            state["step"] += 1  # a Python number: a tensor's would have to be read back for the bias correction
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        scales = torch._foreach_div(squares, [1 - beta2 ** state["step"] for state in states])
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        updates = torch._foreach_div(means, [1 - beta1 ** state["step"] for state in states])
        torch._foreach_div_(updates, scales)
        if decay:
            torch._foreach_add_(updates, params, alpha=decay)
            torch._foreach_mul_(updates, _trust_ratios(params, updates))
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Steps done, and running means of the gradient and of its square."""
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "mean_square": torch.zeros_like(parameter)}
        return state


def _trust_ratios(params: list[nn.Parameter], updates: list[Tensor]) -> list[Tensor]:
    """|x| / |r| of each tensor, scalars on their device."""
    weight_norms, update_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, updates))
    ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
    return list(ratios.unbind())
