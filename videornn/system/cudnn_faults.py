"""Pairs of PyTorch and cuDNN whose 3D convolutions are known to be wrong or slow; imports no package."""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, ...]
_FIRST, _ANY_LATER = (0,), (10**6,)


@dataclass(frozen=True)
class Fault:
    """A known fault of some versions, from the first of a pair up to, but without, the second.

    what: what cuDNN does, or what torch does about it.
    remedy: what to do; {package} stands for the package that contains cuDNN.
    source: where the fault is documented.
    """

    torch: tuple[Version, Version]
    cudnn: tuple[Version, Version]
    what: str
    remedy: str
    source: str

    def meets(self, torch: Version, cudnn: Version) -> bool:
        return self.torch[0] <= torch < self.torch[1] and self.cudnn[0] <= cudnn < self.cudnn[1]


_NEWER_CUDNN = "pip install -U '{package}>=9.15', whatever pip then says of the version that torch asks for"
FAULTS = (
    # seen with 9.8 and 9.10; 9.15 is the first that torch considers sound (pytorch pull request 166480)
    Fault(
        torch=(_FIRST, (2, 9)),
        cudnn=((9, 8), (9, 15)),
        what="can compute wrong numbers in 3D convolutions of large bf16 inputs",
        remedy=_NEWER_CUDNN,
        source="https://github.com/pytorch/pytorch/issues/163539",
    ),
    # so torch does without it: 2.9.0 without any from 9.8 on, later ones without the faulty ones
    Fault(
        torch=((2, 9), (2, 9, 1)),
        cudnn=((9, 8), _ANY_LATER),
        what="is not used for 3D convolutions in bf16 and fp16, which can then take 4 times as long",
        remedy="install a later PyTorch: pip install -U 'torch>=2.10' torchvision",
        source="https://github.com/pytorch/pytorch/issues/166122",
    ),
    Fault(
        torch=((2, 9, 1), _ANY_LATER),
        cudnn=((9, 8), (9, 15)),
        what="is not used for 3D convolutions in bf16 and fp16 unless tensors lie channels last, as here; the others "
        "can take 4 times as long",
        remedy=_NEWER_CUDNN,
        source="https://github.com/pytorch/pytorch/issues/166643",
    ),
)


def known_faults(torch: str, cudnn: int | None, cuda: str | None) -> list[tuple[str, str]]:
    """Return the known faults of these versions, and what to do about them.

    Args:
        torch: torch.__version__.
        cudnn: torch.backends.cudnn.version(); None without cuDNN.
        cuda: torch.version.cuda; None in builds for other GPUs and for CPUs, which have no cuDNN.
    """
    if cudnn is None or cuda is None:
        return []
    package = f"nvidia-cudnn-cu{cuda.partition('.')[0]}"
    torch_version = tuple(map(int, re.findall(r"\d+", torch.partition("+")[0])[:3]))
    cudnn_version = (cudnn // 10_000, cudnn // 100 % 100, cudnn % 100)
    name = ".".join(map(str, cudnn_version))
    return [
        (f"cuDNN {name} {fault.what} ({fault.source})", fault.remedy.format(package=package))
        for fault in FAULTS
        if fault.meets(torch_version, cudnn_version)
    ]
