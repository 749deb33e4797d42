"""What a terminal is sent: names in any script, and nothing in them that controls it."""

import io
from pathlib import Path

import pytest
from rich.table import Table

from videornn.cli.infer_screen import Screen
from videornn.errors import UserError
from videornn.system import console
from videornn.system.console import SafeConsole, complain, printable, say
from videornn.training.logger import RunLogger

HOSTILE = {
    "\x1b[2J\x1b]0;title\x07.mp4": r"\x1b[2J\x1b]0;title\x07.mp4",
    "\x9b31m red": r"\x9b31m red",
    "invoice\u202egpj.exe": r"invoice\u202egpj.exe",
    "\u2066isolated\u2069": r"\u2066isolated\u2069",
    "a\rb\bc\nvideornn: all is well": r"a\rb\x08c\nvideornn: all is well",
    "a\u2028b": r"a\u2028b",
    "not utf-8 \udcff.mp4": r"not utf-8 \udcff.mp4",
}
READABLE = ["éclair ß", "走る　人.mp4", "می‌خواهم", "हिन्दी", "👩‍🚀 :smile: [bold]x[/bold] [/]", "back\\slash", "מים"]


def test_names_in_any_script_stay_and_what_controls_a_terminal_is_spelt_out() -> None:
    for name, shown in HOSTILE.items():
        assert printable(name) == shown and printable(shown) == shown
    for name in READABLE:
        assert printable(name) == name


def test_lines_and_complaints_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown in HOSTILE.items():
        say(f"wrote {name}", "and more")
        complain(f"{name} does not exist")
        assert capsys.readouterr() == (f"wrote {shown}\nand more\n", f"videornn: {shown} does not exist\n")


def test_no_complaint_repeats_the_secrets_of_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    complain("video list https:/me:s3cret@host/train.txt?token=s3cret&n=1 does not exist", "nor 'rtsp://me:s3cret@host'")
    _, err = capsys.readouterr()
    assert "s3cret" not in err
    assert err == "videornn: video list https:/***@host/train.txt?token=***&n=1 does not exist\nnor 'rtsp://***@host'\n"
    for shown in ("rtsp://***@host/x?key=***", "http://host/x?token=***&n=1"):
        complain(f"{shown}: cannot be opened ({shown}); see {shown}.")  # which others have made of it
        assert capsys.readouterr()[1] == f"videornn: {shown}: cannot be opened ({shown}); see {shown}.\n"
    complain("a@b.mp4, key=1.mp4 and C:/me@home.mp4 do not exist")
    assert capsys.readouterr()[1] == "videornn: a@b.mp4, key=1.mp4 and C:/me@home.mp4 do not exist\n"


def test_tables_take_names_as_they_are() -> None:
    for name in (*HOSTILE, *READABLE):
        file = io.StringIO()
        table = Table("class", title="classes")
        table.add_row(name)
        SafeConsole(file=file, width=100, force_terminal=False).print(table)
        text = file.getvalue()
        assert all(part in text for part in HOSTILE.get(name, name).split(r"\n"))
        assert not set(text) & set("\x1b\x9b\u202e\u2066\r\b\x07\u2028\udcff")


@pytest.mark.parametrize("terminal", [True, False])
def test_results_on_a_terminal_are_printable(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SafeConsole, "is_terminal", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    for name, shown in HOSTILE.items():
        screen = Screen([name], [name], quiet=False)
        screen.ranking(name, [(name, 0.5)])
        text = capsys.readouterr().out
        assert text.count(shown) == 2 and name not in text


def test_a_run_says_names_printable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = RunLogger(tmp_path, num_steps=1)
    for name, shown in HOSTILE.items():
        logger.say(f"12 videos of {name} are missing")
        assert capsys.readouterr().out == f"12 videos of {shown} are missing\n"
    logger.close()


def test_commands_spell_names_out(videornn, tmp_path: Path) -> None:
    hostile, shown = "\x1b[31m\u202e[bold]x", r"\x1b[31m\u202e[bold]x"
    for folder in (hostile, "b"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        (tmp_path / "videos" / folder / "a.mp4").write_bytes(b"no video")
    code, out, err = videornn("data", "list", tmp_path / "videos", "--out", tmp_path / "lists")
    assert code == 0 and shown in out and "\x1b" not in out + err
    for arguments in (["infer", hostile, "a.mp4"], ["test", hostile], ["train", hostile], ["data", "verify", hostile]):
        code, out, err = videornn(*arguments)
        assert code == 2 and shown in err and "\x1b" not in err + out and err.count("\n") == 1


def test_an_error_of_several_lines_has_them(videornn, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4\nc.mp4 x y\nd.mp4\n")
    code, _, err = videornn("data", "verify", tmp_path / "list.txt")
    assert code == 2 and err.count("\n") > 1 and r"\n" not in err
    assert str(UserError("one", "two")) == "one\ntwo"
    assert console.is_main()
