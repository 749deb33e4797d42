"""torchrun on one node and on two, elastic restarts, preemption, and the SLURM script; gloo on the CPU."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import CommandOnRanks
from helpers import CONFIG, ROOT

from videornn.checkpoints.checkpoint import load_checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
NAMESPACES = ("videornn-a", "videornn-b")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tiny_settings: list[str]) -> list[str]:
    """A run of 20 steps without a validation, whose ranks wait two minutes for each other."""
    return [*tiny_settings, "data.val=null", "train.epochs=10", "train.timeout=120"]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    # one thread for each rank wherever it runs, so that sums are added in the same order
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two ranks on one node that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ranks = CommandOnRanks(2, folder / "logs", *_arguments(settings, folder / "run"))
    assert ranks.wait() == [0, 0], ranks.said()
    return folder / "run"


def _arguments(settings: list[str], out: Path) -> list[str]:
    return ["train", str(CONFIG), *settings, "--out", str(out), "--resume"]


def _train(settings: list[str], out: Path) -> list[str]:
    return ["-m", "videornn", *_arguments(settings, out)]


def _go_on(settings: list[str], out: Path, step: int) -> None:
    """Take a stopped run to its end."""
    ranks = CommandOnRanks(2, out.parent / "logs", *_arguments(settings, out))
    assert ranks.wait() == [0, 0] and f"going on after step {step}" in ranks.said(), ranks.said()


def _assert_same_end(ours: Path, theirs: Path) -> None:
    mine, other = (load_checkpoint(run / "checkpoints/last.pt") for run in (ours, theirs))
    assert mine["step"] == other["step"] == 20
    for key, value in other["model"].items():
        assert torch.equal(mine["model"][key], value), key


def _pid_of_rank(number: int, torchrun: int) -> int:
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"\0RANK={number}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"torchrun {torchrun} has no rank {number}")


def _started(command: list[str], environment: dict[str, str], until: str) -> subprocess.Popen:
    """A command that has written some text; the rest of its output is for communicate()."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if until in line:
            return process
    raise AssertionError(process.communicate()[1][-3000:])


def test_a_rank_that_is_killed_is_named_and_the_restarted_run_ends_alike(
    undisturbed: Path, settings: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--max_restarts=2", *_train(settings, tmp_path / "run")]
    with _started(command, environment, "step 7/") as process:
        victim = _pid_of_rank(1, process.pid)
        os.kill(victim, signal.SIGKILL)
        output, complaint = process.communicate(timeout=600)
    assert process.returncode == 0, complaint[-5000:]
    assert f"process {victim}) has not been heard of since step" in complaint
    assert re.search(r"going on after step \d", output)
    _assert_same_end(tmp_path / "run", undisturbed)


def test_torchrun_passes_sigterm_on_and_all_ranks_stop_after_the_same_saved_step(
    undisturbed: Path, settings: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", *_train(settings, tmp_path / "run")]
    with _started(command, environment, "step 3/") as process:
        process.terminate()
        _, complaint = process.communicate(timeout=600)
    assert process.returncode == 1  # torchrun's own, whatever the ranks return
    stopped = load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"]
    assert 3 <= stopped < 20
    assert complaint.count(f"videornn: stopped by SIGTERM after step {stopped}, which is saved") == 1
    _go_on(settings, tmp_path / "run", stopped)
    _assert_same_end(tmp_path / "run", undisturbed)


def test_an_error_of_one_rank_is_one_sentence_without_a_traceback_of_ours(
    settings: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """The list is not there for rank 1 only."""
    (tmp_path / "rank.sh").write_text('[ "$RANK" = 1 ] && set -- "$@" data.train=nowhere.txt\nexec "$@"\n')
    ours = [sys.executable, *_train(settings, tmp_path / "run")]
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--no-python", "bash", f"{tmp_path}/rank.sh", *ours]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 1
    assert len(re.findall("^videornn: .*nowhere.txt", finished.stderr, re.M)) == 1
    assert "[rank" not in finished.stderr and "videornn/training/train.py" not in finished.stderr


@pytest.fixture
def two_nodes():
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, joined by a cable; skipped where they cannot be made."""

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def remove() -> None:
        for name in NAMESPACES:  # the cable goes with them
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need ip and root")
    remove()
    try:
        for name in NAMESPACES:
            ip("netns", "add", name)
        ip("link", "add", "vrn0", "netns", NAMESPACES[0], "type", "veth", "peer", "name", "vrn0", "netns", NAMESPACES[1])
        for number, name in enumerate(NAMESPACES, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "vrn0")
            ip("-n", name, "link", "set", "vrn0", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    yield NAMESPACES
    remove()


def _on_node(number: int, command: list[str]) -> list[str]:
    """torchrun's command on node number of two."""
    launcher = [
        *TORCHRUN,
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=10.77.0.1:29400",
        "--rdzv_id=test",
        f"--rdzv_conf=is_host={number == 0}",  # no name of this host leads to that address
        f"--local_addr=10.77.0.{number + 1}",
    ]
    return ["ip", "netns", "exec", NAMESPACES[number], *launcher, *command]


def test_two_nodes_end_with_the_weights_of_two_ranks_on_one(
    two_nodes: tuple[str, str], undisturbed: Path, settings: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    command = _train(settings, tmp_path / "run")
    environment = environment | {"GLOO_SOCKET_IFNAME": "vrn0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    nodes = [subprocess.Popen(_on_node(number, command), env=environment, **pipes) for number in range(2)]
    try:
        complaints = [process.communicate(timeout=600)[1] for process in nodes]
    finally:
        for process in nodes:
            process.kill()
    assert [process.returncode for process in nodes] == [0, 0], complaints
    _assert_same_end(tmp_path / "run", undisturbed)


SHIMS = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "scontrol $*" >> "$LOG"; fi',
    "scancel": 'echo "scancel $*" >> "$LOG"; kill -TERM "$(cat "$LOG.torchrun")"',
    # its own options end where the command begins
    "srun": 'echo "$1" > "$LOG.srun"; while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "torchrun": """echo $$ > "$LOG.torchrun"; echo "torchrun $*" >> "$LOG"
[ -n "$ONLY_LOG" ] && exit
exec "$PYTHON" -m torch.distributed.run "${@/#--nproc_per_node=gpu/--nproc_per_node=2}" """,
}


def test_the_slurm_script_saves_requeues_and_goes_on(
    undisturbed: Path, settings: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "scripts/train.slurm")], check=True)
    (tmp_path / "bin").mkdir()
    for name, text in SHIMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    log, out, job = tmp_path / "log", tmp_path / "run", str(os.getpid())
    environment = environment | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "LOG": str(log),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_CPUS_PER_TASK": "6",
    }
    command = ["bash", str(ROOT / "scripts/train.slurm"), str(CONFIG), *settings, "--out", str(out)]
    with _started(command, environment, "step 3/") as process:
        process.send_signal(signal.SIGUSR1)
        output, complaint = process.communicate(timeout=600)
    assert process.returncode != 0 and "back into the queue" in output, complaint[-3000:]
    launched, *rest = log.read_text().splitlines()
    assert "--nnodes=1 --nproc_per_node=gpu --max_restarts=3 --rdzv_backend=c10d --rdzv_endpoint=localhost:" in launched
    assert launched.endswith(f"--out {out} --resume") and f"--rdzv_id={job}.0 " in launched
    assert (tmp_path / "log.srun").read_text() == "--cpus-per-task=6\n"
    assert rest == [f"scancel --signal=TERM {job}", f"scontrol requeue {job}"]
    stopped = load_checkpoint(out / "checkpoints/last.pt")["step"]
    assert f"stopped by SIGTERM after step {stopped}, which is saved" in complaint
    environment |= {"SLURM_RESTART_COUNT": "1", "ONLY_LOG": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    assert log.read_text().splitlines()[-1] == launched.replace(f"--rdzv_id={job}.0 ", f"--rdzv_id={job}.1 ")
    _go_on(settings, out, stopped)
    _assert_same_end(out, undisturbed)
