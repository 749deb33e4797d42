"""scripts/ablate_attention.py: numbers against loops, runs by a stand-in of videornn, and once the whole with real ones."""

import csv
import importlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import CONFIG, ROOT
from PIL import Image

SCRIPTS = ROOT / "scripts"
# what videornn train and test leave behind, in no time; GPUs and commands go into a file
STAND_IN = """#!/bin/bash
trap 'echo "saved" >> $EVENTS; exit 130' INT TERM
out=; last=; for word; do [ "$last" = --out ] && out=$word; last=$word; done
echo "begin $CUDA_VISIBLE_DEVICES $*" >> $EVENTS
case "$out" in *broken*) echo "videornn: this row is broken"; exit 2;; esac
sleep ${SECONDS_EACH:-0.02} & wait $!
case " $* " in *" test "*)
    mkdir -p "$out"; printf 'path,correct\\na,1\\nb,0\\n' > "$out/predictions.csv"
    echo '{"video_top1": 50.0}' > "$out/metrics.json";;
esac
echo "end $CUDA_VISIBLE_DEVICES" >> $EVENTS
"""


@pytest.fixture(scope="module")
def ablation() -> SimpleNamespace:
    """The script and its parts as modules."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        names = ("ablate_attention", "ablation_results", "ablation_runs", "ablation_steps")
        return SimpleNamespace(**{name.rpartition("_")[2]: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture
def events(ablation: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-in was asked, which takes the place of Python."""
    monkeypatch.setattr(ablation.runs, "POLL_SECONDS", 0.01)
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setenv("EVENTS", str(tmp_path / "events"))
    (tmp_path / "events").touch()
    return tmp_path / "events"


def _jobs(ablation: SimpleNamespace, folder: Path, rows: list[str], seeds: int = 1) -> list:
    names = [(row, seed) for seed in range(seeds) for row in rows]
    return [
        ablation.runs.Job(row, seed, folder / row / f"seed{seed}", CONFIG, ["a=b", "test.num_clips=3"], "best")
        for row, seed in names
    ]


def _tests() -> dict[str, dict[int, dict]]:
    """Two rows and the baseline of three seeds on 40 videos, one of which is there twice."""
    generator = torch.Generator().manual_seed(0)
    videos = [(f"video {number}", 0) for number in range(39)] + [("video 0", 1)]
    rates = {"none": 0.4, "nl": 0.5, "dnl": 0.8}
    return {
        row: {
            seed: dict(zip(videos, (torch.rand(40, generator=generator) < rate).tolist(), strict=True)) for seed in (0, 1, 2)
        }
        for row, rate in rates.items()
    }


def test_numbers_of_a_row_are_those_of_loops(ablation: SimpleNamespace) -> None:
    tests = _tests()
    del tests["dnl"][1]
    tests["nl"][0] |= {("only here", 0): True}
    found = ablation.results.summarize(tests, {})
    assert (found["num_videos"], found["num_left_out"], list(found["rows"])) == (40, 1, ["none", "nl", "dnl"])
    dnl, nl = found["rows"]["dnl"], found["rows"]["nl"]
    videos = list(tests["none"][0])
    top1 = {seed: 100 * sum(tests["dnl"][seed][video] for video in videos) / 40 for seed in (0, 2)}
    assert ablation.results.top1_text(dnl, 3).endswith("(2 of 3 seeds)")
    assert dnl["seeds"] == [0, 2] and dnl["top1"] == pytest.approx(list(top1.values()))
    assert dnl["top1_mean"] == pytest.approx(statistics.mean(top1.values()))
    assert dnl["top1_sd"] == pytest.approx(abs(top1[0] - top1[2]) / math.sqrt(2))
    pairs_of = {seed: [(tests["dnl"][seed][video], tests["nl"][seed][video]) for video in videos] for seed in (0, 2)}
    pairs = pairs_of[0] + pairs_of[2]
    assert dnl["to_nl"]["seeds"] == [0, 2] and nl["to_nl"] is None
    assert dnl["to_nl"]["mean"] == pytest.approx(100 * sum(a - b for a, b in pairs) / 80)
    for pairs, p in zip(pairs_of.values(), dnl["to_nl"]["mcnemar"], strict=True):
        only_a, only_b = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
        assert p == pytest.approx(min(2 * tail, 1))
    assert dnl["to_nl"]["low"] < dnl["to_nl"]["mean"] < dnl["to_nl"]["high"]


def test_a_test_is_read_by_path_and_by_how_often_a_path_was_there(ablation: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("path,label,correct\na,x,1\n'=b,x,0\na,x,0\n")
    assert ablation.results.read_test(tmp_path) == {("a", 0): True, ("=b", 0): False, ("a", 1): False}


def test_maps_are_those_of_the_last_line_of_a_training(ablation: SimpleNamespace, tmp_path: Path) -> None:
    assert ablation.results.read_maps(tmp_path) == {}
    records = [
        {"kind": "train", "res3.0/effective_keys": 0.5},
        {"kind": "train", "loss": 1.0, "res3.0/effective_keys": 0.25},
    ]
    lines = [json.dumps(record) for record in [*records, {"kind": "val", "top1": 50.0}]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert ablation.results.read_maps(tmp_path) == {"res3.0/effective_keys": 0.25}


def test_markdown_csv_and_json_say_the_same_and_the_picture_is_there(ablation: SimpleNamespace, tmp_path: Path) -> None:
    cost = ablation.steps.Cost(parameters=1_234_567, flops=64.18e9, step_ms=12.34, step_mb=567.8)
    document = {"seeds": [0, 1, 2], "about": "About.", "title": "title", "notes": ["A note."]}
    document |= {"formulas": {row: f"formula of {row}" for row in ("none", "nl", "dnl")}}
    document |= ablation.results.summarize(_tests(), {"dnl": cost})
    maps = {row: {seed: {} for seed in (0, 1, 2)} for row in ("none", "nl", "dnl")}
    maps["dnl"] = {seed: {"res3.0/effective_keys": 0.1 + seed, "res3.0/query_dependence": 0.5} for seed in (0, 1, 2)}
    ablation.results.add_maps(document["rows"], maps)
    paths = ablation.results.write_results(tmp_path, document)
    assert [path.name for path in paths] == ["ablation.md", "ablation.csv", "ablation.json", "ablation.png"]
    assert json.loads(paths[2].read_text()) == json.loads(json.dumps(document))
    rows = {row["row"]: row for row in csv.DictReader(paths[1].read_text().splitlines())}
    lines = [re.split(r" *\| *", line)[1:-1] for line in paths[0].read_text().splitlines() if line.startswith("| `")]
    table, of_seeds = {line[0].strip("`"): line for line in lines[:3]}, {line[0].strip("`"): line for line in lines[3:6]}
    assert lines[6:] == [["`dnl`", "res3.0", "0.100 to 2.100", "0.500", ""]]
    assert list(rows) == list(table) == list(of_seeds) == ["none", "nl", "dnl"]
    for name, row in rows.items():
        numbers = document["rows"][name]
        assert float(row["top1_mean"]) == numbers["top1_mean"] and float(row["top1_sd"]) == numbers["top1_sd"]
        assert table[name][2] == f"{float(row['top1_mean']):.2f} ± {float(row['top1_sd']):.2f}"
        assert of_seeds[name][1:] == [f"{float(row[f'top1_seed{seed}']):.2f}" for seed in (0, 1, 2)]
        for column, base in ((3, "none"), (4, "nl")):
            if name == base:
                assert table[name][column] == row[f"to_{base}_mean"] == ""
                continue
            mean, low, high = (float(row[f"to_{base}_{key}"]) for key in ("mean", "low", "high"))
            assert [mean, low, high] == [numbers[f"to_{base}"][key] for key in ("mean", "low", "high")]
            p = [float(row[f"to_{base}_{key}"]) for key in ("p_least", "p_most")]
            assert p == [choose(numbers[f"to_{base}"]["mcnemar"]) for choose in (min, max)]
            assert table[name][column].startswith(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]; ")
            assert [float(word.strip("<")) for word in table[name][column].split("; ")[1].split(" to ")] == [
                pytest.approx(value, rel=0.06, abs=1e-4) for value in p
            ]
    assert table["dnl"][5:] == ["1.235", "64.18", "12.3", "568"] and table["nl"][5:] == [""] * 4
    assert rows["dnl"]["parameters"] == "1234567" and rows["nl"]["parameters"] == ""
    assert Image.open(paths[3]).size[0] > 800


def test_each_gpu_has_one_run_at_a_time_and_finished_runs_are_not_done_again(
    ablation: SimpleNamespace, events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = _jobs(ablation, tmp_path, ["none", "nl", "dnl"], seeds=2)
    assert ablation.runs.run_all(jobs, ["0", "3"]) == (0, [])
    lines = events.read_text().splitlines()
    busy: set[str] = set()
    for line in lines:
        event, gpu = line.split()[:2]
        assert (gpu in busy) == (event == "end")
        busy ^= {gpu}
    assert not busy and {line.split()[1] for line in lines} == {"0", "3"}
    assert sum(" train " in line for line in lines) == sum(" test " in line for line in lines) == 6
    assert all(f"train {CONFIG} a=b test.num_clips=3 --out {tmp_path}" in line for line in lines if " train " in line)
    assert sum("checkpoints/best.pt test.num_clips=3 --out" in line for line in lines) == 6
    said = capsys.readouterr().out
    assert said.count("started  ") == said.count("finished ") == 6 and "6 of 6 done, eta 0:00:00" in said
    assert ablation.runs.run_all(jobs, ["0"]) == (0, []) and events.read_text().splitlines() == lines


def test_a_group_of_gpus_is_one_run_of_several_ranks(ablation: SimpleNamespace, events: Path, tmp_path: Path) -> None:
    assert ablation.runs.run_all(_jobs(ablation, tmp_path, ["nl"]), ["2,5"]) == (0, [])
    begun = [line for line in events.read_text().splitlines() if line.startswith("begin")]
    assert len(begun) == 2
    for line in begun:
        assert line.startswith("begin 2,5 -m torch.distributed.run --standalone --nproc_per_node=2 -m videornn t")


def test_a_row_that_fails_stops_no_other_and_is_named(
    ablation: SimpleNamespace, events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = _jobs(ablation, tmp_path, ["none", "broken", "nl"])
    after = ablation.runs.Job("dnl", 0, tmp_path / "dnl/seed0", CONFIG, [], "best", jobs[1])
    stop, failed = ablation.runs.run_all([*jobs, after], [None])
    assert stop == 0 and failed == [jobs[1]] and [job.done for job in jobs] == [True, False, True] and not after.done
    assert "broken seed 0 failed (exit code 2): videornn: this row is broken" in capsys.readouterr().err
    others = _jobs(ablation, tmp_path, ["broken 1", "broken 2", "later"])  # all would fail
    assert ablation.runs.run_all(others, [None])[1] == others[:1] and not others[2].log.exists()


def test_a_signal_stops_the_runs_which_save_and_the_next_start_goes_on(
    ablation: SimpleNamespace, events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECONDS_EACH", "60")
    jobs = _jobs(ablation, tmp_path, ["none", "nl", "dnl"])

    def interrupt() -> None:
        while events.read_text().count("begin") < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert ablation.runs.run_all(jobs, [None, None]) == (signal.SIGINT, [])
    thread.join()
    lines = [line.split()[0] for line in events.read_text().splitlines()]
    assert lines == ["begin", "begin", "saved", "saved"] and not any(job.done for job in jobs)
    monkeypatch.setenv("SECONDS_EACH", "0.01")
    assert ablation.runs.run_all(jobs, [None, None]) == (0, []) and all(job.done for job in jobs)


def test_a_second_signal_kills_runs_that_do_not_stop(
    ablation: SimpleNamespace, events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = Path(sys.executable)
    stand_in.write_text("#!/bin/bash\ntrap '' INT TERM\necho begin $$ >> $EVENTS\nwhile true; do sleep 0.05; done\n")
    monkeypatch.setattr("videornn.distributed.signals.REPEAT_SECONDS", 0.1)

    def interrupt() -> None:
        while not events.read_text().endswith("\n"):
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ablation.runs.run_all(_jobs(ablation, tmp_path, ["none"]), [None])
    thread.join()
    process = int(events.read_text().split()[1])
    give_up = time.monotonic() + 10
    with suppress(ChildProcessError):  # somebody has taken note of its death
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            assert time.monotonic() < give_up
            time.sleep(0.01)


def _main(ablation: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ablate_attention.py", *map(str, arguments)])
    return ablation.attention.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "nl", "dln"], "--rows dln: there is no such row; there are none, nl, pairwise"),
        (["--seeds", "0"], "--seeds 0: give 1 or more"),
        (["--gpus", "0", "cuda:1"], "--gpus cuda:1: give numbers of GPUs"),
        (["--baseline", "other.yaml"], "--baseline other.yaml: needs --init-from-baseline"),
        (["model.attention.kind=nl"], "model.attention.kind=nl: kind, scale and temperature of the blocks are what"),
        (["model.atention.places=1"], "unknown key 'model.atention"),
        (["data.train=nowhere.txt"], "nowhere.txt"),
        (["data.val=null", "data.test=null"], "there is nothing to test on"),
        (["model.attention.places={res3: [7]}"], "attention after block 7 of res3"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    ablation: SimpleNamespace,
    tiny_settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    settings = [word for word in arguments if "=" in word]
    options = arguments[: len(arguments) - len(settings)]
    code = _main(ablation, monkeypatch, CONFIG, *tiny_settings, *settings, "--out", tmp_path / "out", *options)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out/runs").exists()


def test_rows_of_a_seed_start_from_the_same_weights_and_other_settings_are_refused(
    ablation: SimpleNamespace,
    events: Path,
    tiny_settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ablation.attention, "sizes", lambda configs: {})  # which takes seconds
    command = [CONFIG, *tiny_settings, "--out", tmp_path / "out", "--seeds", "2", "--rows", "dnl", "none"]
    command += ["--init-from-baseline", "--step-rounds", "0"]
    assert _main(ablation, monkeypatch, *command) == 0
    trained = [line for line in events.read_text().splitlines() if " train " in line]
    inits = [re.search(r"seed=(\d) .*model.attention.kind=(\w+).* model.init=(\S+) --out", line) for line in trained]
    out = tmp_path / "out"
    assert [match.groups() for match in inits] == [
        (seed, kind, str(start))
        for seed in "01"
        for kind, start in (
            ("none", out / f"init/seed{seed}.pt"),
            ("none", out / f"runs/baseline/seed{seed}/checkpoints/best.pt"),
            ("dnl", out / f"runs/baseline/seed{seed}/checkpoints/best.pt"),
        )
    ]
    weights = [torch.load(out / f"init/seed{seed}.pt", weights_only=True)["model"] for seed in "01"]
    assert not torch.equal(*(state["res3.0.conv1.conv.weight"] for state in weights))
    assert list(json.loads((out / "ablation.json").read_text())["rows"]) == ["baseline", "none", "dnl"]
    capsys.readouterr()
    assert _main(ablation, monkeypatch, *command, "train.lr=0.2") == 2
    assert "holds runs with train.lr 0.05, not 0.2: give that, or choose another --out" in capsys.readouterr().err
    assert _main(ablation, monkeypatch, *command, "data.num_workers=1") == 0  # which changes no result
    assert len([line for line in events.read_text().splitlines() if " train " in line]) == 6
    own = [CONFIG, *tiny_settings, f"model.init={out}/init/seed{{seed}}.pt", "seed=1"]
    assert _main(ablation, monkeypatch, *own, "--out", tmp_path / "own", "--seeds", "2", "--rows", "dnl") == 2
    assert f"{out}/init/seed2.pt" in capsys.readouterr().err
    copied = torch.load(tmp_path / "own/init/seed1.pt", weights_only=True)["model"]
    assert all(torch.equal(copied[name], value) for name, value in weights[1].items())


def test_what_is_tested_was_not_chosen_by_the_test(ablation: SimpleNamespace) -> None:
    from videornn.config import load_config

    for settings, expected in [
        (["data.val=val.txt", "data.test=test.txt"], "best"),
        (["data.val=val.txt", "data.test=val.txt"], "last"),
        (["data.val=val.txt", "data.test=null"], "last"),
        (["data.val=null", "data.test=test.txt"], "last"),
    ]:
        assert ablation.attention._checkpoint(load_config(CONFIG, settings)) == expected


@pytest.mark.slow
def test_steps_of_all_rows_are_timed_in_turn(ablation: SimpleNamespace, tiny_settings: list[str]) -> None:
    from videornn.config import load_config, override_config

    config = load_config(CONFIG, [*tiny_settings, "model.num_classes=10", "device=cpu"])
    configs = {row: override_config(config, ablation.attention._settings(row)) for row in ("none", "dnl")}
    costs = ablation.steps.sizes(configs)
    assert costs["none"].parameters < costs["dnl"].parameters and costs["none"].flops < costs["dnl"].flops
    steps, device = ablation.steps.measure_steps(configs, num_clips=2, rounds=1)
    assert list(steps) == list(configs) and device.startswith("CPU")
    assert all(milliseconds > 0 and megabytes > 0 for milliseconds, megabytes in steps.values())


@pytest.mark.slow
def test_an_ablation_that_is_killed_goes_on_to_its_table(tiny_settings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPTS / "ablate_attention.py"), str(CONFIG), *tiny_settings, "--out", str(out)]
    command += ["--seeds", "1", "--rows", "none", "nl_own_mask", "--step-rounds", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    metrics = out / "runs/none/seed0/metrics.jsonl"
    give_up = time.monotonic() + 300
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < give_up:
        time.sleep(0.1)
    first.kill()
    first.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "ablation.json").read_text())
    records = {row: out / f"runs/{row}/seed0" for row in ("none", "nl_own_mask")}
    assert list(document["rows"]) == list(records)
    losses = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"] for folder in records.values()]
    assert losses[0] == losses[1]  # the same clips, weights and dropout, and a block that is the identity
    for row, folder in records.items():
        tested = json.loads((folder / "test/metrics.json").read_text())
        assert document["rows"][row]["top1"] == [pytest.approx(tested["video_top1"])]
        assert document["rows"][row]["step_ms"] > 0
    assert document["num_videos"] == 10 and document["checkpoint"] == "best"
