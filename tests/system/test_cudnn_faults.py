"""Versions of cuDNN that are wrong or slow with a PyTorch are told, by `doctor` and at the start of a training."""

import pytest
import torch

from videornn.system.cudnn_faults import FAULTS, known_faults
from videornn.tools import doctor
from videornn.training.preflight import cudnn_remarks


@pytest.mark.parametrize(
    ("version", "cudnn", "cuda", "what", "remedy"),
    [
        ("2.7.1+cu128", 90800, "12.8", "cuDNN 9.8.0 can compute wrong numbers", "nvidia-cudnn-cu12>=9.15"),
        ("2.8.0", 91002, "12.8", "cuDNN 9.10.2 can compute wrong numbers", "nvidia-cudnn-cu12>=9.15"),
        ("2.9.0+cu130", 91300, "13.0", "is not used for 3D convolutions", "torch>=2.10"),
        ("2.9.0+cu130", 91501, "13.0", "is not used for 3D convolutions", "torch>=2.10"),
        ("2.9.1+cu130", 91300, "13.0", "unless tensors lie channels last", "nvidia-cudnn-cu13>=9.15"),
        ("2.10.0a0+git12ab345", 91002, "12.6", "unless tensors lie channels last", "nvidia-cudnn-cu12>=9.15"),
    ],
)
def test_a_known_pair_is_told_once_with_its_issue_and_what_to_install(version, cudnn, cuda, what, remedy) -> None:
    ((text, advice),) = known_faults(version, cudnn, cuda)
    assert what in text and remedy in advice and "https://github.com/pytorch/pytorch/issues/" in text


@pytest.mark.parametrize(
    ("version", "cudnn", "cuda"),
    [
        ("2.6.0+cu124", 90100, "12.4"),
        ("2.7.0+cu126", 90701, "12.6"),
        ("2.9.1+cu130", 91500, "13.0"),
        ("2.11.0+cu130", 91900, "13.0"),
        ("2.14.1", 92100, "13.0"),
        ("2.9.0+cpu", None, None),
        ("2.9.0+rocm6.4", 3003000, None),  # MIOpen's
    ],
)
def test_sound_pairs_are_not_complained_of(version, cudnn, cuda) -> None:
    assert known_faults(version, cudnn, cuda) == []


def test_no_two_rows_are_of_one_pair() -> None:
    for torch_minor in range(6, 16):
        for cudnn_minor in range(30):
            assert sum(fault.meets((2, torch_minor, 0), (9, cudnn_minor, 0)) for fault in FAULTS) <= 1


def test_doctor_and_the_first_lines_of_a_training_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = doctor._cudnn("2.8.0", 91002, "12.8")
    assert "wrong numbers" in finding.text and "pip install -U 'nvidia-cudnn-cu12>=9.15'" in finding.advice
    (finding,) = doctor._cudnn("2.11.0", 91900, "13.0")
    assert finding.text == "91900, no fault known with this PyTorch" and not finding.advice
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91300)
    (sentence,) = cudnn_remarks(torch.device("cuda", 0), "bf16")
    assert sentence.startswith("cuDNN 9.13.0 is not used") and "pip install -U 'nvidia-cudnn-cu13>=9.15'" in sentence
    assert cudnn_remarks(torch.device("cuda", 0), "fp32") == cudnn_remarks(torch.device("cpu"), "bf16") == []


def test_doctor_compares_a_bf16_convolution_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor._convolution(torch, "cpu")
    assert "times as fast as in float32 on cpu, relative error 0.00" in finding.text and "wrong" not in finding.advice
    seconds = {torch.float32: 1.0, torch.bfloat16: 4.0}
    monkeypatch.setattr(doctor, "_seconds_of_step", lambda torch, layer, x: seconds[x.dtype])
    finding = doctor._convolution(torch, "cpu")
    assert finding.text.startswith("3x3x3 in bf16 0.25 times as fast") and "install another cuDNN" in finding.advice
    seconds[torch.bfloat16] = 0.5
    assert doctor._convolution(torch, "cpu").advice == ""
    right = torch.nn.Conv3d.forward
    for broken in (lambda y: y * 1.1, lambda y: y * float("nan")):

        def forward(layer, x, broken=broken):
            y = right(layer, x)
            return broken(y) if x.dtype == torch.bfloat16 else y

        monkeypatch.setattr(torch.nn.Conv3d, "forward", forward)
        assert "its numbers are wrong" in doctor._convolution(torch, "cpu").advice


def test_a_gpu_without_room_for_the_convolution_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(torch, layer, x) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 50.00 MiB.\nMore of it")

    monkeypatch.setattr(doctor, "_seconds_of_step", fail)
    finding = doctor._convolution(torch, "cpu")
    assert finding.text == "3x3x3 on cpu fails: CUDA out of memory. Tried to allocate 50.00 MiB."
