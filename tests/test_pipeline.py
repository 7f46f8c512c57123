"""The pipeline under hostile values: nothing of params.yaml reaches a shell, and the first stage stops in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
# What a shell would execute in a bare word, within either kind of quotes, and across lines.
PAYLOADS = ["x$(touch F)", "x'; touch F; '", 'x"; touch F; "', "x`touch F`", "x\ntouch F\n", "x; touch F"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the pipeline's first stages need, in a folder whose name holds a blank and an apostrophe."""
    folder = tmp_path / "it's mine"
    folder.mkdir()
    for name in ("conf", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cache", "tmp"))
    (folder / "studies").mkdir()
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "studies/pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def dvc(folder: Path, *arguments: str, **changes: object) -> tuple[int, str]:
    """Runs dvc on changed parameters; status and what was said."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(params | changes))
    done = subprocess.run(
        ["dvc", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


def unharmed(folder: Path) -> bool:
    return not list(folder.parent.rglob("F")) and (folder / "conf" / "config.yaml").is_file()


def test_dvc_exp_show_prints_the_columns_of_the_docs(clone: Path) -> None:
    shutil.copy(ROOT / "dvc.lock", clone / "dvc.lock")
    (clone / "reports").mkdir()
    shutil.copy(ROOT / "reports/differences.json", clone / "reports/differences.json")
    git = ["git", "-c", "user.name=a", "-c", "user.email=b@c"]
    for command in (["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=clone, check=True)
    _, said = dvc(clone, "exp", "show", "--csv")
    printed = said.splitlines()[0].split(",")
    text = (
        (ROOT / "docs/experiments.md")
        .read_text()
        .partition("26 columns in all")[2]
        .partition("All of them")[0]
    )
    named = re.findall(r"`([^`]+)`", text)
    named.remove("runs/RUN/config.yaml")
    runs = yaml.safe_load((ROOT / "params.yaml").read_text())["runs"]
    named += [f"runs/{run}/config.yaml" for run in runs]
    assert set(printed) - {"rev", "typ", "parent"} == set(named)  # those three are in no table
    assert len(named) == 26


HOSTILE = [
    *(("corpora", [payload]) for payload in PAYLOADS[:2]),
    ("runs", [PAYLOADS[2]]),
    ("scale", PAYLOADS[3]),
    ("evaluation", PAYLOADS[4]),
    ("coverage_loss", PAYLOADS[5]),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_nothing_of_params_is_executed(clone: Path, key: str, value: object) -> None:
    status, said = dvc(clone, "repro", **{key: value})
    assert status != 0
    assert len(errors(said)) == 1
    assert f"params.yaml: {key}" in said
    assert unharmed(clone)


@pytest.mark.long
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("key", ["corpora", "runs", "scale", "evaluation", "coverage_loss"])
def test_nothing_is_executed_however_dvc_is_asked(clone: Path, key: str, payload: str) -> None:
    value = [payload] if key in ("corpora", "runs") else payload
    stage = f"run@{payload}" if key == "runs" else "data"
    for how in (["repro"], ["repro", "-k"], ["repro", "-s"], ["repro", "-f", "-s"], ["repro", "--dry"]):
        dvc(clone, *how, **{key: value})
        assert unharmed(clone)
        dvc(clone, *how, stage, **{key: value})
        assert unharmed(clone)
    # The other stages, too: as if those before them had run.
    for stage in ("report", "run@hope", "compose@hope"):
        dvc(clone, "repro", "-f", "-s", stage, **{key: value})
        assert unharmed(clone)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scale", "nope", "choose one of ablation, evening, mid, night, pilot"),
        ("corpora", ["nope"], "corpora: no conf/corpus/nope.yaml; choose among abstracts, c4,"),
        ("runs", ["hope", "nope"], "choose one of gated_deltanet, hope,"),
        ("evaluation", "nowhere", "evaluation is 'nowhere': no such file or folder"),
        ("runs", [], "runs is []; name each once, one at least"),
    ],
)
def test_what_is_not_there_is_one_line_with_what_is(
    clone: Path, key: str, value: object, message: str
) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {key: value}
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    command = ["hope-train", "facts", "--out", "data/facts"]
    done = subprocess.run(command, cwd=clone, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (clone / "data").exists()


def test_facts_are_what_params_says(clone: Path) -> None:
    command = ["hope-train", "facts", "--out", "data/facts"]
    subprocess.run(command, cwd=clone, env=ENVIRONMENT, check=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    facts = {path.name: path.read_text().splitlines() for path in (clone / "data" / "facts").iterdir()}
    assert facts == {
        "corpora": params["corpora"],
        "coverage_loss": [str(params["coverage_loss"])],
        "evaluation": [params["evaluation"]],
        "runs": params["runs"],
        "scale": [params["scale"]],
        "seeds": ["0", "1", "2"],
        "changes": [],
        "vocab_size": ["4096"],
    }


def test_facts_say_what_differs_from_the_defaults(clone: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"teach_scale": 0.15, "seeds": [0, 3]}
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    command = ["hope-train", "facts", "--out", "data/facts"]
    subprocess.run(command, cwd=clone, env=ENVIRONMENT, check=True)
    changes = (clone / "data" / "facts" / "changes").read_text()
    assert changes == "teach_scale: 0.15 (default 0.1)\nseeds: 0, 3 (default 0, 1, 2)\n"


def test_make_mends_the_locks_that_a_killed_dvc_left(clone: Path) -> None:
    table = clone / ".dvc" / "tmp" / "rwlock"
    table.parent.mkdir()
    table.touch()
    stage = ["repro", "compose@hope"]
    status, said = dvc(clone, *stage)
    assert status != 0
    assert "rwlock" in said
    # What make would run: its recipe without the environment and without the pipeline itself.
    told = subprocess.run(
        ["make", "-n", "repro"], cwd=clone, capture_output=True, text=True, check=True, env=ENVIRONMENT
    ).stdout
    [mend] = [line for line in told.splitlines() if "rwlock" in line and not line.startswith("#")]
    subprocess.run(mend, shell=True, cwd=clone, check=True)  # noqa: S602
    assert dvc(clone, *stage)[0] == 0
    table.write_text('{"a": 1}')
    subprocess.run(mend, shell=True, cwd=clone, check=True)  # noqa: S602
    assert table.read_text() == '{"a": 1}'  # that of a living process stays
