"""Load and write configs: a YAML file plus overrides `section.key=value`; errors for unknown keys name the nearest."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from videornn.errors import UserError
from videornn.schema import (
    AttentionConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    MultigridConfig,
    Section,
    TrainConfig,
)
from videornn.system.text_files import NoFile, read_text
from videornn.system.urls import is_url, text_without_secrets

__all__ = [
    "AttentionConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "MultigridConfig",
    "TrainConfig",
    "check_overrides",
    "config_from_dict",
    "config_to_yaml",
    "load_config",
    "override_config",
]

FILES = ("data.train", "data.val", "data.test", "data.root", "data.labels", "model.init")
# no config comes near these limits, but far beyond them PyYAML takes minutes, or any amount of memory
MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 10_000
MAX_DIGITS = 100
MAX_SHOWN = 200  # characters of a value in a message
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Load the config of a YAML file with overrides applied.

    Args:
        overrides: `section.key=value` strings; the value is YAML.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown, a value has the wrong type or range; the message names
            the file and line, or the override, and the nearest key.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"config {path} is a folder; give a file, such as {path / 'config.yaml'}")
    try:
        text = read_text(path, max_bytes=MAX_BYTES)
    except NoFile:
        raise UserError(f"config {path} does not exist{_nearest_config(path)}") from None
    values, lines = _parse(text, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of sections such as `model:` and `data:`, not a {_kind(values)}")
    return _validate(values, overrides or [], {key: f"{path}:{line}" for key, line in lines.items()}, str(path))


def override_config(config: Config, overrides: list[str]) -> Config:
    """Return a copy of the config with `section.key=value` strings applied; raises UserError like load_config."""
    return _validate(config.model_dump(mode="json"), overrides, {}, "config")


def check_overrides(overrides: list[str]) -> None:
    """Raise UserError for `section.key=value` strings that no config can take; commands do so before they import torch."""
    _check({}, overrides, {}, "config", partly=True)


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """Read the config stored in a checkpoint; source names it in errors."""
    return _validate(values, [], {}, source)


def config_to_yaml(config: Config, *, comments: bool = False) -> str:
    """Write the resolved config as YAML, with the meaning of every field above it if comments is set."""
    return "\n".join(_yaml_lines(config, "", comments)).lstrip("\n") + "\n"


class _Loader(yaml.SafeLoader):
    """A SafeLoader limited to the types of JSON: 1e-3 is a number (YAML 1.2), a date is text; keys are text and unique.

    Aliases (*name) may repeat parts of a file, as long as the whole, written out, stays within the limits above.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0
        self._sizes: dict[yaml.Node, int] = {}  # number of nodes of every part read so far, with aliases written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        self._depth += 1
        self._num_nodes += 1
        if self._depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            raise _mistake(event, "this is nested too deep" if self._depth > MAX_DEPTH else "these are too many values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _mistake(event, f"*{event.anchor} stands inside of what it repeats")
            self._num_nodes += self._sizes[node] - 1
            return node
        _check_value(node, self.resolve(type(node), node.value, (True, False)))
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            parts = [part for pair in parts for part in pair]
        self._sizes[node] = 1 + sum(self._sizes[part] for part in parts)
        return node


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _check_value(node: yaml.Node, tag: str) -> None:
    """Raise YAMLError for a value that its constructor would not take; tag: the type that it looks like."""
    if node.tag not in (TEXT, tag):
        raise _mistake(node, f"this is not what the tag before it, {node.tag}, says")
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
        raise _mistake(node, f"a number of {len(node.value):,} digits is too long")
    if isinstance(node, yaml.ScalarNode) and re.search("[\ud800-\udfff]", node.value):
        raise _mistake(node, f"{_shortened(node.value)!r} has half a character")


def _check_keys(node: yaml.MappingNode) -> None:
    """Raise YAMLError for a key that is no text, or occurs twice."""
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag not in (TEXT, MERGE):
            what = repr(_shortened(key.value)) if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
            raise _mistake(key, f"a key is text, not {what} as here")
        if key.value in seen:
            raise _mistake(key, f"key {_shortened(key.value)!r} is given twice")
        seen.add(key.value)


def _mistake(node: yaml.Node | yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _parse(text: str, source: str, *, numbered: bool = True) -> tuple[Any, dict[str, int]]:
    """Parse a YAML text; return its value and the line (from 1) of every dotted key; numbered: whether errors name lines."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), _key_lines(node)
    except yaml.reader.ReaderError as error:
        line, problem = text.count("\n", 0, error.position), f"the character {error.character:#x} is no text"
    except yaml.MarkedYAMLError as error:
        line, problem = error.problem_mark.line, error.problem
    raise UserError(f"{source}{f':{line + 1}' if numbered else ''}: not valid YAML: {problem}")


def _validate(values: object, overrides: list[str], origins: dict[str, str], source: str) -> Config:
    """The config of values and overrides."""
    config = _check(values, overrides, origins, source, partly=False)
    assert config is not None
    return config


def _check(values: object, overrides: list[str], origins: dict[str, str], source: str, *, partly: bool) -> Config | None:
    """Validate values with overrides; partly: ignore errors between settings, and return None if there are any."""
    try:
        values = json.loads(json.dumps(values, default=str))  # a deep copy, of plain JSON types
    except (TypeError, ValueError, RecursionError):  # keys of other types; a mapping inside itself, or nested too deep
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{source}: there is no config in it that could be read")
    for override in overrides:
        key, value = _parse_override(override)
        _set_dotted(values, key, value, override)
        origins = {old: origin for old, origin in origins.items() if not old.startswith(f"{key}.")}  # replaced as a whole
        origins[key] = f"override {_shortened(override)!r}"
    try:
        # JSON mode is as strict as Python mode but takes a list for a tuple, which is all that YAML has
        config = Config.model_validate_json(json.dumps(values))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        errors = [error for error in errors if not (partly and _is_of_several(error))]
        if not errors:
            return None
        raise UserError(_sentence(errors, origins, source)) from None
    for key in FILES:
        section, _, name = key.partition(".")
        if key in origins and is_url(getattr(getattr(config, section), name) or ""):
            origin = text_without_secrets(origins[key])
            raise UserError(f"{origin}: {key} is a URL, and files are read from this machine: download it and give its path")
    return config


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {_shortened(override)!r} is not of the form section.key=value")
    if key.count(".") > MAX_DEPTH:
        raise UserError(f"override {_shortened(override)!r}: there is no such key")
    return key, _parse(text, f"override {_shortened(override)!r}", numbered=False)[0]


def _set_dotted(values: dict, key: str, value: Any, override: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"override {_shortened(override)!r}: {section} is a value, not a section")
    values[name] = value


def _is_of_several(error: ErrorDetails) -> bool:
    """Return whether an error is about settings of a section that do not go together, though each may be right."""
    sections = {key.rpartition(".")[0] for key in _dotted_keys(Config)}
    return error["type"] == "value_error" and ".".join(map(str, error["loc"])) in sections


def _sentence(errors: list[ErrorDetails], origins: dict[str, str], source: str) -> str:
    first, *others = errors
    # pydantic adds the branch of a union or "[key]" to the place: keep the part that is a key of the file
    keys = [str(part) for part in first["loc"]]
    known = next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in origins), 0)
    key = ".".join(keys).removesuffix(".[key]")
    origin = origins.get(".".join(keys[:known]), source)
    if first["type"] == "extra_forbidden":
        problem = f"unknown key {_shortened(key)!r}; {_nearest_key(key)}"
    else:
        given = first["input"]
        got = "" if isinstance(given, dict) else f", got {_shortened(json.dumps(given))} ({_kind(given)})"
        problem = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}{got}".replace("value error, ", "")
    more = f" (and {len(others)} more)" if others else ""
    return f"{origin}: {problem}{more}"


def _nearest_key(key: str) -> str:
    keys = _dotted_keys(Config)
    same_name = [known for known in keys if known.split(".")[-1] == key.split(".")[-1]]
    near = same_name or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    section = key.rpartition(".")[0]
    names = [known for known in keys if known.rpartition(".")[0] == section] or list(Config.model_fields)
    return f"known keys are {', '.join(names)}"


def _dotted_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        kind = field.annotation
        if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += _dotted_keys(kind, f"{prefix}{name}.")
    return keys


def _key_lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """Return the line (from 1) of every dotted key of a composed YAML document."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    lines = {}
    for key, value in node.value:
        lines[prefix + key.value] = key.start_mark.line + 1
        lines |= _key_lines(value, f"{prefix}{key.value}.")
    return lines


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true/false", int: "whole number", float: "number", list: "list", type(None): "null"}
    return names.get(type(value), "mapping")


def _nearest_config(path: Path) -> str:
    parent = path.parent if path.parent.is_dir() else Path("configs")
    near = difflib.get_close_matches(path.name, [file.name for file in parent.glob("*.yaml")], n=1)
    if near:
        return f"; did you mean {parent / near[0]}?"
    recipes = Path(__file__).parents[1] / "configs"  # of a checkout
    return f"; the recipes are in {recipes if recipes.is_dir() else 'configs/'}"


def _yaml_lines(section: Section, indent: str, comments: bool) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        nested = isinstance(value, Section)
        if comments:
            choices = (
                f" ({' | '.join(map(str, get_args(field.annotation)))})" if get_origin(field.annotation) is Literal else ""
            )
            lines += [""] * nested + [f"{indent}# {field.description}{choices}"]
        if nested:
            lines += [f"{indent}{name}:", *_yaml_lines(value, indent + "  ", comments)]
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
            lines.append(f"{indent}{name}: {text.removesuffix('...' + chr(10)).strip()}")
    return lines
