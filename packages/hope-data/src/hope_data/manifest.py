"""Reads a corpus manifest strictly: an unknown key is an error that names it."""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hope_data.config import CODE_FILTER, CONTENTS, KINDS, Manifest
from hope_data.errors import InputError


def _thaw(node: Any) -> None:
    """Let a merge fill the lists inside frozen dataclasses, which OmegaConf would refuse as read-only."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        if isinstance(child := node._get_node(key), DictConfig):
            _thaw(child)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest; what it leaves out has the default value of this module.

    Raises:
        InputError: no such file, no YAML, an unknown key or an unfit value; file and key are named.
    """
    try:
        given = OmegaConf.load(path)
        if not isinstance(given, DictConfig):
            raise InputError(
                f"{path}: is no mapping of keys to values; see conf/corpus/mine.yaml for an example"
            )
        default = Manifest(filter=CODE_FILTER) if given.get("content") == "code" else Manifest()
        schema = OmegaConf.structured(default)
        _thaw(schema)
        manifest: Any = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; --manifest takes a file like conf/corpus/NAME.yaml"
        ) from None
    except YAMLError as error:
        raise InputError(f"{path}: is no YAML ({' '.join(str(error).split())})") from None
    except OmegaConfBaseException as error:
        key = error.full_key or error.key
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: key {key!r}: {reason}; known keys: docs/data.md") from None
    return _checked(path, manifest)


def _checked(path: Path, manifest: Manifest) -> Manifest:
    for key, value, allowed in (
        ("kind", manifest.kind, KINDS),
        ("content", manifest.content, CONTENTS),
        ("installed.what", manifest.installed.what, ("docs", "code")),
    ):
        if value not in allowed:
            raise InputError(f"{path}: key {key!r}: {value!r} must be one of {', '.join(allowed)}")
    needs = {
        "installed-docs": ("installed.packages", manifest.installed.packages),
        "hf": ("hub.path", manifest.hub.path),
    }
    key, given = needs.get(manifest.kind, ("files", manifest.files))
    if not given:
        raise InputError(f"{path}: key {key!r}: kind {manifest.kind} needs it")
    for key in ("separator", "drop_lines"):
        try:
            re.compile(getattr(manifest, key))
        except re.error as error:
            raise InputError(f"{path}: key {key!r}: is no regular expression ({error})") from None
    for scale, limits in manifest.scales.items():
        if unknown := sorted(set(limits) - {"documents", "bytes"}):
            raise InputError(f"{path}: key 'scales.{scale}.{unknown[0]}': must be documents or bytes")
    _numbers(path, manifest)
    return manifest


def _numbers(path: Path, manifest: Manifest) -> None:
    holdout, near, lines = manifest.holdout, manifest.filter.near_duplicate, manifest.filter.passage_lines
    for key, number, fits, allowed in (
        ("holdout", holdout, 0 < holdout < 0.5, "lie between 0 and 0.5"),
        ("filter.near_duplicate", near, 0 <= near <= 1, "lie between 0 and 1"),
        ("filter.passage_lines", lines, lines >= 0, "be a number of lines, 0 for none"),
    ):
        if not fits:
            raise InputError(f"{path}: key {key!r}: {number} must {allowed}")
