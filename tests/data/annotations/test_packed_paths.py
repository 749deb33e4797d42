"""What a large table costs: bytes, the peak while it is read, and what a spawned worker adds."""

import pickle
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from videornn.data.annotations.load import load_videos
from videornn.data.annotations.packed_paths import PackedPaths, PathPacker

NUM_ROWS = 650_000


def _pack(paths: list[str]) -> PackedPaths:
    packer = PathPacker()
    for path in paths:
        packer.append(path)
    return packer.pack()


def test_paths_come_back_as_they_were(tmp_path: Path) -> None:
    generator = random.Random(0)
    paths = [f"/data/é/{'x' * generator.randrange(300)}/\udcff {i}.mp4" for i in range(5000)]  # some 700 KB: several chunks
    packed = _pack(paths)
    assert list(packed) == paths and packed[-1] == paths[-1]
    assert packed.num_bytes < sum(map(len, paths)) + 13 * len(paths)
    for rows in (np.arange(5000)[::-1].copy(), np.array([7, 4999, 7]), np.array([], int)):
        taken = packed.take(rows)
        assert list(taken) == [paths[row] for row in rows]
    assert packed.take(np.array([7, 4999])).num_bytes < 2000
    with pytest.raises(IndexError):
        packed[5000]


@pytest.mark.parametrize("paths", [[], ["one"], ["same", "same"], ["ab", "a"], ["", "a"], ["é", "è"]])
def test_a_shared_beginning_may_be_all_part_or_none_of_a_path(paths: list[str]) -> None:
    assert list(_pack(paths)) == paths


@pytest.fixture(scope="module")
def large_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list like that of Kinetics-700."""
    path = tmp_path_factory.mktemp("large") / "train.txt"
    generator = random.Random(0)
    with open(path, "w") as file:
        for row in range(NUM_ROWS):
            video = f"{generator.getrandbits(55):011x}"[-11:]
            file.write(f"/data/kinetics700/train/some class name {row % 700:03d}/{video}_000012_000022.mp4 {row % 700}\n")
    return path


def _run(program: str, *arguments: object) -> dict[str, float]:
    """Numbers that a program prints as `name value` lines, run in a process of its own."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("memory is read from Linux's /proc")
    memory = textwrap.dedent(
        """
        import re, sys
        from videornn.data.annotations.load import VideoTable, load_videos
        def kilobytes(process, file, name):
            return sum(map(int, re.findall(rf"^{name}:\\s+(\\d+) kB", open(f"/proc/{process}/{file}").read(), re.M)))
        """
    )
    command = [sys.executable, "-c", memory + textwrap.dedent(program), *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    return {name: float(value) for name, value in (line.split() for line in finished.stdout.splitlines())}


@pytest.mark.slow
def test_650000_videos_take_less_than_100_mb_also_while_they_are_read(large_list: Path) -> None:
    numbers = _run(
        """
        open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here on
        before = kilobytes("self", "status", "VmRSS")
        table = load_videos(sys.argv[1])
        print("peak", kilobytes("self", "status", "VmHWM") - before)
        print("bytes", table.num_bytes)
        print("rows", len(table))
        """,
        large_list,
    )
    assert numbers["rows"] == NUM_ROWS
    assert numbers["bytes"] < 50e6
    assert numbers["bytes"] / 1e3 < numbers["peak"] < 80_000  # kB
    table = load_videos(str(large_list))
    with open(large_list) as file:
        for row, line in enumerate(file):
            if row % 6500 == 0 or row == NUM_ROWS - 1:
                path, label = line.rsplit(" ", 1)
                assert table[row] == (path, int(label))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_shares_the_table(large_list: Path, tmp_path: Path, method: str) -> None:
    (tmp_path / "small.txt").write_text("a.mp4 0\n" * 100)
    program = r"""
        from torch.utils.data import DataLoader

        def main(name, path):
            table = load_videos(path)
            rows = range(0, len(table), max(1, len(table) // 1000))
            options = {"batch_size": None, "collate_fn": tuple, "num_workers": 1, "multiprocessing_context": sys.argv[3]}
            batches = iter(DataLoader(table, sampler=rows, **options))
            assert [next(batches) for _ in rows] == [table[row] for row in rows]
            worker = batches._workers[0].pid
            print(f"private_{name}", kilobytes(worker, "smaps_rollup", r"Private_\w+"))
            # without the pages of files: how many processes share those of torch is not up to this test
            print(f"together_{name}", sum(kilobytes(pid, "smaps_rollup", "Pss_(?:Anon|Shmem)") for pid in ("self", worker)))
        main("small", sys.argv[1])
        main("large", sys.argv[2])
        """
    numbers = _run(program, tmp_path / "small.txt", large_list, method)
    table = len(pickle.dumps(load_videos(str(large_list)))) / 1e3
    assert numbers["private_large"] - numbers["private_small"] < 5_000  # kB
    assert numbers["together_large"] - numbers["together_small"] < table + 25_000
