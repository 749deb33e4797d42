"""Check single kernels: convolutions, attention, norms and pools, against float64 or float32, and each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from benchmark_attention import ATTENTION_SIZES, KERNELS, KEY_POOL, by_kernel
from benchmark_convolutions import convolutions_of, forms_of
from torch import Tensor, nn

from gpu_sections.scope import Row, Scope, relative_error
from videornn.models import ATTENTION_KINDS
from videornn.models.batch_norm import BatchNorm3d
from videornn.models.resnet3d import Conv3d
from videornn.models.softmax_attention import softmax_attention
from videornn.tools.doctor import MAX_ERROR

MAX_ATTENTION_ERROR = 0.02  # of output and gradients of bf16 attention
MULTIGRID = [(frames, size) for frames in (2, 4, 8) for size in (112, 158, 224)]


def convolutions(scope: Scope) -> Iterator[Row]:
    """Compare every distinct convolution of three networks in bf16 with float32, and with other forms of computing it."""
    scales = {"depth": 50} if scope.on_gpu else {"depth": 10, "width": 8}
    networks = ("slow", "i3d", "c2d")
    sums = {name: [0.0, 0.0] for name in networks}
    # the most expensive first, in case the time runs out
    found = convolutions_of(networks, scope.clip_size, **scales)
    for (in_channels, out_channels, kernel, stride, size), counts in sorted(found.items(), key=_flops, reverse=True):
        conv = Conv3d(in_channels, out_channels, kernel, stride).to(scope.device, memory_format=torch.channels_last_3d)
        x = torch.randn(8 if scope.on_gpu else 2, in_channels, *size, device=scope.device)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        with torch.backends.cudnn.flags(enabled=False):  # torch's own kernels, independent of those under test
            expected, grad = _gradients(conv, x, None)
        low = (
            Conv3d(in_channels, out_channels, kernel, stride)
            .to(scope.device, torch.bfloat16)
            .to(memory_format=torch.channels_last_3d)
        )
        with torch.no_grad():
            low.weight.copy_(conv.weight)
        x16, grad16 = x.bfloat16(), grad.bfloat16()
        found16, _ = _gradients(low, x16, grad16)
        errors = [relative_error(*pair) for pair in zip(found16, expected, strict=True)]
        needs_grad = in_channels != 3
        times = {
            name: scope.milliseconds(partial(_step, form, low, x16.detach().requires_grad_(needs_grad), grad16), rounds=3)
            for name, form in forms_of(low).items()
        }
        for network, count in counts.items():
            sums[network][0] += count * times["conv3d"]
            sums[network][1] += count * min(times.values())
        best = min(times, key=times.__getitem__)
        # torch's own fault, not shown by every CPU; the networks run these in float32 (models/resnet3d.py)
        known_wrong = not scope.on_gpu and 1 < size[0] < kernel[0]
        kernel, size = "x".join(map(str, kernel)), "x".join(map(str, size))
        yield {
            "what": f"{in_channels} -> {out_channels}, {kernel} / {stride[1]}, {size}",
            "in": ", ".join(f"{count} {name}" for name, count in counts.items()),
            **dict(zip(("forward", "input grad", "weight grad"), errors, strict=True)),
            "conv3d ms": times["conv3d"],
            "best": f"{best} {times['conv3d'] / times[best]:.2f}x",
            **({} if known_wrong else {"limit": MAX_ERROR, "ok": max(errors) < MAX_ERROR}),
        }
    for network, (all_conv3d, all_best) in sums.items():
        yield {
            "what": f"all of {network}",
            "conv3d ms": all_conv3d,
            "each in its best form": f"{all_conv3d / all_best:.2f}x faster",
        }


def _flops(entry: tuple) -> float:
    (in_channels, out_channels, kernel, stride, size), counts = entry
    return in_channels * out_channels * math.prod(kernel) * math.prod(size) / math.prod(stride) * counts.total()


def _gradients(conv: nn.Conv3d, x: Tensor, grad: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Return the output and the gradients of input and weight, for a given gradient of the output."""
    x = x.detach().requires_grad_()
    conv.weight.grad = None
    y = nn.Conv3d.forward(conv, x)
    if grad is None:
        grad = torch.randn_like(y).bfloat16().to(y.dtype)
    y.backward(grad)
    return [y.detach(), x.grad, conv.weight.grad], grad


def _step(form: Callable[[Tensor, nn.Conv3d], Tensor], conv: nn.Conv3d, x: Tensor, grad: Tensor) -> None:
    conv.weight.grad = x.grad = None
    form(x, conv).backward(grad)


def attention(scope: Scope) -> Iterator[Row]:
    """Check softmax(q k^T) v by every kernel that takes it: error against float64, time, memory; then multigrid's sizes."""
    places = ATTENTION_SIZES if scope.on_gpu else {"res3": (96, 24, 16), "res4": (48, 12, 32)}
    batch = 8 if scope.on_gpu else 2
    for deterministic in (False, True) if scope.on_gpu else (False,):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        for place, (num_queries, num_keys, width) in places.items():
            inputs = [
                torch.randn(batch, n, width, device=scope.device).bfloat16() for n in (num_queries, num_keys, num_keys)
            ]
            grad, scale = torch.randn_like(inputs[0]), width**-0.5
            expected = _attend(partial(_by_the_book, scale=scale), [x.double() for x in inputs], grad.double())
            functions = {
                "videornn": partial(softmax_attention, scale=scale),
                "float32 products": lambda *inputs, scale=scale: _ProductAttention.apply(*inputs, scale),
            }
            if scope.on_gpu:
                functions |= {name: partial(by_kernel, kernel, scale=scale) for name, kernel in KERNELS.items()}
            for name, function in functions.items():
                yield _attention_row(
                    scope, f"{place}, {name}{', deterministic' * deterministic}", function, inputs, grad, expected
                )
            del expected
    torch.use_deterministic_algorithms(False)
    for frames, size in MULTIGRID if scope.on_gpu else ((2, 32),):
        finite = []
        for kind, channels, shrink in (("dnl", 512, 8), ("nl", 512, 8), ("dnl", 1024, 16)):
            channels = channels if scope.on_gpu else 16
            block = ATTENTION_KINDS[kind](channels, key_pool=KEY_POOL).to(scope.device, memory_format=torch.channels_last_3d)
            for parameter in block.parameters():
                nn.init.normal_(parameter, std=0.2)  # logits far from even
            side = math.ceil(size / shrink)
            x = torch.randn(batch, channels, frames, side, side, device=scope.device, dtype=torch.bfloat16)
            x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
            with torch.autocast(scope.device.type, torch.bfloat16):
                y = block(x)
            y.backward(torch.randn_like(y))
            tensors = [y, x.grad, *(parameter.grad for parameter in block.parameters())]
            finite.append(all(bool(tensor.isfinite().all()) for tensor in tensors))
        yield {
            "what": f"dnl and nl at {frames} x {size} x {size}",
            "is": "finite" if all(finite) else "not finite",
            "ok": all(finite),
        }


def _attention_row(scope: Scope, what: str, function, inputs: list[Tensor], grad: Tensor, expected: list[Tensor]) -> Row:
    try:
        found = _attend(function, inputs, grad)
        errors = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
        del found
        held = 0 if not scope.on_gpu else torch.cuda.memory_allocated()
        peak = scope.peak_gb(partial(_attend, function, inputs, grad))
        return {
            "what": what,
            "output": errors[0],
            "gradients": max(errors[1:]),
            "ms": scope.milliseconds(partial(_attend, function, inputs, grad), rounds=10),
            "MB": None if peak is None else round(1e3 * peak - held / 1e6),
            "limit": MAX_ATTENTION_ERROR,
            "ok" if "videornn" in what else "other": max(errors) < MAX_ATTENTION_ERROR,
        }
    except RuntimeError as error:
        return {"what": what, "refuses": str(error).splitlines()[0][:80]}


def _attend(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of queries, keys and values."""
    tensors = [x.detach().requires_grad_() for x in inputs]
    output = function(*tensors)
    output.backward(grad)
    return [output.detach(), *(tensor.grad for tensor in tensors)]


def _by_the_book(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return (query @ key.transpose(1, 2) * scale).softmax(2) @ value


class _ProductAttention(torch.autograd.Function):
    """Attention by explicit products: logits in float32 from bf16 operands if torch has that product; the map in bf16."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        weights = (_float_product(query, key.transpose(1, 2)) * scale).softmax(2).to(value.dtype)
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, weights)
        return weights @ value

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        query, key, value, weights = ctx.saved_tensors
        grad_weights = _float_product(grad, value.transpose(1, 2))
        full = weights.float()
        grad_logits = full * (grad_weights - (full * grad_weights).sum(2, keepdim=True)) * ctx.scale
        grad_logits = grad_logits.to(query.dtype)
        return grad_logits @ key, grad_logits.transpose(1, 2) @ query, weights.transpose(1, 2) @ grad, None


def _float_product(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and left.dtype == torch.bfloat16:
        try:
            return torch.bmm(left, right, out_dtype=torch.float32)
        except (TypeError, RuntimeError):  # torch before 2.8
            pass
    return left.float() @ right.float()


def norms_and_pools(scope: Scope) -> Iterator[Row]:
    """Check batch norm with ReLU in three precisions, in 3D and as 2D views; max-pools over space and over time."""
    sizes = {"stem": (64, 8, 112, 112), "res3": (512, 8, 28, 28)} if scope.on_gpu else {"stem": (8, 4, 16, 16)}
    batch = 8 if scope.on_gpu else 2
    for place, size in sizes.items():
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
            x = torch.randn(batch, *size, device=scope.device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
            x.requires_grad_()
            grad = torch.randn_like(x)
            layers = {
                "torch's": nn.BatchNorm3d(size[0]).to(scope.device),
                "videornn's": BatchNorm3d(size[0]).to(scope.device),
            }
            yield {
                "what": f"norm and ReLU, {place}, {name}",
                **{f"{form} ms": scope.milliseconds(partial(_norm_step, layer, x, grad)) for form, layer in layers.items()},
                "floor ms": 1e3 * 10 * x.numel() * x.element_size() / 3e12 if scope.on_gpu else None,
            }
        x = torch.randn(batch, *size, device=scope.device).bfloat16().contiguous(memory_format=torch.channels_last_3d)
        x.requires_grad_()
        for kernel in ((1, 2, 2), (2, 1, 1)):
            as_3d = scope.milliseconds(partial(_pool_step, lambda x, k=kernel: F.max_pool3d(x, k), x))
            flat = _pool_frames if kernel[0] == 1 else _pool_time
            yield {
                "what": f"max-pool {'x'.join(map(str, kernel))}, {place}, bf16",
                "max_pool3d ms": as_3d,
                "max_pool2d of a view ms": scope.milliseconds(partial(_pool_step, flat, x)),
            }


def _norm_step(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    x.grad = None
    torch.relu_(layer(x)).backward(grad)


def _pool_step(pool: Callable[[Tensor], Tensor], x: Tensor) -> None:
    x.grad = None
    y = pool(x)
    y.backward(torch.ones_like(y))


def _pool_frames(x: Tensor) -> Tensor:
    frames = x.transpose(1, 2).flatten(0, 1)
    return F.max_pool2d(frames, 2).unflatten(0, (len(x), -1)).transpose(1, 2)


def _pool_time(x: Tensor) -> Tensor:
    return F.max_pool2d(x.flatten(3), (2, 1)).unflatten(3, x.shape[3:])
