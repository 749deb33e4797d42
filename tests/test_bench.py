from pathlib import Path

import pytest

from videornn.bench import LoadingReport, bench_loading
from videornn.config import load_config
from videornn.errors import UserError

QUICKSTART = Path(__file__).parents[1] / "configs/quickstart.yaml"
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
