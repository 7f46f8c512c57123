"""Reads a corpus manifest strictly: an unknown key is an error that names it and lists those there are."""

import io
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from hope_data.config import CODE_FILTER, CONTENTS, KINDS, Manifest
from hope_data.errors import InputError
from hope_data.files import check_depth, every_entry, open_regular

_MOST_BYTES = 1 << 20
_LARGEST = 10**15
# Upper ends of keys that are no counts; every number is 0 or more.
_UPPER = {
    "filter.min_letters": 1,
    "filter.max_bullets": 1,
    "filter.max_duplicate_lines": 1,
    "filter.max_top_trigram": 1,
    "filter.near_duplicate": 1,
    "filter.passage_lines": 1000,
}


def load_manifest(path: Path) -> Manifest:
    """Read a manifest; what it leaves out has the default value of this module.

    Raises:
        InputError: no such file, no YAML, an unknown key or an unfit value; file and key are named.
    """
    given = _read(path)
    schema = OmegaConf.structured(
        Manifest(filter=CODE_FILTER) if given.get("content") == "code" else Manifest()
    )
    _thaw(schema)
    try:
        manifest: Any = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key or _unfit(schema, given))
        if isinstance(error, ConfigKeyError | ConfigAttributeError):
            parent = schema
            for part in key.split(".")[:-1]:  # a key of a manifest can hold a dot itself
                parent = parent[part] if part in parent and isinstance(parent[part], DictConfig) else parent
            raise InputError(
                f"{path}: unknown key {key!r}; known here: {', '.join(map(str, parent))}"
            ) from None
        raise InputError(f"{path}: key {key!r}: {str(error).splitlines()[0]}; see docs/data.md") from None
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{path}: a key has a value of the wrong type ({error}); see docs/data.md") from None
    return _checked(path, manifest)


def _unfit(schema: DictConfig, given: DictConfig) -> str:
    """The first key whose value has another form; OmegaConf does not always name it."""
    for key in given:
        try:
            OmegaConf.merge(schema, OmegaConf.masked_copy(given, str(key)))
        except OmegaConfBaseException:
            return str(key)
    return ""


def _read(path: Path) -> DictConfig:
    try:
        with open_regular(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InputError(
                f"{path}: is longer than {_MOST_BYTES >> 20} MiB; --manifest takes conf/corpus/NAME.yaml"
            )
        text = content.decode("utf-8-sig")
        check_depth(path, text)
        _refuse_references(path, yaml.safe_load(text))
        given = OmegaConf.load(io.StringIO(text))
    except OSError as error:
        if error.strerror:
            remedy = "--manifest takes a file like conf/corpus/NAME.yaml"
            raise InputError(f"{path}: {error.strerror}; {remedy}") from None
        given = None  # a single word or number
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 ({error.reason}); convert it with iconv") from None
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path}: lists or mappings are nested too deeply") from None
    except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: is no YAML ({' '.join(str(error).split())[:300]})") from None
    if not isinstance(given, DictConfig):
        raise InputError(f"{path}: is no mapping of keys to values; see conf/corpus/mine.yaml for an example")
    return given


def _refuse_references(path: Path, content: Any) -> None:
    """Refuse references, which could grow as aliases do; an environment variable is welcome."""
    for name, entry in every_entry(path, content):
        for text in (name, entry):
            if isinstance(text, str) and (unknown := re.search(r"\$\{(?!oc\.env:).{0,40}", text)):
                raise InputError(f"{path}: {unknown[0]!r}: only ${{oc.env:NAME,default}} is understood")


def _thaw(node: Any) -> None:
    """Let a merge fill the lists inside frozen dataclasses, which OmegaConf would refuse as read-only."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        if isinstance(child := node._get_node(key), DictConfig):
            _thaw(child)


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
    for key, given in (needs.get(manifest.kind, ("files", manifest.files)), ("fields", manifest.fields)):
        if not given or not all(isinstance(entry, str) and entry.strip() for entry in given):
            raise InputError(f"{path}: key {key!r}: kind {manifest.kind} needs it, without empty entries")
    for key in ("separator", "drop_lines"):
        try:
            re.compile(getattr(manifest, key))
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(f"{path}: key {key!r}: is no regular expression ({error})") from None
    _check_numbers(path, manifest)
    return manifest


def _check_numbers(path: Path, manifest: Manifest) -> None:
    for scale, limits in manifest.scales.items():
        if unknown := sorted(set(limits) - {"documents", "bytes"}):
            raise InputError(f"{path}: key 'scales.{scale}.{unknown[0]}': must be documents or bytes")
    for key, number in _numbers(manifest):
        upper = _UPPER.get(key, _LARGEST)
        if not 0 <= number <= upper:
            raise InputError(f"{path}: key {key!r}: {str(number)[:20]} must lie between 0 and {upper}")
    if not 0 < manifest.holdout < 0.5:
        raise InputError(
            f"{path}: key 'holdout': {manifest.holdout} must lie between 0 and 0.5, neither included"
        )


def _numbers(settings: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested settings, with its key."""
    named = (
        {f.name: getattr(settings, f.name) for f in fields(settings)} if is_dataclass(settings) else settings
    )
    for name, value in named.items():
        if is_dataclass(value) or isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def check_scale(path: Path, manifest: Manifest, scale: str) -> str:
    """Return a scale that exists: one that the manifest names, or one of the folder `scale` beside the manifest's own.

    Raises:
        InputError: there are scales, and it is none of them.
    """
    known = {
        *manifest.scales,
        *(file.stem for file in (path.absolute().parent.parent / "scale").glob("*.yaml")),
    }
    if scale and known and scale not in known:
        raise InputError(f"--scale {scale}: there is no such scale; choose one of {', '.join(sorted(known))}")
    return scale
