"""params.yaml is checked before the pipeline uses a value of it as a path; `hope-train facts` writes its values.

FOLDER/{scale,seeds,corpora,runs,evaluation,coverage_loss,vocab_size}    one value a line
FOLDER/changes    `KEY: VALUE (default VALUE)` for each fact that differs from conf/defaults.yaml
"""

import dataclasses
from pathlib import Path

from hope_data.publishing import write_atomic
from hope_model.errors import InputError
from hope_train.compose import Params, compose, load_params


def check(path: Path, conf: Path) -> dict[str, list[str]]:
    """Check params.yaml and every run of it.

    Args:
        path: params.yaml.
        conf: folder with config.yaml and its groups.

    Returns:
        Values by name.

    Raises:
        InputError: a value that cannot be, or a file that is not there; names what is allowed.
    """
    params = load_params(path)
    known = sorted(file.stem for file in (conf / "corpus").glob("*.yaml"))
    for key, names in {"corpora": params.corpora, "runs": params.runs}.items():
        if not names or len(set(names)) < len(names):
            raise InputError(f"{path}: {key} is {names}; name each once, one at least")
    if unknown := [name for name in params.corpora if name not in known]:
        raise InputError(
            f"{path}: corpora: no {conf}/corpus/{unknown[0]}.yaml; choose among {', '.join(known)}"
        )
    if not params.evaluation or not Path(params.evaluation).exists():
        raise InputError(f"{path}: evaluation is {params.evaluation!r}: no such file or folder")
    runs = [compose(run, conf, params) for run in params.runs]
    return {
        "scale": [params.scale],
        "seeds": [str(seed) for seed in params.seeds],
        "changes": changes(params, conf),
        "corpora": params.corpora,
        "runs": params.runs,
        "evaluation": [params.evaluation],
        "coverage_loss": [str(params.coverage_loss)],
        "vocab_size": [str(runs[0].model.vocab_size)],
    }


def changes(params: Params, conf: Path) -> list[str]:
    """Return `KEY: VALUE (default VALUE)` for each fact that differs from conf/defaults.yaml."""
    defaults = load_params(conf / "defaults.yaml")
    keys = [field.name for field in dataclasses.fields(Params)]
    values = [(key, getattr(params, key), getattr(defaults, key)) for key in keys]
    return [
        f"{key}: {_text(value)} (default {_text(usual)})" for key, value, usual in values if value != usual
    ]


def _text(value: object) -> str:
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value)) or "none"


def write(path: Path, conf: Path, out: Path) -> None:
    """Check params.yaml, then write its values, a file each."""
    for name, values in check(path, conf).items():
        write_atomic(out / name, "".join(f"{value}\n" for value in values).encode())
