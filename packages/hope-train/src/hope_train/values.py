"""From YAML to frozen dataclasses: an unknown key or a wrong type is one line that names file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from hope_model.errors import InputError

T = TypeVar("T")


def strict(kind: type[T], values: dict[str, Any], source: str) -> T:
    """Merge plain values into the defaults of a dataclass.

    Args:
        kind: the dataclass.
        values: nested plain values, as YAML gives them.
        source: what to call them in an error, usually the file's name.

    Raises:
        InputError: an unknown or missing key, a wrong type, a value out of range.
    """
    try:
        return cast("T", OmegaConf.to_object(OmegaConf.merge(schema(kind), values)))
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {describe(error)}") from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: no such file, broken YAML (with its line), or something other than a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: a mapping of keys to values is wanted, not a {type(values).__name__}")
    return values


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


def describe(error: OmegaConfBaseException) -> str:
    """One line for people: the key, then what is wrong with it."""
    key = getattr(error, "full_key", None)
    reason = str(getattr(error, "msg", None) or error).strip().splitlines()[0]
    if isinstance(error, MissingMandatoryValue):
        return f"'{key}' is missing"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"unknown key '{key}'; remove it or correct its spelling"
    return f"'{key}': {reason}" if key else reason
