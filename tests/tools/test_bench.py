import json
from pathlib import Path

import pytest
from helpers import ROOT

from videornn.config import load_config
from videornn.data.video.decoders import open_video
from videornn.errors import UserError
from videornn.tools import bench
from videornn.tools.bench import Feeding, LoadingReport, _prepared_stages, bench_loading

QUICKSTART = ROOT / "configs/quickstart.yaml"
STAGES = {"open": 0.001, "decode": 0.007, "transform": 0.001, "collate": 0.001, "transfer": 0.5}


def test_the_advice_follows_from_the_numbers() -> None:
    enough = LoadingReport(STAGES, 4, loader_rate=300.0, model_rate=100.0, device="cpu", num_bad=0)
    assert enough.core_rate == pytest.approx(100)
    assert enough.advice() == "the loader gives 3.0 times what the network takes: nothing to do"
    short = LoadingReport(STAGES, 0, loader_rate=25.0, model_rate=100.0, device="cpu", num_bad=0)
    assert short.advice().startswith("the network would wait for data 75 % of the time. Ways out: data.num_workers=")
    assert "videornn data prepare" in short.advice() and "augmentation" not in short.advice()


def test_every_stage_is_timed_on_real_videos(tiny_settings: list[str], motion_set: Path, tmp_path: Path) -> None:
    config = load_config(QUICKSTART, tiny_settings)
    seen = []
    report = bench_loading(config, num_clips=8, on_progress=lambda done, total: seen.append((done, total)))
    assert list(report.stages) == ["open", "decode", "transform", "collate", "transfer"]
    assert min(report.stages.values()) > 0 and report.loader_rate > 0 and report.model_rate > 0
    assert seen == [(number, 8) for number in range(1, 9)] and report.num_bad == 0
    (tmp_path / "list.txt").write_text("".join(f"none_{number}.mp4 0\n" for number in range(9)))
    with pytest.raises(UserError, match="none of the 8 videos tried can be decoded"):
        bench_loading(load_config(QUICKSTART, [*tiny_settings, f"data.train={tmp_path}/list.txt"]), num_clips=8)


def test_a_video_that_several_clips_are_cut_from_is_opened_once(
    tiny_settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def count(path: str, *others: object, **options: object) -> object:
        opened.append(path)
        return open_video(path, *others, **options)

    monkeypatch.setattr(bench, "open_video", count)
    config = load_config(QUICKSTART, [*tiny_settings, "data.clips_per_video=4"])
    bench_loading(config, num_clips=8)
    assert len(opened) == 2


def test_cores_of_a_gpu_follow_from_rates() -> None:
    """By hand: 400 / 28.2 = 14.2 and 400 / 72.5 = 5.5 cores for loading, and one for training."""
    rates = {"as they are": 28.2, "prepared": 72.5}
    assert Feeding(400.0, rates, num_cores=16, num_gpus=1).cores_needed == {"as they are": 16, "prepared": 7}
    enough = Feeding(400.0, rates, num_cores=16, num_gpus=1).advice()
    assert enough == (
        "a GPU that takes 400 clips/s needs 16 cores with videos as they are, 7 cores with videos prepared "
        "(one of them for training itself); 16 are here for it: enough, with data.num_workers=15"
    )
    prepare = Feeding(400.0, rates, num_cores=15, num_gpus=2, ways=("more clips",)).advice()
    assert "15 are here for 2 GPUs, which reach 49 % (as they are), 100 % (prepared) of its rate. Ways out: " in prepare
    assert prepare.endswith("Ways out: `videornn data prepare` and data.num_workers=6; more cores")
    too_few = Feeding(400.0, rates, num_cores=2, num_gpus=1, ways=("more clips",))
    assert too_few.shares == pytest.approx({"as they are": 2 / (400 / 28.2 + 1), "prepared": 2 / (400 / 72.5 + 1)})
    assert (
        "which reach 13 % (as they are), 31 % (prepared) of its rate. Ways out: `videornn data prepare`" in too_few.advice()
    )
    assert too_few.advice().endswith("; more clips; more cores")


def test_preparing_is_not_advised_where_it_gains_nothing() -> None:
    no_gain = Feeding(400.0, {"as they are": 28.2, "prepared": 20.0}, num_cores=2, num_gpus=1, ways=("more clips",))
    unknown = Feeding(400.0, {"as they are": 28.2}, num_cores=2, num_gpus=1, ways=("more clips",))
    for feeding in (no_gain, unknown):
        assert feeding.advice().endswith("Ways out: more clips; more cores")


def test_a_rate_that_is_given_is_held_against_a_few_prepared_videos(
    videornn, monkeypatch: pytest.MonkeyPatch, tiny_settings: list[str], tmp_path: Path
) -> None:
    seen = {}

    def stages(config, table, device, num_clips, on_clip) -> tuple[dict[str, float], int]:
        paths = [table.path(index) for index in range(len(table))]
        kind = "prepared" if (Path(table.source).parent / "prepare.json").exists() else "as shot"
        seen[kind] = [path for path in paths if Path(path).is_file()]
        return {**STAGES, "decode": 0.002 if kind == "prepared" else 0.007}, 0

    monkeypatch.setattr("videornn.tools.bench._time_stages", stages)
    monkeypatch.setattr("videornn.tools.bench._loader_rate", lambda *_: (50.0, 2))
    monkeypatch.setattr("videornn.tools.bench.num_cores", lambda: 4)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("videornn.data.prepare.prepare.num_cores", lambda: 0)  # in this process, which needs no start
    monkeypatch.setattr(
        "videornn.tools.bench._model_rate", lambda *_: pytest.fail("the rate is given: no step is to be timed")
    )
    command = ("data", "bench", QUICKSTART, *tiny_settings, "--gpu-clips-per-second")
    code, out, _ = videornn(*command, "850")
    assert code == 0 and len(seen["prepared"]) == 4 < len(seen["as shot"])
    assert not Path(seen["prepared"][0]).exists()  # what was made to see is gone
    assert json.loads(out.splitlines()[-1]) == {
        "gpu_clips_per_second": 850.0,
        "core_clips_per_second": {"as_they_are": 100.0, "prepared": 200.0},
        "cores_needed": {"as_they_are": 10, "prepared": 6},
        "share_reached": {"as_they_are": 0.4211, "prepared": 0.7619},
        "cores": 4,
        "gpus": 1,
    }
    monkeypatch.setattr("videornn.tools.bench._prepared_stages", lambda *_: {})
    assert "prepared   not timed" in videornn(*command, "850")[1]
    for wrong in ("0", "-3", "nan", "inf"):
        code, _, err = videornn(*command, wrong)
        assert code == 2 and f"--gpu-clips-per-second must be a number of clips above 0, such as 400, got {wrong}" in err


def test_videos_that_are_prepared_already_are_not_prepared_again(tiny_settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "prepare.json").write_text("{}")
    (tmp_path / "train.txt").write_text("none.mp4 0\n")
    config = load_config(QUICKSTART, [*tiny_settings, f"data.train={tmp_path}/train.txt"])
    assert _prepared_stages(config, f"{tmp_path}/train.txt", None, 8) == {}  # no table is looked at
