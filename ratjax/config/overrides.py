"""Configurations as plain data: `ConfigDict` for command lines, JSON for files, and back.

The frozen dataclasses are the only definition of what a field is called, what type it has and
which values it takes. A `ConfigDict` is their editable copy: experiment files return one, and
`--config.train.steps=10` changes one. On the way back every name and type is checked.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ratjax.errors import ConfigError, InputError, nearest

Config = TypeVar("Config")


class Field(typing.NamedTuple):
    """One leaf of a configuration: its dotted name, annotation, value and documentation."""

    name: str
    annotation: Any
    value: Any
    doc: str


def to_config_dict(config: Any) -> ConfigDict:
    """An editable copy of a configuration dataclass, nested ones included.

    Unset optional fields become placeholders that know their type, so that a command line can
    set them.
    """
    result = ConfigDict(type_safe=False)
    for name, annotation in _annotations(type(config)).items():
        result[name] = _editable(annotation, getattr(config, name))
    return result


def from_mapping(
    kind: type[Config], mapping: Mapping[str, Any] | ConfigDict, path: str = ""
) -> Config:
    """Builds a configuration dataclass from a `ConfigDict` or from parsed JSON.

    Args:
      kind: the dataclass to build.
      mapping: its fields; those left out take their defaults.
      path: dotted name of `mapping` itself, for messages.

    Raises:
      ConfigError: a value of the wrong type, or one that the dataclass refuses.
      InputError: an unknown name (with the nearest known ones), or a missing one.
    """
    annotations = _annotations(kind)
    values = {}
    for name in mapping:
        if name not in annotations:
            raise InputError(f"{path}{name}: unknown field; {nearest(name, annotations)}")
        values[name] = _value(annotations[name], mapping[name], f"{path}{name}")
    for field in dataclasses.fields(kind):
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and field.name not in values:
            raise InputError(f"{path}{field.name}: missing; {kind.__name__} has no default for it")
    return kind(**values)


def to_json(config: Any) -> Any:
    """A configuration as JSON types; `from_mapping` reads it back."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_json(item) for item in config]
    return config


def changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two JSON values differ, as (dotted name, old, new); None: absent."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from changes(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from changes(before, after, f"{path}[{index}]")
    elif old != new:
        yield path, old, new


def leaves(kind: type, value: Any = None, path: str = "") -> Iterator[Field]:
    """Every field of a configuration dataclass, nested ones opened, with its documentation.

    Args:
      kind: the dataclass.
      value: an instance whose values are listed; None lists the defaults.
      path: prefix of the names.
    """
    docs = _field_docs(kind)
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    for name, annotation in _annotations(kind).items():
        current = defaults[name] if value is None else getattr(value, name)
        nested = _dataclass_in(annotation)
        if nested is not None and not _is_tuple(annotation):
            inner = current if dataclasses.is_dataclass(current) else None
            yield from leaves(nested, inner, f"{path}{name}.")
        else:
            yield Field(f"{path}{name}", annotation, current, docs.get(name, ""))


def type_name(annotation: Any) -> str:
    """An annotation as a reader would write it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"(\w+\.)+", "", str(annotation))


def _annotations(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _optional(annotation: Any) -> tuple[Any, bool]:
    """(annotation without None, whether None was in it)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = typing.get_args(annotation)
        others = [member for member in members if member is not types.NoneType]
        if len(others) == 1 and len(members) == 2:
            return others[0], True
        raise TypeError(f"a configuration field cannot be {annotation}")
    return annotation, False


def _is_tuple(annotation: Any) -> bool:
    return typing.get_origin(_optional(annotation)[0]) is tuple


def _dataclass_in(annotation: Any) -> type | None:
    annotation, _ = _optional(annotation)
    return annotation if dataclasses.is_dataclass(annotation) else None


def _tuple_items(annotation: Any, length: int, value: Any, path: str) -> tuple[Any, ...]:
    """The annotation of each item of a tuple of `length` items."""
    items = typing.get_args(annotation)
    if len(items) == 2 and items[1] is Ellipsis:
        return (items[0],) * length
    if len(items) != length:
        raise ConfigError(path, value, f"needs {len(items)} items, has {length}")
    return items


def _editable(annotation: Any, value: Any) -> Any:
    annotation, _ = _optional(annotation)
    if value is None:
        return placeholder(annotation if annotation in (int, float, str, bool) else object)
    if dataclasses.is_dataclass(value):
        return to_config_dict(value)
    if isinstance(value, tuple):
        items = _tuple_items(annotation, len(value), value, "")
        return tuple(_editable(item, v) for item, v in zip(items, value, strict=True))
    # An int in a float field would make the command line refuse 1e-6 for it.
    return float(value) if annotation is float else value


def _value(annotation: Any, value: Any, path: str) -> Any:
    annotation, optional = _optional(annotation)
    if value is None:
        if optional:
            return None
        raise ConfigError(path, value, f"must be of type {type_name(annotation)}")
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, annotation):
            return value
        if not isinstance(value, Mapping | ConfigDict):
            raise ConfigError(path, value, f"must be the fields of a {annotation.__name__}")
        return from_mapping(annotation, value, f"{path}.")
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(path, value, "must be a tuple")
        items = _tuple_items(annotation, len(value), value, path)
        return tuple(
            _value(item, v, f"{path}[{i}]")
            for i, (item, v) in enumerate(zip(items, value, strict=True))
        )
    whole_number = isinstance(value, int) and not isinstance(value, bool)
    if annotation is float and whole_number:
        return float(value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    fits = whole_number if annotation is int else isinstance(value, annotation)
    if not fits:
        raise ConfigError(path, value, f"must be of type {type_name(annotation)}")
    return value


def _field_docs(kind: type) -> dict[str, str]:
    """What the `Attributes:` section of a dataclass's docstring says of each field."""
    _, _, section = (kind.__doc__ or "").partition("Attributes:\n")
    docs: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if opening := re.match(r" {6}(\w+(?:, \w+)*): (.*)", line):
            names = opening[1].split(", ")
            docs |= dict.fromkeys(names, opening[2].strip())
        elif names and line.startswith(" " * 8):
            docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return docs
