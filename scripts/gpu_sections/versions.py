"""Report what is installed, and its known faults."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator

import torch
import torchvision

from gpu_sections.scope import Row, Scope
from videornn.system.cudnn_faults import known_faults
from videornn.system.device import matrix_rate


def versions(scope: Scope) -> Iterator[Row]:
    start = time.perf_counter()
    rates = {name: matrix_rate(scope.device, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    yield {
        "what": "Python, PyTorch, torchvision",
        "is": f"{platform.python_version()}, {torch.__version__}, {torchvision.__version__}",
    }
    yield {"what": "cores", "is": f"{os.cpu_count()}"}
    yield {
        "what": "rate of matrix products",
        "is": ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items()),
    }
    yield {"what": "seconds to the first result", "is": f"{time.perf_counter() - start:.1f}"}
    if scope.on_gpu:
        gpu = torch.cuda.get_device_properties(0)
        yield {"what": "GPU", "is": f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}"}
        yield {"what": "CUDA, NCCL", "is": f"{torch.version.cuda}, {'.'.join(map(str, torch.cuda.nccl.version()))}"}
        cudnn = torch.backends.cudnn.version()
        faults = known_faults(torch.__version__, cudnn, torch.version.cuda)
        yield {"what": "cuDNN", "is": str(cudnn), "ok": not faults}
        yield from ({"what": "cuDNN", "is": f"{fault}: {remedy}"} for fault, remedy in faults)
