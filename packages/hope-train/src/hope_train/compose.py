"""From the groups of conf/ and the facts of params.yaml to one resolved run; the only user of Hydra."""

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

from hope_model.config import CMSConfig
from hope_model.errors import InputError
from hope_model.ranges import check_ranges, shown, within
from hope_train.config import SEED, TrainConfig
from hope_train.values import check_name, describe, read_yaml, schema, strict

GROUP = re.compile("(scale|task|optim)=")
PATH = re.compile(r"([A-Za-z0-9_./][A-Za-z0-9_./-]*)?")
TEACH_SCALE = next(key.metadata for key in dataclasses.fields(CMSConfig) if key.name == "teach_scale")


@dataclass(frozen=True)
class Params:
    """The small, hand-written facts of a pipeline run: params.yaml.

    Attributes:
        scale: a file of conf/scale.
        teach_scale: strength of HOPE's fast writes in the CMS; 0 switches them off.
        seeds: of initial weights and data order; every run is trained once with each.
        corpora: names of manifests in conf/corpus.
        runs: files of conf/run.
        evaluation: where the filter stage finds evaluation text; no run reads it.
        coverage_loss: what the tokenizer stage lets pass; no run reads it.
        init: checkpoint that every run continues from; empty: none.
        studies: files of conf/study that are stages of reports/dvc.yaml; no run reads it.
    """

    scale: str
    teach_scale: float = field(metadata=TEACH_SCALE)
    seeds: list[int] = field(metadata=SEED)
    corpora: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    evaluation: str = ""
    coverage_loss: float = field(default=0.0, metadata=within(0, 1))
    init: str = ""
    studies: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what cannot be: the pipeline hands these values to a shell."""
        check_ranges(self, "")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds is {self.seeds}; name each once, one at least")
        for key, names in {
            "scale": [self.scale],
            "corpora": self.corpora,
            "runs": self.runs,
            "studies": self.studies,
        }.items():
            for name in names:
                check_name(key, name)
        for key, path in {"evaluation": self.evaluation, "init": self.init}.items():
            if not PATH.fullmatch(path):
                raise InputError(
                    f"{key} is {shown(path)}; a path is of letters, digits, '_', '-', '.' and '/', "
                    "and does not begin with '-'"
                )


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
    if not (conf / "config.yaml").is_file():
        raise InputError(f"{conf / 'config.yaml'}: no such file; --conf names the folder that holds it")
    read_yaml(conf / "config.yaml")
    if misplaced := [text for text in overrides if text.startswith("run=")]:
        raise InputError(f"{misplaced[0]}: the run is chosen by --run")
    chosen = [("run", run), ("scale", params.scale)]
    chosen += [
        (text[: text.index("=")], text[text.index("=") + 1 :]) for text in overrides if GROUP.match(text)
    ]
    for group, name in chosen:
        _require_group(conf, group, name)
    facts = [
        f"scale@_global_={params.scale}",
        f"run@_global_={run}",
        f"seed={params.seeds[0]}",
        f"teach_scale={params.teach_scale}",
        f"init='{params.init}'",
    ]
    if not any(text.startswith("task=") for text in overrides):
        facts.append(f"data.corpora={params.corpora}")
    ConfigStore.instance().store(name="run_schema", node=schema(Composed))
    try:
        facts += [re.sub(r"^(scale|task)=", r"\1@_global_=", text) for text in overrides]
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            merged = hydra_compose("config", overrides=facts)
        merged.run = run
        values = OmegaConf.to_object(merged)
    except InputError as error:
        raise InputError(f"{conf} for run '{run}', scale '{params.scale}': {error}") from None
    except dataclasses.FrozenInstanceError as error:
        raise InputError(f"{conf}: an override adds a key that no run has ({error})") from None
    # Hydra answers some overrides, such as `=3`, with bare Python errors.
    except (
        HydraException,
        OmegaConfBaseException,
        yaml.YAMLError,
        ValueError,
        TypeError,
        OverflowError,
    ) as error:
        raise InputError(_one_line(error, conf)) from None
    fields = [f.name for f in dataclasses.fields(TrainConfig)]
    config = TrainConfig(**{name: getattr(values, name) for name in fields})
    if not config.init:
        return config
    from hope_train.initial import resolved  # noqa: PLC0415 (torch takes seconds to import)

    return resolved(config)


def _require_group(conf: Path, group: str, name: str) -> None:
    if (group, name) != ("task", "null"):  # no task
        names = sorted(file.stem for file in (conf / group).glob("*.yaml"))
        if name not in names:
            file = conf / group / f"{shown(name)[1:-1]}.yaml"
            raise InputError(f"{file}: no such file; choose one of {', '.join(names)}")
        read_yaml(conf / group / f"{name}.yaml")  # Hydra would merge a file of exploding aliases for hours


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
