"""The settings of a run: those that are not the schema's defaults first, then all."""

from __future__ import annotations

from collections.abc import Iterator

import yaml
from pydantic.fields import FieldInfo

from videornn.config import Config, config_to_yaml
from videornn.report.markup import Markup, section, table, tag
from videornn.report.run_results import RunResults
from videornn.schema import Section


def settings_section(run: RunResults) -> Markup:
    """What differs from the defaults, with its meaning; the whole config folded away."""
    rows = [
        [tag("code", key), tag("code", _text(value)), tag("code", _text(default)), field.description]
        for key, value, default, field in differences(run.config, Config())
    ]
    return section(
        "settings",
        "Settings",
        tag("p", "These are not the defaults:"),
        table(["setting", "value", "default", "meaning"], rows, class_="settings"),
        tag("details", tag("summary", "The whole config.yaml"), tag("pre", config_to_yaml(run.config))),
    )


def differences(config: Section, default: Section, prefix: str = "") -> Iterator[tuple[str, object, object, FieldInfo]]:
    """Dotted key, value, default and field of every setting that is not its default, in the order of the schema."""
    plain, usual = config.model_dump(mode="json"), default.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            yield from differences(value, getattr(default, name), f"{prefix}{name}.")
        elif plain[name] != usual[name]:
            yield prefix + name, plain[name], usual[name], field


def _text(value: object) -> str:
    """A value as config.yaml has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
