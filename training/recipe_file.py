"""Recipes as YAML files: their values into dataclasses, with overrides, and back into flat names."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from training.run_recipe import Number, RunRecipe

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)


def sections(kind: Any) -> dict[str, Any]:
    """The sections of a kind of recipe: names and dataclasses."""
    return {field.name: field.type for field in dataclasses.fields(kind) if dataclasses.is_dataclass(field.type)}


def check_known(values: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuses names that nobody would look at."""
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown keys {unknown} in {where}; known: {list(known)}")


def _numbers(value: Any) -> Any:
    """1e-4 is a text to YAML 1.1; here it is a number."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _known(kind: Any, values: Any, where: str) -> dict[str, Any]:
    """`values` with the names of a dataclass's fields, and numbers where they are numbers (not in names of places)."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold fields, got {values!r}")
    check_known(values, types, where)
    numeric = (Number, list[Number], dict[str, Any])
    return {name: _numbers(value) if types[name] in numeric else value for name, value in values.items()}


def fill(kind: type[AnyRecipe], values: dict[str, Any], where: str = "the recipe") -> AnyRecipe:
    """A recipe of some kind (a strict dataclass) from nested plain values, as in its YAML file.

    Raises:
        ValueError: for unknown or missing keys.
        StrictDataclassError: for a value of a wrong type or out of range.
    """
    values = _known(kind, values, where)
    required = {
        field.name for field in dataclasses.fields(kind) if field.default is field.default_factory
    }  # both are MISSING
    if missing := sorted(required - set(values)):
        raise ValueError(f"{where} lacks {missing}")
    for name, section in sections(kind).items():
        if name in values:
            given = {} if values[name] is None else values[name]
            values[name] = section(**_known(section, given, f"{name} of {where}"))
    return kind(**values)


def read_values(path: str | Path, overrides: list[str]) -> Any:
    """What a YAML file holds, with `key=value` or `section.key=value` overrides (values are YAML too).

    Raises:
        ValueError: for an override without `=`, or into what holds no fields.
    """
    values = yaml.safe_load(Path(path).read_text()) or {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"expected key=value, got '{override}'")
        *parents, leaf = key.split(".")
        target = values
        for parent in parents:
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
            if not isinstance(target, dict):
                raise ValueError(f"{override}: {parent} holds no fields, but {target!r}")
        target[leaf] = yaml.safe_load(value)
    return values


def flat(recipe: RunRecipe) -> dict[str, Any]:
    """All fields by dotted name, such as `optimizer.learning_rate`; a dictionary, such as `model`, is one field."""
    fields: dict[str, Any] = {}
    parts = sections(recipe)
    for name, value in dataclasses.asdict(recipe).items():
        if name in parts:
            fields |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            fields[name] = value
    return fields
