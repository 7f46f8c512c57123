"""From the groups of conf/ and the facts of params.yaml to one resolved run; the only user of Hydra."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hope_model.errors import InputError
from hope_train.config import TrainConfig
from hope_train.values import describe, read_yaml, schema, strict


@dataclass(frozen=True)
class Params:
    """The small, hand-written facts of a pipeline run: params.yaml.

    Attributes:
        scale: a file of conf/scale.
        teach_scale: strength of HOPE's fast writes in the CMS; 0 switches them off.
        seed: of initial weights and data order.
        corpora: names of manifests in conf/corpus.
        runs: files of conf/run.
        evaluation: where the filter stage finds evaluation text; no run reads it.
        coverage_loss: what the tokenizer stage lets pass; no run reads it.
    """

    scale: str
    teach_scale: float
    seed: int
    corpora: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    evaluation: str = ""
    coverage_loss: float = 0.0


@dataclass(frozen=True)
class Composed(TrainConfig):
    """What conf/ is merged into: a run, and the facts its files may refer to."""

    teach_scale: float = 0.0


def load_params(path: Path) -> Params:
    """Read params.yaml.

    Raises:
        InputError: an unknown or missing key, a wrong type.
    """
    return strict(Params, read_yaml(path), str(path))


def compose(run: str, conf: Path, params: Params, overrides: Sequence[str] = ()) -> TrainConfig:
    """Resolve one run.

    Args:
        run: a file of conf/run.
        conf: folder with config.yaml and the groups run, scale, task and optim.
        params: see `Params`; its facts give way to `overrides`.
        overrides: Hydra overrides such as `optim=adamw`, `model.layers=6` or, instead of text, `task=parity`.

    Raises:
        InputError: an unknown key, group or value; names the file that holds it.
    """
    _require(conf / "config.yaml", "--conf names the folder that holds it")
    for group, name in (("run", run), ("scale", params.scale)):
        names = ", ".join(sorted(file.stem for file in (conf / group).glob("*.yaml")))
        _require(conf / group / f"{name}.yaml", f"choose one of {names}")
    facts = [
        f"scale@_global_={params.scale}",
        f"run@_global_={run}",
        f"seed={params.seed}",
        f"teach_scale={params.teach_scale}",
    ]
    if not any(text.startswith("task=") for text in overrides):
        facts.append(f"data.corpora={params.corpora}")
    ConfigStore.instance().store(name="run_schema", node=schema(Composed))
    try:
        chosen = [re.sub(r"^(scale|task)=", r"\1@_global_=", text) for text in overrides]
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            merged = hydra_compose("config", overrides=[*facts, *chosen])
        merged.run = run
        values = OmegaConf.to_object(merged)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(_one_line(error, conf)) from None
    except InputError as error:
        raise InputError(f"{conf} for run '{run}', scale '{params.scale}': {error}") from None
    fields = [f.name for f in dataclasses.fields(TrainConfig)]
    return TrainConfig(**{name: getattr(values, name) for name in fields})


def _require(path: Path, remedy: str) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")


def _one_line(error: Exception, conf: Path) -> str:
    """Hydra says over several lines where it was and, in the cause, what was wrong."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    group = re.search(r"In '([^']+)'", str(error))
    where = str(conf / f"{group[1]}.yaml") if group else str(conf)
    if isinstance(cause, OmegaConfBaseException):
        return f"{where}: {describe(cause)}"
    mark = getattr(error, "problem_mark", None)
    if mark:
        return f"{mark.name}:{mark.line + 1}: not YAML: {getattr(error, 'problem', '')}"
    text = re.split(r"Config search path|See https", str(error))[0]
    return f"{where}: " + " ".join(text.split())
