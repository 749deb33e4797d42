"""The pages of docs/: what they say to run can be run."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from videornn.cli import app
from videornn.config import load_config

ROOT = Path(__file__).parents[1]


def _commands() -> list[list[str]]:
    """The words of every command of docs/first_hour.md."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/first_hour.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def test_the_settings_of_the_first_hour_make_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    runs = [words for words in _commands() if any(word.endswith(".yaml") for word in words)]
    assert len(runs) == 4
    for words in runs:
        config = next(word for word in words if word.endswith(".yaml"))
        load_config(Path(config), [word for word in words if re.fullmatch(r"[a-z_.]+=.*", word)])


def test_the_commands_and_scripts_of_the_first_hour_are_there() -> None:
    commands, seen = typer.main.get_command(app), 0
    for words in _commands():
        for script in (word for word in words if word.startswith("scripts/")):
            assert (ROOT / script).is_file()
        if "videornn" not in words:
            continue
        command, words = commands, words[words.index("videornn") + 1 :]
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
        seen += 1
    assert seen == 4
