"""Examine this installation by trying it, and say what is wrong with it: the first thing to read and to report.

Nothing but the standard library is imported before it is checked, so that a broken package is a line, not a traceback.
"""

from __future__ import annotations

import copy
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from videornn.system.cudnn_faults import known_faults
from videornn.system.workers import Lost, num_cores, run_parallel

# packages that commands need, by the name of the import
REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "pytorchvideo": "pytorchvideo.data",
    "av": "av",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "PyYAML": "yaml",
    "torchmetrics": "torchmetrics",
    "tensorboard": "tensorboard",
    "matplotlib": "matplotlib",
    "pillow": "PIL",
    "fvcore": "fvcore.nn",
}
OPTIONAL = {
    "decord": "another decoder, x86-64 only",
    "torchcodec": "another decoder",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "playwright": "tests of pages",
}
LIBRARIES = ("libavcodec", "libavformat", "libswscale")  # of FFmpeg, as far as we use it
DECODERS = ("pyav", "torchcodec", "decord")
DECODER_SECONDS = 60.0
MIN_SHM_GB = 0.5  # room for the buffers of a few GPUs; loader workers need none
MIN_FREE_GB = 5.0
MATRIX = {"cuda": 1024, "cpu": 512}  # side of the matrices whose product is timed
# clips, channels, frames, height and width of the tensor whose convolution is timed, as in res2 of a network in training
CONVOLVED = {"cuda": (8, 64, 8, 56, 56), "cpu": (2, 8, 4, 8, 8)}
MAX_ERROR = 0.01  # relative, of the whole tensor of a bf16 convolution: rounding alone gives 0.002 to 0.004
MAX_PRODUCT_SECONDS = 0.1  # a CPU without bf16 takes 60 times as long as in float32: then once is enough


@dataclass(frozen=True)
class Finding:
    """A line of the report: what was checked, what was found, and what to do about it, if anything.

    fatal: training is not possible like this.
    """

    topic: str
    text: str
    advice: str = ""
    fatal: bool = False


def examine() -> Iterator[Finding]:
    """Examine this installation, yielding lines as they are found; takes some seconds."""
    yield Finding("videornn", f"{_version('videornn') or 'not installed'}, in {Path(__file__).parents[1]}")
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    packages, modules = _packages()
    yield packages
    if "torch" in modules:
        yield from _torch(modules["torch"])
    yield from _machine()
    if "av" in modules:
        yield _ffmpeg(modules["av"])
    yield from _decoders()
    yield _optional()


def _packages() -> tuple[Finding, dict[str, ModuleType]]:
    """Try to import every required package; return the finding and the packages that work."""
    modules, broken = {}, []
    for name, module in REQUIRED.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                modules[name] = import_module(module)
        except Exception as error:  # a package can fail in any way; only which one matters here
            broken.append(f"{name} ({_first_line(error)})")
    versions = ", ".join(f"{name} {_version(name) or 'of unknown version'}" for name in modules)
    if not broken:
        return Finding("packages", versions), modules
    text = f"cannot be imported: {', '.join(broken)}; the others: {versions or 'none'}"
    return Finding("packages", text, "install them again: pip install --force-reinstall videornn", fatal=True), modules


def _torch(torch: ModuleType) -> Iterator[Finding]:
    built = (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    )
    yield Finding("PyTorch", f"{torch.__version__}, built for {built}, threads: {torch.get_num_threads()}")
    if not torch.cuda.is_available():
        yield _no_gpu(torch)
        yield _bfloat16(torch, "cpu")
        return
    if torch.version.cuda:  # other builds have a different library under this name
        yield from _cudnn(torch.__version__, torch.backends.cudnn.version(), torch.version.cuda)
    for index in range(torch.cuda.device_count()):
        yield from _gpu(torch, index)


def _cudnn(torch_version: str, version: int | None, cuda: str | None) -> Iterator[Finding]:
    """Report what is known of this cuDNN with this PyTorch."""
    faults = known_faults(torch_version, version, cuda)
    for text, advice in faults:
        yield Finding("cuDNN", text, advice)
    if not faults:
        yield Finding("cuDNN", f"{version}, no fault known with this PyTorch")


def _no_gpu(torch: ModuleType) -> Finding:
    """Explain why torch sees no GPU, and what to do if there is one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if not (torch.version.cuda or torch.version.hip):
        advice = "an NVIDIA driver is here: install a PyTorch built for CUDA (pytorch.org)" if driver else ""
        return Finding("GPU", "none: this PyTorch is built for the CPU", advice)
    if visible is not None and visible.strip() in ("", "-1"):
        return Finding("GPU", f"none: CUDA_VISIBLE_DEVICES={visible!r} hides them", "unset it to use them" if driver else "")
    try:
        torch.cuda.init()
        reason = "torch found none"
    except (RuntimeError, AssertionError) as error:
        reason = _first_line(error).partition(". Please")[0]
    advice = "a driver is here but does not work with this PyTorch: see what nvidia-smi says" if driver else ""
    return Finding("GPU", f"none: {reason}", advice)


def _gpu(torch: ModuleType, index: int) -> Iterator[Finding]:
    """Check a GPU by a convolution."""
    gpu = torch.cuda.get_device_properties(index)
    name = f"GPU {index}"
    text = f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB, compute capability {gpu.major}.{gpu.minor}"
    try:
        free = torch.cuda.mem_get_info(index)[0]
        layer = torch.nn.Conv3d(3, 8, 3).to(f"cuda:{index}")
        layer(torch.ones(1, 3, 4, 8, 8, device=f"cuda:{index}")).sum().item()
    except RuntimeError as error:
        advice = "this GPU and this PyTorch do not go together; device=cpu works"
        yield Finding(name, f"{text}; a convolution fails: {_first_line(error)}", advice, fatal=True)
        return
    advice = "other programs fill it: see nvidia-smi" if free < 0.5 * gpu.total_memory else ""
    yield Finding(name, f"{text}, {free / 1e9:.1f} GB free; it convolves", advice)
    yield _bfloat16(torch, f"cuda:{index}")
    yield _convolution(torch, f"cuda:{index}")


def _convolution(torch: ModuleType, device: str) -> Finding:
    """Check speed and error of a 3x3x3 convolution in bf16, in the memory layout of our networks."""
    try:
        ratio, error = _bf16_against_float32(torch, device)
    except RuntimeError as failure:  # mostly of a GPU that others fill
        return Finding("convolution", f"3x3x3 on {device} fails: {_first_line(failure)}")
    text = f"3x3x3 in bf16 {ratio:.2g} times as fast as in float32 on {device}, relative error {error:.1g}"
    if not error < MAX_ERROR:  # NaN too
        return Finding(
            "convolution", text, "its numbers are wrong: install another cuDNN or PyTorch; train.precision=fp32 works"
        )
    slow = "install another cuDNN or PyTorch, or train with train.precision=fp32" if ratio < 1 else ""
    return Finding("convolution", text, slow)


def _bf16_against_float32(torch: ModuleType, device: str) -> tuple[float, float]:
    """Measure how many times faster a convolution is in bf16 than in float32, and its relative error."""
    generator = torch.Generator(device).manual_seed(0)
    size = CONVOLVED[device.partition(":")[0]]
    layer = torch.nn.Conv3d(size[1], size[1], 3, padding=1, bias=False).to(device, memory_format=torch.channels_last_3d)
    x = torch.randn(size, device=device, generator=generator).contiguous(memory_format=torch.channels_last_3d)
    half, x16 = copy.deepcopy(layer).bfloat16(), x.bfloat16()
    layer.load_state_dict(half.state_dict())  # the same weights, so that only the convolution differs
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):  # torch's own kernels are independent of cuDNN's
        expected = layer(x16.float())
    error = ((half(x16).detach().float() - expected).norm() / expected.norm()).item()
    rounds = [[_seconds_of_step(torch, *pair) for pair in ((layer, x), (half, x16))] for _ in range(3)]
    float32, bfloat16 = map(min, zip(*rounds, strict=True))
    return float32 / bfloat16, error


def _seconds_of_step(torch: ModuleType, layer: Any, x: Any) -> float:
    """Measure the fastest of a few runs of a convolution, forward and backward."""
    times: list[float] = []
    while len(times) < 4 and sum(times) < MAX_PRODUCT_SECONDS:
        layer.weight.grad = None
        start = time.perf_counter()
        layer(x).square().mean().backward()
        layer.weight.grad[0, 0, 0, 0, 0].item()  # waits for the GPU
        times.append(time.perf_counter() - start)
    return min(times)


def _bfloat16(torch: ModuleType, device: str) -> Finding:
    """Check the speed of matrix products in bf16, the default precision, against float32."""
    dtypes = (torch.float32, torch.bfloat16)
    # taking turns, so that a moment in which the machine is busy does not hit only one of them
    rounds = [[_seconds_of_product(torch, device, dtype) for dtype in dtypes] for _ in range(3)]
    float32, bfloat16 = map(min, zip(*rounds, strict=True))
    ratio = float32 / bfloat16
    where = "the CPU" if device == "cpu" else device
    advice = f"train with train.precision={'fp16' if device != 'cpu' else 'fp32'}" if ratio < 1 else ""
    return Finding("bf16", f"{ratio:.2g} times as fast as float32 in matrix products on {where}", advice)


def _seconds_of_product(torch: ModuleType, device: str, dtype: object) -> float:
    side = MATRIX[device.partition(":")[0]]
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    times: list[float] = []
    while len(times) < 4 and sum(times) < MAX_PRODUCT_SECONDS:
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the GPU
        times.append(time.perf_counter() - start)
    return min(times)


def _machine() -> Iterator[Finding]:
    cores, set_threads = num_cores(), os.environ.get("OMP_NUM_THREADS", "")
    hidden = f" of {os.cpu_count()}" if os.cpu_count() != cores else ""
    few = set_threads.isdigit() and int(set_threads) < cores
    advice = (
        f"OMP_NUM_THREADS={set_threads} keeps the network off the other cores: unset it, unless several ranks run"
        if few
        else ""
    )
    yield Finding("cores", f"{cores}{hidden}", advice)
    if memory := _memory():
        yield Finding("memory", memory)
    if os.path.isdir("/dev/shm"):
        total, _, free = shutil.disk_usage("/dev/shm")
        advice = "several GPUs of one machine talk through it (NCCL): start the container with --shm-size=1g"
        text = f"{total / 1e9:.2g} GB, {free / 1e9:.2g} GB free"
        yield Finding("/dev/shm", text, advice if free < MIN_SHM_GB * 1e9 else "")
    free_gb = shutil.disk_usage(".").free / 1e9
    advice = "checkpoints need room: give --out DIR on another disk" if free_gb < MIN_FREE_GB else ""
    yield Finding("disk", f"{free_gb:.1f} GB free in {Path.cwd()}", advice)


def _memory() -> str:
    """Describe the memory of the machine and the limit of its container; empty if they are unknown."""
    if not hasattr(os, "sysconf"):  # Windows
        return ""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    limited = f", of which this container may use {int(text) / 1e9:.1f} GB" if text.isdigit() and int(text) < total else ""
    return f"{total / 1e9:.1f} GB{limited}"


def _ffmpeg(av: ModuleType) -> Finding:
    """Report the FFmpeg that PyAV brings, and whether it can encode the videos that we write."""
    libraries = getattr(av, "library_versions", {})
    versions = ", ".join(f"{name} {'.'.join(map(str, libraries[name]))}" for name in sorted(libraries) if name in LIBRARIES)
    if "libx264" in av.codecs_available:
        return Finding("FFmpeg", f"{versions}; with libx264")
    return Finding(
        "FFmpeg", f"{versions}; without libx264", "no video can be written: install PyAV from its wheels, pip install av"
    )


def _decoders() -> Iterator[Finding]:
    """Try every decoder on a video made on the spot, in separate processes, because a broken one can crash."""
    answers: dict[int, str | Lost] = dict(
        run_parallel(why_not_decoder, DECODERS, num_workers=1, timeout_seconds=DECODER_SECONDS)
    )
    for index, name in enumerate(DECODERS):
        answer = answers[index]
        reason = answer.reason if isinstance(answer, Lost) else answer
        if not reason:
            yield Finding(f"decoder {name}", "decodes a test video" + " (the default)" * (name == "pyav"))
        elif name == "pyav":
            advice = "nothing can be read without it: pip install --force-reinstall av"
            yield Finding(f"decoder {name}", f"does not work: {reason}", advice, fatal=True)
        else:
            yield Finding(f"decoder {name}", f"not used: {reason}")


def why_not_decoder(name: str) -> str:
    """Return why a decoder does not work, empty if it does; run in a separate process."""
    warnings.simplefilter("ignore")
    try:
        from videornn.data.video.decoders import why_not

        return why_not(name)
    except Exception as error:  # a package can fail in any way
        return _first_line(error)


def _optional() -> Finding:
    versions = {name: _version(name) for name in OPTIONAL}
    there = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = ", ".join(f"{name} ({OPTIONAL[name]})" for name, version in versions.items() if not version)
    return Finding("optional", (there or "none") + (f"; not installed: {missing}" if missing else ""))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
