"""README, CONTRIBUTING and docs/: the commands, settings, files and links that they name are there."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT
from typer.main import get_command

from videornn.cli.commands import app
from videornn.config import Config, load_config

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
SETTING = re.compile(r"(?:model|data|train|test)\.[a-z_.0-9]+=|seed=|device=")


def _id(path: Path) -> str:
    return path.name


def _code(path: Path) -> list[str]:
    """Lines of shell in blocks of a page, or the header of a recipe; and what begins with videornn between backticks."""
    text = path.read_text()
    if path.suffix == ".yaml":
        lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
        blocks = ["\n".join(lines)]
        inline = []
    else:
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        inline = re.findall(r"`(videornn [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [*joined.splitlines(), *(line.replace("\\|", " ") for line in inline)]


def _words(line: str) -> list[str]:
    """The words of a line without its comment and without brackets of what may be left out; none if it is prose."""
    try:
        return [word.strip("[]") for word in shlex.split(re.sub(r"\s#.*|\.\.\.", " ", line))]
    except ValueError:
        return []


def _command(words: list[str]) -> tuple[object, list[str]]:
    """The command of the words after `videornn`, as typer has it, and the words after it."""
    command = get_command(app)
    while hasattr(command, "commands") and words and re.fullmatch(r"[a-z]+", words[0]):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def _calls_videornn(words: list[str]) -> bool:
    return "videornn" in words and (words[0] in {"videornn", "torchrun", "time"} or "-m" in words)


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=_id)
def test_every_command_has_the_options_that_it_is_shown_with(page: Path) -> None:
    lines = [line for line in _code(page) if _calls_videornn(_words(line))]
    assert lines or page not in (ROOT / "README.md", *RECIPES)
    for line in lines:
        words = _words(line)
        command, rest = _command(words[words.index("videornn") + 1 :])
        options = {option for parameter in command.params for option in parameter.opts}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in options | {"--help"}, f"{line}: {word}"


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=_id)
def test_every_setting_and_file_that_a_command_names_is_there(page: Path) -> None:
    for line in _code(page):
        words = _words(line)
        if not {"videornn", "python", "bash", "sbatch"} & set(words):
            continue
        for word in words:
            if SETTING.match(word):
                section = Config
                for key in word.partition("=")[0].split("."):
                    assert key in getattr(section, "model_fields", ()), f"{line}: {word}"
                    section = section.model_fields[key].annotation
            if re.match(r"(scripts|configs|tests)/[\w/{},.-]*\.(py|sh|yaml|slurm)$", word) and "{" not in word:
                assert (ROOT / word).is_file(), f"{line}: {word}"
        scripts = [word for word in words if re.fullmatch(r"scripts/\w+\.py", word)]
        if scripts:
            source = "".join(path.read_text() for path in (ROOT / "scripts").glob("*.py"))
            for word in words[words.index(scripts[0]) :]:
                assert not word.startswith("--") or f'"{word.partition("=")[0]}"' in source, f"{line}: {word}"


def test_the_settings_of_the_first_hour_make_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = [_words(line) for line in _code(ROOT / "docs/first_hour.md")]
    runs = [words for words in commands if any(word.endswith(".yaml") for word in words)]
    assert len(runs) == 4 and sum("videornn" in words for words in commands) >= 4
    for words in runs:
        config = next(word for word in words if word.endswith(".yaml"))
        load_config(Path(config), [word for word in words if re.fullmatch(r"[a-z_.]+=.*", word)])


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place) if place else page
        assert file.is_file(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, target
    for name in re.findall(r"`((?:videornn|scripts|configs|tests|docs)/[\w/]+\.\w+)`", page.read_text()):
        assert (ROOT / name).is_file(), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text()) <= 12_000
