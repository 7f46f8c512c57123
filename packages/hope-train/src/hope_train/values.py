"""From YAML to frozen dataclasses: an unknown key or a wrong type is one line that names file and key."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from hope_data.errors import InputError as DataInputError
from hope_data.files import NAME, check_depth, every_entry, open_regular
from hope_model.errors import InputError
from hope_model.ranges import KINDS, shown

T = TypeVar("T")
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]{1,3}")
LARGEST = 100_000  # bytes of a file; the largest of ours has 3,000


def strict(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a dataclass from plain values; what they leave out keeps its default.

    Args:
        kind: the dataclass; its `__post_init__` checks the types and ranges of its values.
        values: nested plain values, as YAML gives them.
        source: what to call them in an error, usually the file's name.

    Raises:
        InputError: an unknown or missing key, a wrong type, a value out of range.
    """
    try:
        return _build(kind, values, "")
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _build(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(cast("Any", kind))
    if unknown := [str(key) for key in values if key not in hints]:
        raise InputError(f"unknown key '{prefix}{unknown[0]}'; remove it or correct its spelling")
    for field in fields:
        needed = (
            field.default in (dataclasses.MISSING, MISSING) and field.default_factory is dataclasses.MISSING
        )
        if needed and field.name not in values:
            raise InputError(f"'{prefix}{field.name}' is missing")
    return kind(**{key: _convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()})


def _convert(value: Any, hint: Any, name: str) -> Any:
    """The value with dataclasses in the place of mappings; other wrong types are left to `check_ranges`."""
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        return None if value is None else _convert(value, arguments[0], name)
    if dataclasses.is_dataclass(kind) or kind is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{name} is {shown(value)}; it must be a mapping")
        if kind is not dict:
            return _build(cast("Any", kind), value, f"{name}.")
        for key in value:
            if type(key) is not arguments[0]:
                raise InputError(f"{name}: key {shown(key)} must be {KINDS[arguments[0]]}")
        return {key: _convert(entry, arguments[1], f"{name}.{key}") for key, entry in value.items()}
    if kind is list and isinstance(value, list):
        return [_convert(entry, arguments[0], f"{name}[{n}]") for n, entry in enumerate(value)]
    # YAML 1.1 takes 1e-3 for text.
    if kind is float and (type(value) is int or (isinstance(value, str) and EXPONENT.fullmatch(value))):
        with suppress(OverflowError):  # too large a number is refused with its range
            return float(value)
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: no such file, broken YAML (with its line), or something other than a mapping.
    """
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise InputError(f"{path}: larger than {LARGEST:,} bytes; a configuration is a page of text")
        text = content.decode()
        check_depth(path, text)
        values = yaml.safe_load(text)
        for name, entry in every_entry(path, values):
            if isinstance(entry, int) and entry.bit_length() > 1000:
                raise InputError(f"{path}: {name} is {shown(entry)}; no key takes as large a number")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (InputError, DataInputError) as error:
        raise InputError(str(error)) from None
    except RecursionError:
        raise InputError(f"{path}: lists or mappings are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise InputError(f"{where}: not YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: a mapping of keys to values is wanted, not a {type(values).__name__}")
    return values


def check_name(key: str, value: str) -> None:
    """Refuse a name that a path or a shell could take for something else.

    Raises:
        InputError: names the key.
    """
    if not (isinstance(value, str) and NAME.fullmatch(value)):
        raise InputError(
            f"{key} is {shown(value)}; a name has at most 100 letters, digits, '_', '-' and '.', "
            "and does not begin with '-' or '.'"
        )


def schema(kind: type) -> DictConfig:
    """The dataclass as an OmegaConf struct to merge into ("frozen" would make it read-only)."""
    node: DictConfig = OmegaConf.structured(kind)
    _unlock(node)
    return node


def _unlock(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(child, DictConfig):
            _unlock(child)
            if OmegaConf.get_type(child) is dict:  # any key is right: Hydra shall not ask for `+`
                OmegaConf.set_struct(child, False)


def describe(error: OmegaConfBaseException) -> str:
    """One line for people: the key, then what is wrong with it."""
    key = getattr(error, "full_key", None)
    reason = str(getattr(error, "msg", None) or error).strip().splitlines()[0]
    if isinstance(error, MissingMandatoryValue):
        return f"'{key}' is missing"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"unknown key '{key}'; remove it or correct its spelling"
    return f"'{key}': {reason}" if key else reason
