"""The demo: what it refuses, what it survives and what it leaves behind, over sockets; and its page in a browser."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from demo_client import answer, best, connect, demos, errors, folder, post, wait_until
from demo_networks import Known, Light
from helpers import ROOT

from videornn.demo import Demo, analyst
from videornn.demo.analyst import Analyst, Network
from videornn.inference.timeline import Window
from videornn.system import workers


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Network], Demo]]:
    with demos() as start:
        yield start


@pytest.fixture(scope="module")
def demo(serve: Callable[[Network], Demo]) -> Demo:
    return serve(Light("runs/x/checkpoints/best.pt"))


def test_a_video_is_answered_piece_by_piece_and_then_removed(demo: Demo) -> None:
    assert stat.S_IMODE(folder(demo).stat().st_mode) == 0o700
    status, headers, lines = answer(post(demo, b"12345"))
    assert status == 200 and headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert [line["step"] for line in lines if "step" in line] == ["classes", "attention", "done"]  # shorter than a clip
    assert re.fullmatch(rf"{re.escape(str(folder(demo)))}/\w+/video\.mp4 5", best(lines))
    assert errors(lines) == ["clip.mp4: no attention"]
    assert wait_until(lambda: not list(folder(demo).iterdir()))


def test_the_page_takes_nothing_from_elsewhere_and_runs_nothing_but_its_own_script(demo: Demo) -> None:
    def load() -> tuple[str, str]:
        connection = http.client.HTTPConnection(*demo.server_address[:2], timeout=300)
        connection.request("GET", "/")
        response = connection.getresponse()
        return response.headers["Content-Security-Policy"], response.read().decode()

    (policy, page), (other, _) = load(), load()
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and policy != other
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert page.count(f'nonce="{nonce}"') == 2 and "{{" not in page
    links = re.findall(r"""(?:src|href|action)=["']?([^"'> ]+)|url\(([^)]*)\)|@import""", page)
    assert [link[:5] for link, _ in links] == ["data:"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "", "[", "localhost.evil"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(demo: Demo, host: str) -> None:
    status, _, (line,) = answer(connect(demo, f"GET / HTTP/1.1\nHost: {host}\n"))
    assert status == 403 and demo.url in line["error"]


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:9000", "[::1]:{port}", "192.168.1.7"])
def test_addresses_and_the_names_of_this_machine_are_not(demo: Demo, host: str) -> None:
    with connect(demo, f"GET / HTTP/1.1\nHost: {host}\n") as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost:{port}"])
def test_a_foreign_page_cannot_post(demo: Demo, origin: str) -> None:
    status, _, lines = answer(post(demo, b"12345", headers=f"Origin: {origin}\n"))
    assert status == 403 and "may not use" in lines[0]["error"]


def test_the_own_page_can_post(demo: Demo) -> None:
    assert answer(post(demo, b"12345", headers="Origin: http://127.0.0.1:{port}\n"))[0] == 200


@pytest.mark.parametrize("num_bytes", [2_400_000, 3_000_000])  # a file just above the limit must not seem to be within
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\n"])
def test_a_file_that_is_too_large_is_refused_before_a_byte_of_it(demo: Demo, expect: str, num_bytes: int) -> None:
    head = f"POST /predict?name=big.mp4 HTTP/1.1\nHost: localhost\nContent-Length: {num_bytes}\n"
    status, _, (line,) = answer(connect(demo, head + expect))
    assert status == 413 and line["error"].startswith("big.mp4 has 3 MB, and this demo takes 1 MB")
    assert not list(folder(demo).iterdir())


def test_a_file_is_asked_for_once_its_size_is_known_to_be_right(demo: Demo) -> None:
    head = "POST /predict?name=a.mp4 HTTP/1.1\nHost: localhost\nContent-Length: 3\nExpect: 100-continue\n"
    connection = connect(demo, head)
    assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(b"123")
    assert best(answer(connection)[2]).endswith("video.mp4 3")


@pytest.mark.parametrize("size", ["", "-1", "+5", "1_0", "0x5", "5, 5", "५", "9" * 5000])
def test_a_size_that_is_none_is_refused(demo: Demo, size: str) -> None:
    status, _, lines = answer(connect(demo, f"POST /predict?name=a.mp4 HTTP/1.1\nHost: localhost\nContent-Length: {size}\n"))
    assert status in (411, 413) and len(errors(lines)) == 1


def test_chunks_without_a_size_are_refused(demo: Demo) -> None:
    head = "POST /predict?name=a.mp4 HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\nContent-Length: 5\n"
    assert answer(connect(demo, head, b"5\r\n12345\r\n0\r\n\r\n"))[0] == 411


def test_no_more_is_kept_than_was_announced(demo: Demo) -> None:
    head = "POST /predict?name=a.mp4 HTTP/1.1\nHost: localhost\nContent-Length: 10\n"
    assert best(answer(connect(demo, head, b"x" * 1000))[2]).endswith("video.mp4 10")


def test_an_upload_that_ends_early_leaves_nothing_behind(demo: Demo) -> None:
    with connect(demo, "POST /predict?name=a.mp4 HTTP/1.1\nHost: localhost\nContent-Length: 1000\n", b"123") as connection:
        assert wait_until(lambda: bool(list(folder(demo).iterdir())))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert not list(folder(demo).iterdir())
    assert answer(post(demo, b"12345"))[0] == 200


@pytest.mark.parametrize("name", ["notes.txt", "", "mp4", ".mp4", "clip.mp4/", "clip.mp4\0", "clip.m3u8", "clip.png"])
def test_what_is_not_called_a_video_is_refused(demo: Demo, name: str) -> None:
    status, _, (line,) = answer(post(demo, b"12345", name))
    assert status == 415 and ".mp4" in line["error"] and "\0" not in line["error"]


@pytest.mark.parametrize(
    "name", ["../../../x.mp4", "/etc/passwd.mp4", "a\r\nSet-Cookie: b.mp4", "..\\x.MP4", "x" * 999 + ".mp4"]
)
def test_the_name_of_a_file_never_becomes_a_path(demo: Demo, name: str) -> None:
    status, headers, lines = answer(post(demo, b"12345", name))
    assert status == 200 and "Set-Cookie" not in headers
    assert re.fullmatch(rf"{re.escape(str(folder(demo)))}/\w+/video\.mp4 5", best(lines))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"crash", "odd.mp4: the process that read it ended (SIGSEGV)"),
        (b"hang", "odd.mp4: took longer than 2 s"),
        (b"large", "the frames of this video do not fit into memory: make them smaller"),
        (b"broken", "odd.mp4: cannot be decoded (broken)"),
    ],
)
def test_the_server_survives_what_a_video_does_to_the_process_that_reads_it(
    demo: Demo, content: bytes, sentence: str
) -> None:
    assert errors(answer(post(demo, content, "odd.mp4"))[2]) == [sentence]
    assert best(answer(post(demo, b"12345"))[2]).endswith("video.mp4 5")
    assert not list(folder(demo).iterdir())


@pytest.mark.slow
def test_one_video_at_a_time_is_looked_at_in_the_order_of_arrival_and_few_may_wait(demo: Demo) -> None:
    posted = []
    for number in range(4):
        posted.append(post(demo, b"slow"))
        assert wait_until(lambda number=number: len(demo.analyst._line) == number + 1)
    status, _, (line,) = answer(post(demo, b"slow"))
    assert status == 503 and line["error"].startswith("4 videos are here already")
    ahead = [[line["ahead"] for line in answer(connection)[2] if "ahead" in line] for connection in posted]
    assert not ahead[0]
    assert [sorted(set(places), reverse=True) for places in ahead[1:]] == [[1], [2, 1], [3, 2, 1]]
    assert all(places == sorted(places, reverse=True) for places in ahead)


def test_who_leaves_the_line_makes_room(demo: Demo) -> None:
    first, second = post(demo, b"slow"), post(demo, b"slow")
    assert wait_until(lambda: len(demo.analyst._line) == 2)
    second.close()
    assert wait_until(lambda: len(demo.analyst._line) == 1)
    assert "slow" not in errors(answer(first)[2])
    assert wait_until(lambda: not list(folder(demo).iterdir()))


def test_a_full_disk_is_a_sentence(demo: Demo, room_for_files) -> None:
    with room_for_files(1000):
        status, _, (line,) = answer(post(demo, b"x" * 100_000))
    assert status == 507 and line["error"].startswith("clip.mp4 cannot be kept while it is looked at: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_by_a_signal_is_clean_in_the_middle_of_an_upload(tmp_path: Path, number: signal.Signals) -> None:
    code = "import videornn.demo.server as d; from demo_networks import Light; d.Network = Light; "
    code += "d.serve('x.pt', host='0.0.0.0', port=0)"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": paths}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        connection.sendall(b"POST /predict?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n123")
        assert wait_until(lambda: bool(list(tmp_path.glob("videornn-demo-*/*/video.mp4"))))
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and out == "ended; the videos that were sent are removed\n"
    assert err.startswith("videornn: --host 0.0.0.0: all who can reach this machine") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_a_sentence(videornn, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = videornn("demo", tmp_path / "best.pt", "--port", port)
    assert (code, out) == (2, "")
    assert err == (
        f"videornn: cannot serve at --host 127.0.0.1 --port {port}: the port is taken; --port 0 takes a free one\n"
    )


def test_a_checkpoint_that_is_none_is_a_sentence(videornn, tmp_path: Path) -> None:
    code, out, err = videornn("demo", tmp_path / "best.pt", "--port", 0)
    assert (code, out, err.count("\n")) == (2, "", 1) and str(tmp_path / "best.pt") in err


def test_the_server_needs_no_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys, videornn.demo; assert 'torch' not in sys.modules"], check=True)


def test_a_timeline_comes_in_parts_that_begin_anew_for_each_video(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def windows(video: str, window: float | None) -> Iterator[Window]:
        asked.append(window)
        yield from (Window(start, start + 2.0, torch.tensor([0.75, 0.25])) for start in range(3))

    monkeypatch.setattr(analyst, "PART_SECONDS", -1.0)
    network = Network("best.pt", window=2.0)
    network.predictor = SimpleNamespace(windows=windows, class_names=["a", "b"])
    parts = [network.timeline("video.mp4", part) for part in (0, 1, 2, 3)]
    assert [part["until"] for part in parts] == [2, 3, 4, 4] and [part["complete"] for part in parts] == [False] * 3 + [True]
    assert parts[1]["segments"] == [{"start": 0, "end": 3, "label": "a", "score": 0.75}]
    assert network.timeline("other.mp4", 0)["until"] == 2 and asked == [2.0, 2.0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_worker_that_a_video_has_made_large_is_ended_and_the_next_video_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GROWN_BYTES", 5 * 10**7)
    ours = Analyst(Light("best.pt"))
    ours.start()
    for content, is_ended in ((b"small", False), (b"grows", True), (b"small", False)):
        (tmp_path / "a.mp4").write_bytes(content)
        lines = list(ours.analyse(tmp_path / "a.mp4", "mine.mp4"))
        assert any("top" in line for line in lines) and lines[-1] == {"step": "done"}
        assert (ours._worker is None) == is_ended
    ours.stop()


@pytest.mark.slow
def test_classes_timeline_and_pictures_of_a_real_network_come_one_after_the_other(
    tiny_run: Path, make_video, tmp_path: Path
) -> None:
    from videornn import load_predictor

    checkpoint, video = tiny_run / "checkpoints" / "last.pt", make_video(tmp_path / "clip.mp4", 60, fps=15)
    ours = Analyst(Network(str(checkpoint), window=1.0))
    ours.start()
    try:
        lines = list(ours.analyse(video, "mine.mp4"))
    finally:
        ours.stop()
    assert [line["step"] for line in lines if "step" in line] == ["classes", "timeline", "attention", "done"]
    assert not any("error" in line for line in lines)
    (classes,) = (line for line in lines if "top" in line)
    assert [(row["class"], row["score"]) for row in classes["top"]] == load_predictor(checkpoint)(video)
    *_, timeline = (line["timeline"] for line in lines if "timeline" in line)
    assert timeline["complete"] and timeline["until"] == pytest.approx(4.0, abs=0.1)
    (pictures,) = (line["pictures"] for line in lines if "pictures" in line)
    assert {picture["name"] for picture in pictures} >= {"res3.0", "res4.0", "grad_cam"}


@pytest.mark.slow
def test_the_page_shows_what_the_network_says(
    serve: Callable[[Network], Demo], browser, tiny_run: Path, make_video, tmp_path: Path
) -> None:
    from videornn import load_predictor

    checkpoint = tiny_run / "checkpoints" / "last.pt"
    demo = serve(Known(str(checkpoint)))
    video = make_video(tmp_path / "a <i>clip<.webm", 60, fps=15, codec="libvpx")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(demo.url)
    assert "10 classes" in page.inner_text("#about")

    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"})
    assert page.inner_text("#problem").startswith("notes.txt is not named like a video: .mp4, ")
    page.set_input_files("#file", {"name": "big.mp4", "mimeType": "video/mp4", "buffer": b"x" * 1_200_000})
    assert page.inner_text("#problem").startswith("big.mp4 has 2 MB, and this demo takes 1 MB: ")
    assert len(asked) == 1  # neither was sent
    page.set_input_files("#file", {"name": "text.mp4", "mimeType": "video/mp4", "buffer": b"no video" * 100})
    page.locator("#problem", has_text="text.mp4: cannot be decoded").wait_for()
    assert page.is_visible("#drop")

    content = list(video.read_bytes())
    page.evaluate(
        """([name, content]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(content)], name));
            window.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
        }""",
        [video.name, content],
    )
    page.locator("#step", has_text="Done after").wait_for()
    shown = [line.split("\n") for line in page.locator("#top li").all_inner_texts()]
    assert shown == [[name, f"{100 * score:.1f} %"] for name, score in load_predictor(checkpoint)(video)]
    assert page.is_hidden("#problem") and video.name in page.inner_text("#file-name")
    buttons = [" ".join(text.split()) for text in page.locator("#segments button").all_inner_texts()]
    assert buttons == ["wave 0:00 to 0:01 · 90 %", "<b>bend</b> 0:02 to 0:04 · 75 %"]
    assert page.locator("#lanes rect[style]").count() == 2
    page.locator("#segments button").nth(1).click()
    assert page.evaluate("document.getElementById('player').currentTime") == pytest.approx(2.51)
    assert page.evaluate("document.querySelector('.sheet img').naturalWidth") == 320
    page.locator("figure video").evaluate("v => new Promise((done) => v.readyState ? done() : v.onloadeddata = done)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    page.keyboard.press("Tab")
    page.click("#again")
    assert page.is_visible("#drop") and page.evaluate("document.activeElement.id") == "file"
    assert said == []
    assert {url.split("/")[2] for url in asked if not url.startswith(("blob:", "data:"))} == {
        f"127.0.0.1:{demo.server_port}"
    }
    page.close()
