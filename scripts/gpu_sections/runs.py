"""Check whole commands: a run killed and resumed, a test of many views, and the tests marked "cuda"."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from gpu_sections.scope import Row, Scope
from videornn.data.synthetic.make import make_synthetic
from videornn.evaluation.evaluate import evaluate
from videornn.models.forward import Normalize, predict_logits

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/quickstart.yaml"
OUTCOME = re.compile(r"^(FAILED|ERROR) (\S+)(?: - (.*))?", re.MULTILINE)


def resume(scope: Scope) -> Iterator[Row]:
    """Train from files twice, uninterrupted and killed (SIGKILL) after a checkpoint and resumed, and compare bits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        settings = _on_new_videos(scope, folder / "data", num_train=6 if scope.on_gpu else 1)
        yield {"what": "videos drawn and encoded", "seconds": time.perf_counter() - start}
        settings += ["train.deterministic=true", "train.save_every_steps=5", "train.log_every=5", "train.precise_bn=2"]
        settings += ["train.epochs=3" if scope.on_gpu else "train.epochs=4"]
        start = time.perf_counter()
        whole = _run(_train(folder / "whole", settings))
        yield _outcome("a run in one go", whole, time.perf_counter() - start)
        if whole.returncode:
            return
        start = time.perf_counter()
        command = _train(folder / "killed", settings)
        killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while killed.poll() is None and not list((folder / "killed").glob("checkpoints/*.pt")):
            time.sleep(0.01)
        killed.kill()
        died = killed.wait() == -signal.SIGKILL
        resumed = _run([*command, "--resume"])
        yield _outcome("killed and resumed", resumed, time.perf_counter() - start) | {"ok": died and not resumed.returncode}
        if resumed.returncode == 0:
            whole, resumed = (_weights(folder / run / "checkpoints/last.pt") for run in ("whole", "killed"))
            differing = [key for key, value in whole.items() if not torch.equal(value, resumed[key])]
            yield {"what": "bits of the weights", "differ": len(differing), "of": len(whole), "ok": not differing}


def test(scope: Scope) -> Iterator[Row]:
    """Time a test of 30 views a video from files against the network alone on views in memory."""
    with tempfile.TemporaryDirectory() as name:
        folder, (frames, size, _) = Path(name), scope.clip_size
        settings = _on_new_videos(scope, folder / "data", num_train=1)
        settings += [f"data.num_frames={frames}", f"data.crop_size={size}", f"data.short_side=[{size},{size}]"]
        settings += [f"test.crop_size={size}", f"test.short_side={size}", "test.batch_size=8"]
        settings += ["test.num_clips=10", "test.num_crops=3", "train.epochs=1", "train.warmup_epochs=0", "train.val_every=1"]
        settings += ["model.depth=50", "model.width=64", "data.num_workers=12"] if scope.on_gpu else []
        run = _run(_train(folder / "run", settings))
        if run.returncode:
            yield _outcome("a run to test", run, 0.0)
            return
        start = time.perf_counter()
        summary, _ = evaluate(folder / "run/checkpoints/last.pt", [], folder / "test", lambda *_: None)
        seconds = time.perf_counter() - start
        model, num_views = scope.network("slow", "dnl").eval(), 300
        clips = torch.zeros(num_views // 4, 3, *scope.clip_size, dtype=torch.uint8)
        normalize = Normalize([0.45] * 3, [0.45] * 3, scope.device)
        start = time.perf_counter()
        predict_logits(model, normalize, clips, precision=scope.precision, views_at_once=24)
        alone = (time.perf_counter() - start) * num_views / len(clips)
        yield {
            "what": f"10 videos of 30 views, {frames} x {size} x {size}",
            "seconds": seconds,
            "of the network alone": alone,
            "videos scored": summary["num_videos"],
            "ok": summary["num_videos"] == 10,
        }


def _on_new_videos(scope: Scope, folder: Path, *, num_train: int) -> list[str]:
    """Make videos and return the settings of a run on them."""
    make_synthetic(folder, num_train=num_train, num_val=1, num_test=1)
    settings = [f"data.{split}={folder}/{split}.txt" for split in ("train", "val", "test")]
    settings += [f"device={scope.device_name}", f"train.precision={scope.precision}", "train.batch_size=8"]
    if scope.on_gpu:
        return [*settings, "data.num_workers=4"]
    sizes = ["data.num_frames=4", "data.crop_size=32", "data.short_side=[32,40]", "test.crop_size=32", "test.short_side=32"]
    return [*settings, *sizes, "model.width=8", "data.num_workers=0"]


def _train(out: Path, settings: list[str]) -> list[str]:
    return [sys.executable, "-m", "videornn", "train", str(CONFIG), *settings, "--out", str(out)]


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _outcome(what: str, done: subprocess.CompletedProcess, seconds: float) -> Row:
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or [""]
    said = [line for line in lines if "clips/s" in line] or lines
    return {"what": what, "seconds": seconds, "said": said[-1][:200], "ok": done.returncode == 0}


def _weights(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value for key, value in content["model"].items() if isinstance(value, torch.Tensor)}


def cuda_tests(scope: Scope) -> Iterator[Row]:
    """Run pytest -m cuda: what failed, and how many passed."""
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", "tests/training/test_no_waiting.py", "-m", "cuda"]
    command += ["-q", "-rA", "--no-header", "-p", "no:cacheprovider", "--tb=short", "--show-capture=stdout"]
    if find_spec("xdist") and scope.on_gpu:
        command += ["--numprocesses=4", "--dist=load"]
    log = scope.out / "cuda_tests.log"
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    text = log.read_text(encoding="utf-8", errors="replace")
    for outcome, name, reason in OUTCOME.findall(text):
        yield {"what": name, "is": f"{outcome}: {reason[:200]}", "ok": False}
    last = next((line for line in reversed(text.splitlines()) if " in " in line), "nothing")
    row = {"what": "pytest -m cuda", "is": last.strip("= "), "exit code": done.returncode}
    yield row | ({"ok": done.returncode == 0} if scope.on_gpu else {})
