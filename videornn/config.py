"""Configs in and out: a YAML file plus overrides `section.key=value`; an unknown key is an error that names the nearest."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from videornn.errors import UserError
from videornn.schema import (
    AttentionConfig,
    Config,
    DataConfig,
    ModelConfig,
    MultigridConfig,
    Section,
    TestConfig,
    TrainConfig,
)

__all__ = [
    "AttentionConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "MultigridConfig",
    "TestConfig",
    "TrainConfig",
    "config_from_dict",
    "config_to_yaml",
    "load_config",
    "override_config",
]


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The config of a YAML file with overrides applied.

    Args:
        overrides: `section.key=value` strings; the value is YAML.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown, a value has the wrong type or range; the
            message names the file and line, or the override, and the nearest key.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"config {path} is a folder; give a file, such as {path / 'config.yaml'}")
    if not path.is_file():
        raise UserError(f"config {path} does not exist{_nearest_config(path)}")
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of sections such as `model:` and `data:`, not a {_kind(values)}")
    places = {key: f"{path}:{line}" for key, line in _key_lines(node).items()}
    return _validate(values, overrides or [], places, str(path))


def override_config(config: Config, overrides: list[str]) -> Config:
    """A copy of the config with `section.key=value` strings applied; raises UserError like load_config."""
    return _validate(config.model_dump(mode="json"), overrides, {}, "config")


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """The config stored in a checkpoint; source names it in errors."""
    return _validate(values, [], {}, source)


def config_to_yaml(config: Config, *, comments: bool = False) -> str:
    """The resolved config as YAML, with the meaning of every field above it if comments is set."""
    return "\n".join(_yaml_lines(config, "", comments)).lstrip("\n") + "\n"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _validate(values: dict, overrides: list[str], places: dict[str, str], source: str) -> Config:
    values = json.loads(json.dumps(values, default=str))  # a deep copy, of plain JSON types
    for override in overrides:
        key, value = _parse_override(override)
        _set_dotted(values, key, value, override)
        places = {old: place for old, place in places.items() if not old.startswith(f"{key}.")}  # replaced as a whole
        places[key] = f"override {override!r}"
    try:
        # JSON mode is as strict as Python mode but takes a list for a tuple, which is all that YAML has
        return Config.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UserError(_sentence(error, places, source)) from None


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form section.key=value")
    try:
        return key, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML") from error


def _set_dotted(values: dict, key: str, value: Any, override: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {section} is a value, not a section")
    values[name] = value


def _sentence(error: ValidationError, places: dict[str, str], source: str) -> str:
    first, *others = error.errors(include_url=False)
    # pydantic adds the branch of a union or "[key]" to the place: keep the part that is a key of the file
    keys = [str(part) for part in first["loc"]]
    known = next((n for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in places), 0)
    key = ".".join(keys).removesuffix(".[key]")
    place = places.get(".".join(keys[:known]), source)
    if first["type"] == "extra_forbidden":
        problem = f"unknown key {key!r}; {_nearest_key(key)}"
    else:
        got = "" if isinstance(first["input"], dict) else f", got {json.dumps(first['input'])} ({_kind(first['input'])})"
        problem = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}{got}".replace("value error, ", "")
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {problem}{more}"


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
        is_class = get_origin(field.annotation) is None and isinstance(field.annotation, type)
        if is_class and issubclass(field.annotation, BaseModel):
            keys += _dotted_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _key_lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """Line (from 1) of every dotted key of a composed YAML document."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    lines = {}
    for key, value in node.value:
        lines[prefix + key.value] = key.start_mark.line + 1
        lines |= _key_lines(value, f"{prefix}{key.value}.")
    return lines


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true/false", int: "whole number", float: "number", list: "list", type(None): "null"}
    return names.get(type(value), "mapping")


def _nearest_config(path: Path) -> str:
    parent = path.parent if path.parent.is_dir() else Path("configs")
    near = difflib.get_close_matches(path.name, [file.name for file in parent.glob("*.yaml")], n=1)
    return f"; did you mean {parent / near[0]}?" if near else "; the recipes are in configs/"


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
