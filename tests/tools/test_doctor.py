"""What `videornn doctor` says of installations that are sound, incomplete and broken."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import av
import pytest
import torch
from helpers import ROOT

from videornn.tools import doctor


def _doctor(*arguments: str, packages: Path | None = None) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, with the packages of a folder before all others."""
    path = os.pathsep.join(map(str, [packages, ROOT] if packages else [ROOT]))
    command = [sys.executable, "-m", "videornn", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


def _package(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)


@pytest.mark.slow
def test_a_sound_installation_can_train_and_says_with_what() -> None:
    done = _doctor()
    assert done.returncode == 0 and done.stderr == ""
    for text in (torch.__version__, av.__version__, sys.version.split()[0], "libavcodec", "times as fast as float32"):
        assert text in done.stdout, text
    lines = {line[:19].strip(): line[19:] for line in done.stdout.splitlines()}
    assert lines["decoder pyav"] == "decodes a test video (the default)"
    assert {"GPU", "GPU 0"} & set(lines) and {"cores", "disk", "optional"} < set(lines)
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.slow
def test_a_broken_package_a_crashing_and_a_wrong_decoder_are_told_apart(tmp_path: Path) -> None:
    _package(tmp_path, "fvcore", "raise RuntimeError('operator does not exist\\nand more')")
    _package(tmp_path, "decord", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    _package(tmp_path, "torchcodec", "raise OSError('libavutil.so.99: no such file')")
    done = _doctor("--json", packages=tmp_path)
    assert done.returncode == 1 and done.stderr == "videornn: nothing can be trained here: see packages above\n"
    findings = {finding["topic"]: finding for finding in json.loads(done.stdout)}
    assert findings["packages"]["fatal"] and "fvcore (operator does not exist)" in findings["packages"]["text"]
    assert f"numpy {__import__('numpy').__version__}" in findings["packages"]["text"]
    assert "libavutil.so.99: no such file" in findings["decoder torchcodec"]["text"]
    assert "SIGSEGV" in findings["decoder decord"]["text"] and not findings["decoder decord"]["fatal"]
    assert findings["decoder pyav"]["text"] == "decodes a test video (the default)"


def test_little_shared_memory_a_full_disk_and_idle_cores_get_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64e6, 1e6, 63e6))
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(doctor, "num_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    findings = {finding.topic: finding for finding in doctor._machine()}
    assert findings["/dev/shm"].text == "0.064 GB, 0.063 GB free" and "--shm-size" in findings["/dev/shm"].advice
    assert "--out DIR" in findings["disk"].advice and "OMP_NUM_THREADS=1" in findings["cores"].advice
    assert not any(finding.fatal for finding in findings.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64e9, 1e9, 63e9))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert not any(finding.advice for finding in doctor._machine())


def test_why_there_is_no_gpu_depends_on_build_environment_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = doctor._no_gpu(torch)
    assert finding.text == "none: this PyTorch is built for the CPU" and "install a PyTorch built for CUDA" in finding.advice
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor._no_gpu(torch).text == "none: CUDA_VISIBLE_DEVICES='' hides them"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def fail() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have one")

    monkeypatch.setattr(torch.cuda, "init", fail)
    finding = doctor._no_gpu(torch)
    assert finding.text == "none: Found no NVIDIA driver on your system" and "nvidia-smi" in finding.advice


def test_slow_bf16_gets_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(doctor, "_seconds_of_product", lambda torch, device, dtype: seconds[dtype])
    finding = doctor._bfloat16(torch, "cpu")
    assert finding.text == "0.5 times as fast as float32 in matrix products on the CPU"
    assert finding.advice == "train with train.precision=fp32"
    seconds[torch.bfloat16] = 0.5
    assert doctor._bfloat16(torch, "cpu").advice == ""
    busy = iter([1.0, 9.0, 1.0, 0.5, 1.0, 0.5])  # at the first product in bf16
    monkeypatch.setattr(doctor, "_seconds_of_product", lambda torch, device, dtype: next(busy))
    assert doctor._bfloat16(torch, "cpu").text.startswith("2 times as fast")
