"""Time the forms in which the networks' convolutions can be computed, forward and backward, from the same weights.

    python scripts/benchmark_convolutions.py [--networks slow i3d c2d] [--precision bf16] [--rounds 5] [--device cpu]

Every distinct convolution of an R50 on 8 x 224 x 224, channels last in memory, is run as conv3d; 1 x k x k also as conv2d of
the frames; k x 1 x 1 as conv2d over time and place, and as a sum of shifted matrix products; 1 x 1 x 1 as a matrix product.
Forms take turns; a time is the least of the rounds, on the CPU in processor time per thread (OMP_WAIT_POLICY=passive on a
busy machine). The last line is JSON. videornn uses conv3d: measured on a CPU with torch 2.15, the best choice for each
convolution would make a step less than 5 % faster, in bf16 and in fp32.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videornn.models import ResNet3d
from videornn.models.resnet3d import FAMILIES, Conv3d
from videornn.system.device import tune, wait_for

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def as_conv3d(x: Tensor, conv: nn.Conv3d) -> Tensor:
    return F.conv3d(x, conv.weight, stride=conv.stride, padding=conv.padding)


def as_frames(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """Compute 1 x k x k as conv2d of [B * T, C, H, W]."""
    frames = x.transpose(1, 2).flatten(0, 1)
    y = F.conv2d(frames, conv.weight[:, :, 0], stride=conv.stride[1:], padding=conv.padding[1:])
    return y.unflatten(0, (len(x), -1)).transpose(1, 2)


def as_time_by_place(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """Compute k x 1 x 1 as conv2d of [B, C, T, H * W]."""
    y = F.conv2d(x.flatten(3), conv.weight[..., 0], stride=(conv.stride[0], 1), padding=(conv.padding[0], 0))
    return y.unflatten(3, x.shape[3:])


def as_product(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """Compute 1 x 1 x 1 as a matrix product over the channels."""
    t, h, w = conv.stride
    return F.linear(x[:, :, ::t, ::h, ::w].movedim(1, -1), conv.weight.flatten(1)).movedim(-1, 1)


def as_shifted_products(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """Compute k x 1 x 1, stride 1, as a matrix product for each tap, added up at its shift in time."""
    x, middle = x.movedim(1, -1), conv.padding[0]  # [B, T, H, W, C]
    y = F.linear(x, conv.weight[:, :, middle, 0, 0])
    for tap in range(1, middle + 1):
        y[:, tap:] += F.linear(x[:, :-tap], conv.weight[:, :, middle - tap, 0, 0])
        y[:, :-tap] += F.linear(x[:, tap:], conv.weight[:, :, middle + tap, 0, 0])
    return y.movedim(-1, 1)


def forms_of(conv: nn.Conv3d) -> dict[str, Callable[[Tensor, nn.Conv3d], Tensor]]:
    """Return all forms that compute this convolution."""
    forms = {"conv3d": as_conv3d}
    if conv.kernel_size[0] == conv.stride[0] == 1:
        forms["frames"] = as_frames
    if conv.kernel_size == (1, 1, 1):
        forms["product"] = as_product
    elif conv.kernel_size[1:] == (1, 1):
        forms |= {"time by place": as_time_by_place, "shifted products": as_shifted_products}
    return forms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16", help="of autocast")
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=list(FAMILIES)[:3], default=list(FAMILIES)[:3])
    options = parser.parse_args()
    device = torch.device(options.device)
    tune(device, deterministic=False)
    rows, sums = {}, {name: {"conv3d": 0.0, "best": 0.0} for name in options.networks}
    for (in_channels, out_channels, kernel, stride, size), counts in convolutions_of(
        options.networks, (8, 224, 224)
    ).items():
        conv = Conv3d(in_channels, out_channels, kernel, stride).to(device, memory_format=torch.channels_last_3d)
        seconds = _time_forms(conv, size, options, device)
        title = f"{in_channels} -> {out_channels}, {'x'.join(map(str, kernel))} / {stride[1]}, {'x'.join(map(str, size))}"
        rows[title] = {name: round(1e3 * value, 3) for name, value in seconds.items()}
        ratios = "  ".join(
            f"{name} {1e3 * value:.2f} ms {seconds['conv3d'] / value:.2f}x" for name, value in seconds.items()
        )
        print(f"{title:<40} {ratios}", flush=True)
        for network, count in counts.items():
            sums[network]["conv3d"] += count * seconds["conv3d"]
            sums[network]["best"] += count * min(seconds.values())
    for network, seconds in sums.items():
        best = seconds["conv3d"] / seconds["best"]
        print(f"{network} r50: all as conv3d {1e3 * seconds['conv3d']:.0f} ms, each in its best form {best:.2f}x faster")
    print(json.dumps({"torch": str(torch.__version__), **vars(options), "ms": rows, "seconds": sums}))


def convolutions_of(
    networks: Sequence[str], clip_size: tuple[int, int, int], **options: int
) -> dict[tuple, collections.Counter]:
    """Count how often each network has each convolution: channels in and out, kernel, stride and the input's T, H, W."""
    found: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
    for network in networks:
        model = ResNet3d(network, num_classes=2, **{"depth": 50, **options}).to("meta").eval()

        def note(conv: nn.Conv3d, inputs: tuple, output: Tensor, network: str = network) -> None:
            size = tuple(inputs[0].shape[2:])
            found[conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, size][network] += 1

        for module in model.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(note)
        with torch.no_grad():
            model(torch.zeros(1, 3, *clip_size, device="meta"))
    return found


def _time_forms(
    conv: nn.Conv3d, size: tuple[int, ...], options: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Time forward and backward of each form in seconds; raises AssertionError if one computes something else."""
    dtype, clock = DTYPES[options.precision], time.process_time if device.type == "cpu" else time.perf_counter
    share = torch.get_num_threads() if device.type == "cpu" else 1
    x = torch.randn(options.batch, conv.in_channels, *size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_(conv.in_channels != 3)
    grad = torch.randn_like(as_conv3d(x, conv.to(dtype)))
    conv.float()
    seconds, results = collections.defaultdict(list), {}
    for _ in range(options.rounds + 1):
        for name, form in forms_of(conv).items():
            conv.weight.grad = x.grad = None
            wait_for(device)
            start = clock()
            with torch.autocast(device.type, dtype, enabled=options.precision != "fp32"):
                y = form(x, conv)
            y.backward(grad)
            wait_for(device)
            seconds[name].append((clock() - start) / share)
            results[name] = y.detach(), conv.weight.grad
    for name, values in results.items():
        for value, expected in zip(values, results["conv3d"], strict=True):
            error = (value - expected).norm() / expected.norm()
            assert error < (1e-4 if options.precision == "fp32" else 0.02), f"{name}: relative error {error:.2g}"
    return {name: min(values[1:]) for name, values in seconds.items()}  # the first one includes set-up


if __name__ == "__main__":
    sys.exit(main())
