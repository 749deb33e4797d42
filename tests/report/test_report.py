"""The report of a run: what it says against hand-made run folders, and that hostile names stay text."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from jinja2 import DictLoader, UndefinedError
from PIL import Image

from videornn.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from videornn.report import write_report
from videornn.report.attention import MAX_BYTES
from videornn.report.charts import Series, _ticks, line_chart
from videornn.report.examples import choose_examples
from videornn.report.render import render, templates
from videornn.report.run_results import Prediction, read_run

HOSTILE = ("<script>alert('x')</script>", "say \"cheese\" & 'smile'", "größer</td>", "plain")
VOID = {"img", "input", "meta", "wbr", "link", "br"}


class Page(HTMLParser):
    """A page taken apart; whatever is not closed in order, or is there twice by its id, is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(attributes) == len(dict(attributes)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""

    def all(self, tag: str, class_: str | None = None) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and (class_ is None or class_ in (attributes.get("class") or "").split())
        ]


def explain_like(trained, video, out, queries, movies=True) -> list[Path]:
    """What explain promises, quickly: a picture, a movie it was not asked for would be wrong, numbers."""
    assert queries == [] and movies is False
    out.mkdir(parents=True)
    Image.new("RGB", (300, 120), "red").save(out / f"{Path(video).stem}_res3.0.png")
    (out / "numbers.csv").write_text(f"{trained.step}\n")
    return [out / f"{Path(video).stem}_res3.0.png", out / "numbers.csv"]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny run, whose attention sheets are drawn at once."""
    monkeypatch.setattr("videornn.report.attention.explain", explain_like)
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def write_test(run: Path, rows: list[tuple[str, str, str, float]], names: tuple[str, ...], **numbers: float) -> None:
    """A test folder as `videornn test` writes it; rows are path, label, prediction, score."""
    folder = run / "test"
    folder.mkdir(exist_ok=True)
    right = sum(label == prediction for _, label, prediction, _ in rows)
    content = {"video_top1": 100 * right / len(rows), "video_top5": 93.75, "clip_top1": 12.5, "clip_top5": 50.0}
    content |= {"num_videos": len(rows) + 1, "num_scored": len(rows), "num_missing": 0, "num_clips": 2, "num_crops": 1}
    (folder / "metrics.json").write_text(json.dumps(content | numbers))
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "prediction", "score", "correct"])
        writer.writerows([path, label, said, score, int(label == said)] for path, label, said, score in rows)
    counts = Counter((label, said) for _, label, said, _ in rows)
    with open(folder / "confusion.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["label", *names], *([a, *(counts[a, b] for b in names)] for a in names)])


def draw(title: str, series: list[Series], **options) -> str:
    """The figure of a line chart."""
    return str(templates().get_template("macros.html.j2").module.figure(line_chart(title, series, **options)))


def test_text_is_escaped_and_markup_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = templates()
    environment.loader = DictLoader({"a": """<b class="{{ a }}">{{ b }}{{ c | breakable }}</b>\n  <i>{{ d }}</i>"""})
    monkeypatch.setattr("videornn.report.render.templates", lambda: environment)
    assert render("a", a="a\"b'<", b="<i>&\"'{{ a }}", c="</b>", d="caf\udce9 \x00\x1b") == (
        '<b class="a&#34;b&#39;&lt;">&lt;i&gt;&amp;&#34;&#39;{{ a }}&lt;/<wbr>b&gt;</b><i>caf\\udce9 \ufffd\ufffd</i>'
    )
    with pytest.raises(UndefinedError):
        render("a", a="")


def test_names_of_classes_and_paths_stay_text(run: Path) -> None:
    paths = ['/v/a"><img src=x onerror=alert(1)>.mp4', "/v/it's\n<b>bold</b>.mp4", "/v/caf\udce9.mp4", "/v/ok.mp4"]
    rows = [(path, label, HOSTILE[0], 0.9) for path, label in zip(paths, HOSTILE, strict=True)]
    write_test(run, rows, HOSTILE)
    (run / "bad_videos.csv").write_text('path,reason\n"</table><script>1</script>","no <video>"\n')
    page = Page(write_report(run, None))
    assert page.all("script") == [] and page.all("b", "bold") == []
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert all(name in page.text for name in HOSTILE)
    assert "onerror=alert(1)" in page.text and "caf\\udce9" in page.text and "</table><script>1</script>" in page.text


def test_nothing_is_fetched_and_every_link_of_the_contents_leads_somewhere(run: Path) -> None:
    write_test(run, [("/gone.mp4", "a", "b", 0.5)], ("a", "b"))
    out = write_report(run, None)
    page = Page(out)
    addresses = [attributes.get("src") or attributes.get("href") for _, attributes in page.tags]
    assert all(address.startswith(("data:image/", "#")) for address in addresses if address)
    assert {address[1:] for address in addresses if address and address[0] == "#"} <= {
        attributes["id"] for attributes in page.all("section")
    }
    style = out.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_the_curves_of_attention_blocks_are_drawn(run: Path) -> None:
    names = {
        "res3.0/change": 0.1,
        "res3.0/effective_keys": 0.25,
        "res3.0/unary_effective_keys": 0.5,
        "res3.0/logit_deviation": 2,
    }
    lines = [{"kind": "train", "step": step, "epoch": step / 2, "loss": 1.0, "lr": 0.1, **names} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(run, None))
    assert "Places in effect of res3.0 (in %)pairwise 25 %unary 50 %" in page.text
    assert "Deviation of the logits of res3.0pairwise 2" in page.text and "Change of res3.0|z - x| / |x| 0.1" in page.text
    (run / "metrics.jsonl").write_text(json.dumps(lines[0] | dict.fromkeys(names)).replace("null", "NaN") + "\n")
    assert "Places in effect of res3.0" in Page(write_report(run, None)).text


def test_headline_confusion_and_class_bars_are_those_of_the_predictions(run: Path) -> None:
    rows = [("/1", "run", "run", 0.9), ("/2", "run", "run", 0.8), ("/3", "run", "jump", 0.7), ("/4", "jump", "jump", 0.6)]
    write_test(run, rows, ("jump", "run", "unseen"))
    page = Page(write_report(run, None))
    assert (
        "75.0\u00a0%" in page.text
        and "3 of 4 videos right" in page.text
        and "Videos scored4 of 51 cannot be decoded" in page.text
    )
    cells = [attributes["title"] for attributes in page.all("td") if "title" in attributes]
    assert cells == [
        "1 video of jump taken for jump",
        "1 video of run taken for jump",
        "2 videos of run taken for run",
    ]
    assert "1 mistake in 4 videos" in page.text and "1 of 3" in page.text
    # recall of run 2 of 3, precision 2 of 2; recall of jump 1 of 1, precision 1 of 2: the harder class first
    assert "run67\u00a0% (2 of 3)100\u00a0%jump100\u00a0% (1 of 1)50\u00a0%" in page.text
    assert "1 class without a test video left out" in page.text


def test_what_newer_tests_add_is_used(run: Path) -> None:
    write_test(run, [("/1", "run", "jump", 0.7), ("/2", "run", "run", 0.9)], ("jump", "run"), ece=3.21)
    lines = (run / "test/predictions.csv").read_text().splitlines()
    lines = [f"{line},{value}\n" for line, value in zip(lines, ["label_score", "0.25", "0.9"], strict=True)]
    (run / "test/predictions.csv").write_text("".join(lines))
    Image.new("RGB", (300, 200), "white").save(run / "test/reliability.png")
    page = Page(write_report(run, None))
    assert "jump 70\u00a0%is run 25\u00a0%" in page.text
    assert "off by 3.2\u00a0% on average" in page.text
    assert [image["width"] for image in page.all("img") if image["alt"] == "Reliability diagram"] == ["300"]


@pytest.mark.slow
def test_many_classes_are_confused_pairs_and_bars_instead_of_a_matrix(run: Path) -> None:
    names = tuple(f"class {index}" for index in range(400))
    generator = np.random.default_rng(0)
    labels = generator.integers(400, size=20_000)
    said = np.where(generator.random(20_000) < 0.6, labels, (labels + generator.integers(3, size=20_000)) % 400)
    rows = [(f"/v/{i}.mp4", names[a], names[b], 0.5) for i, (a, b) in enumerate(zip(labels, said, strict=True))]
    rows += [(f"/w/{i}.mp4", names[7], names[300], 0.5) for i in range(90)]
    write_test(run, rows, names)
    out = write_report(run, None)
    page = Page(out)
    assert page.all("table", "matrix") == [] and len(page.all("ol", "columns")) == 1
    pairs = page.text.split("What is taken for what")[1]
    assert re.search(r"class 7class 30090 of 1[0-9]{2}", pairs.split("Class by class")[0])
    assert out.stat().st_size < 5_000_000


def test_a_resumed_run_is_drawn_by_what_it_did_last(run: Path) -> None:
    lines = [{"kind": "train", "step": step, "epoch": step / 10, "loss": 9.0} for step in (10, 20, 30)]
    lines += [{"kind": "train", "step": step, "epoch": step / 10, "loss": 1.0} for step in (20, 30, 40)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"kind": "train", "st')
    assert [(record["step"], record["loss"]) for record in read_run(run).train] == [
        (10, 9.0),
        (20, 1.0),
        (30, 1.0),
        (40, 1.0),
    ]
    starts = json.loads((run / "manifest.json").read_text())
    again = json.loads(json.dumps(starts[0]))
    again["start"]["step"] = 15
    (run / "manifest.json").write_text(json.dumps([*starts, again]))
    page = Page(write_report(run, None))
    assert "Taken up after step 15" in page.text
    # epoch 1.5 of 0..4: the plot is 376 wide from 50, of 440 pixels
    assert page.all("line", "mark")[0]["x1"] == "191"


def test_values_that_are_not_finite_break_the_line_and_are_marked() -> None:
    figure = draw("loss", [Series("training", [0, 1, 2, 3, 4], [4, math.nan, 2, math.inf, 0])], x_name="epoch", top=4.0)
    # 296 wide from 50, 164 high from 12
    assert 'd="M50 12M198 94M346 176"' in figure
    assert figure.count('class="cross"') == 2 and "2 not finite" in figure


def test_long_lines_are_averaged_with_their_spread() -> None:
    y = np.where(np.arange(4000) % 2, 0.0, 10.0)
    y[10:20] = math.nan
    figure = draw("loss", [Series("training", list(range(4000)), y.tolist())], x_name="step", top=10.0)
    heights = [float(pair.split()[1]) for pair in re.findall(r"[ML]([\d. ]+)", re.search(r'path d="([^"]+)"', figure)[1])]
    assert len(heights) == 399 and set(heights) == {94.0}  # the mean of 0 and 10, in the middle
    assert len(re.search(r'points="([^"]+)"', figure)[1].split()) == 2 * 399
    assert len(figure) < 30_000


def test_ticks_are_few_and_enclose_the_values() -> None:
    generator = np.random.default_rng(0)
    for low, span in zip(generator.normal(size=300) * 10, 10.0 ** generator.uniform(-6, 6, size=300), strict=True):
        ticks = _ticks(low, low + span)
        assert ticks[0] <= low + 1e-6 * span and ticks[-1] >= low + span - 1e-6 * span and 2 <= len(ticks) <= 7
    assert _ticks(0.0, 100.0) == [0, 20, 40, 60, 80, 100] and len(_ticks(3.0, 3.0)) >= 2


def test_examples_are_the_surest_wrong_ones_the_least_sure_and_one_right_one_a_class() -> None:
    def video(path: str, label: str, said: str, score: float) -> Prediction:
        return Prediction(path, label, said, score)

    videos = [video("a", "x", "x", 0.99), video("b", "x", "x", 0.98), video("c", "y", "y", 0.7), video("d", "y", "x", 0.9)]
    videos += [video("e", "y", "x", 0.2), video("f", "x", "x", 0.1)]
    wrong, unsure, right = choose_examples(videos)
    assert [video.path for video in wrong.videos] == ["d", "e"]
    assert [video.path for video in right.videos] == ["a", "c"]
    assert [video.path for video in unsure.videos] == ["f", "b"]


def test_thumbnails_are_twelve_frames_over_the_whole_video(run: Path, make_video, tmp_path: Path) -> None:
    path = make_video(tmp_path / "grey.mp4", 24)
    write_test(run, [(str(path), "a", "a", 0.5)], ("a", "b"))
    page = Page(write_report(run, None))
    source = next(image["src"] for image in page.all("img") if image["alt"].startswith("12 frames"))
    strip = Image.open(BytesIO(base64.b64decode(source.partition("base64,")[2])))
    assert strip.size == (12 * 64, 48)
    frames = np.asarray(strip, np.float64)[24:].reshape(24, 12, 64, 3).mean(axis=(0, 2, 3))
    # frame i has a brightness of 16 + 3 i; the middles of 12 parts of 24 frames are 1, 3, 5, ...
    np.testing.assert_allclose(frames, 16 + 3 * np.arange(1, 24, 2), atol=2.5)


def test_videos_that_are_gone_or_broken_say_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video" * 100)
    rows = [(str(tmp_path / name), "a", "a", 0.5) for name in ("gone.mp4", "empty.mp4", "text.mp4")]
    write_test(run, rows, ("a", "b"))
    page = Page(write_report(run, None))
    assert len(page.all("span", "gone")) == 3
    assert "no picture: no such file" in page.text and "is empty (0 bytes)" in page.text


def test_a_run_without_a_test_or_validation_says_how_to_get_them(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 0.5, "loss": 2.0, "lr": 0.1}\n')
    page = Page(write_report(run, None))
    assert f"videornn test {run / 'checkpoints/best.pt'}" in page.text
    assert "Nothing was validated" in page.text and "So far 0.5 of 2 epochs" in page.text
    assert not {"examples", "attention"} & {section["id"] for section in page.all("section")}


def test_settings_are_those_that_are_not_the_defaults(run: Path) -> None:
    page = Page(write_report(run, None))
    settings = page.text.split("These are not the defaults:")[1].split("The whole config.yaml")[0]
    assert "model.width864Channels of the stem" in settings
    assert "train.momentum" not in settings


def test_data_are_counted_by_class_and_a_list_that_is_gone_is_named(run: Path, motion_set: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"{motion_set}/val.txt", f"{motion_set}/gone.txt"))
    page = Page(write_report(run, None))
    assert f"The val list cannot be read from here: video list {motion_set}/gone.txt does not exist" in page.text
    assert "10 classes. Videos each: train 2, test 1." in page.text
    assert "same_right21same_left21" in page.text


def test_attention_is_that_of_the_checkpoint_which_was_tested(run: Path, motion_set: Path, monkeypatch) -> None:
    last = load_checkpoint(run / "checkpoints/last.pt")
    save_checkpoint(run / "checkpoints/best.pt", last | {"step": 1})
    steps = []

    def explain(trained, *arguments, **options) -> list[Path]:
        steps.append(trained.step)
        return explain_like(trained, *arguments, **options)

    monkeypatch.setattr("videornn.report.attention.explain", explain)
    write_test(run, [(str(next(motion_set.rglob("*.mp4"))), "a", "a", 0.5)], ("a", "b"), step=last["step"])
    page = Page(write_report(run, None))
    assert steps == [last["step"]] and steps != [1]
    assert [figure for figure in page.all("img") if figure["alt"].startswith("res3.0")]


def test_pictures_beyond_the_size_of_a_page_are_left_out(run: Path, motion_set: Path, monkeypatch) -> None:
    def explain(trained, video, out, queries, movies=True) -> list[Path]:
        out.mkdir(parents=True)
        noise = np.random.default_rng(0).integers(256, size=(900, 1400, 3), dtype=np.uint8)
        pictures = [out / f"{number}.png" for number in range(4)]
        for picture in pictures:
            Image.fromarray(noise).save(picture)
        return pictures

    monkeypatch.setattr("videornn.report.attention.explain", explain)
    write_test(run, [(str(next(motion_set.rglob("*.mp4"))), "a", "a", 0.5)], ("a", "b"))
    out = write_report(run, None)
    assert "left out for the size of this page" in Page(out).text
    assert out.stat().st_size < 4 / 3 * MAX_BYTES + 500_000


@pytest.mark.parametrize("damaged", [True, False])
def test_without_a_sound_checkpoint_there_are_no_maps_but_a_page(run: Path, damaged: bool) -> None:
    write_test(run, [("/gone.mp4", "a", "b", 0.5)], ("a", "b"))
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(b"no checkpoint") if damaged else path.unlink()
    text = Page(write_report(run, None)).text
    assert ("There are no maps: " in text) == damaged and ("which is gone" in text) != damaged


@pytest.mark.slow
def test_the_sheets_of_a_real_run_are_in_its_page(tiny_run: Path, tmp_path: Path, videornn) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert videornn("test", run / "checkpoints/best.pt")[0] == 0
    code, out, err = videornn("report", run, "--out", tmp_path / "page.html")
    assert (code, err) == (0, "") and f"wrote {tmp_path / 'page.html'}" in out
    page = Page(tmp_path / "page.html")
    sheets = [image for image in page.all("img") if image["alt"].startswith("res")]
    assert {image["alt"].split(":")[0] for image in sheets} >= {"res3.0", "res4.0"}
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("given", ["checkpoints/best.pt", "checkpoints", "metrics.jsonl"])
def test_what_is_in_a_run_folder_is_answered_with_the_folder(run: Path, given: str, videornn) -> None:
    code, out, err = videornn("report", run / given)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"give the run's folder: {run}" in err


def test_what_is_no_run_is_one_sentence(run: Path, tmp_path: Path, videornn) -> None:
    def error(*arguments: object) -> str:
        code, _, err = videornn("report", *arguments)
        assert code == 2 and err.count("\n") == 1
        return err

    (tmp_path / "other").mkdir()
    assert "does not exist" in error(tmp_path / "nowhere")
    assert "has no config.yaml" in error(tmp_path / "other")
    assert "is a folder" in error(run, "--out", tmp_path / "other")
    assert "there is no folder" in error(run, "--out", tmp_path / "nowhere/page.html")
    (run / "manifest.json").write_text("[{")
    assert "manifest.json is damaged" in error(run)
    (run / "metrics.jsonl").write_text('{"kind": "tra')
    assert "has no numbers yet" in error(run)
    assert not (run / "report.html").exists()
