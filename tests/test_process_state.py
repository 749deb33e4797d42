"""Called as a library, in a notebook, a server's thread or a worker of Ray, a job leaves the process as it found it."""

import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import av.logging
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from helpers import CONFIG

from videornn.checkpoints.trained import load_trained
from videornn.config import load_config
from videornn.distributed.signals import caught_signals, handled_by
from videornn.evaluation.evaluate import evaluate
from videornn.explain import explain
from videornn.inference.predictor import load_predictor
from videornn.report import write_report
from videornn.system.device import tuned
from videornn.system.workers import imported_once
from videornn.tools.info import describe
from videornn.training.train import train

CPU = torch.device("cpu")


def _state() -> dict[str, Any]:
    """What belongs to the whole process, or to its thread, as far as anything of ours could change it."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "matplotlib": dict(matplotlib.rcParams.items()),
        "figures of pyplot": plt.get_fignums(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic, warnings only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled memory": torch.utils.deterministic.fill_uninitialized_memory,
        "kernels": (cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32),
        "precision of products": torch.get_float32_matmul_precision(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random numbers of torch": torch.get_rng_state().tolist(),
        "random numbers of Python": random.getstate(),
        "random numbers of numpy": [np.asarray(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "process group": torch.distributed.is_initialized(),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "processes": (multiprocessing.get_start_method(), torch.multiprocessing.get_sharing_strategy()),
        "preloaded": list(forkserver._forkserver._preload_modules),
        "backends of torchvision": (torchvision.get_image_backend(), torchvision.get_video_backend()),
        "FFmpeg's log": av.logging.get_level(),
        "largest picture": PIL.Image.MAX_IMAGE_PIXELS,
        "garbage": (gc.isenabled(), gc.get_freeze_count(), gc.get_threshold(), gc.get_debug()),
        "Python": (list(sys.path), sys.excepthook, threading.excepthook, sys.stdout, sys.stderr, sys.getrecursionlimit()),
        "system": (os.getcwd(), locale.setlocale(locale.LC_ALL), socket.getdefaulttimeout()),
    }


@contextmanager
def _unusual() -> Iterator[None]:
    """A process of somebody who has chosen all that we could choose otherwise."""
    backend, rng = matplotlib.get_backend(), torch.get_rng_state()
    handler = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        matplotlib.use("svg")
        torch.backends.cudnn.benchmark = True
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(1)
        torch.manual_seed(4711)
        yield
    finally:
        matplotlib.use(backend)
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(False)
        torch.set_rng_state(rng)
        signal.signal(signal.SIGTERM, handler)


def _train(run: Path, settings: list[str], out: Path) -> None:
    more = ["train.epochs=2", "train.deterministic=true", "data.num_workers=1", "data.val=null"]
    train(load_config(CONFIG, [*settings, *more]), out / "trained")
    assert (out / "trained/checkpoints/last.pt").is_file()


def _test(run: Path, settings: list[str], out: Path) -> None:
    result, _ = evaluate(run / "checkpoints/last.pt", ["data.num_workers=1"], out / "test", lambda done, total: None)
    assert result["num_scored"] == 10


def _explain(run: Path, settings: list[str], out: Path) -> None:
    video = next(Path(settings[0].partition("=")[2]).parent.glob("videos/test/*/*.mp4"))
    assert len(explain(load_trained(run / "checkpoints/last.pt"), str(video), out / "maps", [], movies=False)) > 3


def _infer(run: Path, settings: list[str], out: Path) -> None:
    videos = list(Path(settings[0].partition("=")[2]).parent.glob("videos/test/*/*.mp4"))[:2]
    predictor = load_predictor(run / "checkpoints/last.pt")
    assert [prediction.error for prediction in predictor.predict_many(videos)] == [None, None]
    assert list(predictor.windows(videos[0]))


def _report(run: Path, settings: list[str], out: Path) -> None:
    assert write_report(run, out / "report.html").is_file()


def _info(run: Path, settings: list[str], out: Path) -> None:
    assert describe(run / "checkpoints/last.pt", []).row_count > 5


JOBS = [_train, _test, _explain, _infer, _report, _info]


@pytest.mark.parametrize("place", ["main thread", "other thread"])
@pytest.mark.parametrize("job", JOBS, ids=[job.__name__.strip("_") for job in JOBS])
def test_a_job_leaves_the_process_as_it_was(
    job: Callable[..., None], place: str, tiny_run: Path, tiny_settings: list[str], tmp_path: Path
) -> None:
    results: list[Any] = []

    def call() -> None:
        try:
            before = _state()
            job(tiny_run, tiny_settings, tmp_path)
            results.extend([before, _state()])
        except Exception as error:
            results.append(error)

    with _unusual():
        if place == "main thread":
            call()
        else:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
    if isinstance(results[-1], Exception):
        raise results[-1]
    before, after = results
    assert [name for name in before if before[name] != after[name]] == []


def test_kernels_threads_and_random_numbers_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with _unusual():
        before = _state()
        with pytest.raises(KeyError), tuned(CPU, deterministic=False):
            assert not torch.are_deterministic_algorithms_enabled()
            torch.set_num_threads(2)
            torch.manual_seed(1)
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as tune does for a GPU
            raise KeyError
        assert _state() == before


def test_signals_are_left_alone_where_they_are_not_ours_to_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    seen = []

    def elsewhere() -> None:
        with caught_signals() as received:
            seen.append([received, {number: signal.getsignal(number) for number in before}])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [[[], before]]  # Python refuses handlers of any thread but the main one
    foreign = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else signal.SIGTERM
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == foreign else before[number])
    with handled_by(signal.SIG_IGN, (signal.SIGTERM, foreign)) as handlers:
        assert foreign not in handlers  # set by C code: Python can neither tell nor put back what it was


def test_the_list_of_what_a_server_of_workers_imports_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", ["__main__", "json"])
    with imported_once("videornn.data.loader", "forkserver"):
        assert forkserver._forkserver._preload_modules == ["json", "videornn.data.loader"]
    assert forkserver._forkserver._preload_modules == ["__main__", "json"]


@pytest.mark.slow
def test_imports_choose_no_backend_of_matplotlib() -> None:
    program = """
        import importlib, pkgutil, signal, sys
        import matplotlib, torch
        handlers, backend = signal.getsignal(signal.SIGTERM), dict.get(matplotlib.rcParams, "backend")
        import videornn
        for module in pkgutil.walk_packages(videornn.__path__, "videornn."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        assert dict.get(matplotlib.rcParams, "backend") is backend
        assert signal.getsignal(signal.SIGTERM) is handlers and not torch.are_deterministic_algorithms_enabled()
    """
    finished = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
