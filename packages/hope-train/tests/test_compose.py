"""What `hope-train compose` promises: one complete, reproducible text per run, and one line for a mistake."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml

from hope_model.config import PRESETS
from hope_train import config
from hope_train.cli import main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of conf/ and params.yaml to play with."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def set_params(project: Path, **values: object) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(yaml.safe_dump(params | values))


def compose(project: Path, run: str, *overrides: str) -> tuple[int, bytes]:
    """Exit status and the bytes written; no bytes where no file was left."""
    out = project / f"{run}.yaml"
    out.unlink(missing_ok=True)
    arguments = ["compose", "--run", run, "--out", str(out), *overrides]
    status = main([*arguments, "--conf", str(project / "conf"), "--params", str(project / "params.yaml")])
    return status, out.read_bytes() if out.exists() else b""


def test_same_input_gives_the_same_bytes_and_loads_back(project: Path) -> None:
    status, first = compose(project, "hope")
    assert status == 0
    assert compose(project, "hope") == (0, first)
    loaded = config.load(project / "hope.yaml")
    assert config.dump(loaded).encode() == first
    assert loaded.run == "hope"


def test_teach_scale_reaches_hope_and_nothing_else(project: Path) -> None:
    before = {run: compose(project, run)[1] for run in ("hope", "titans", "transformer", "gated_deltanet")}
    set_params(project, teach_scale=0.15)
    after = {run: compose(project, run)[1] for run in before}
    assert {run for run in before if before[run] != after[run]} == {"hope"}
    assert yaml.safe_load(after["hope"])["model"]["cms"]["teach_scale"] == 0.15


def test_facts_of_params_reach_every_run(project: Path) -> None:
    set_params(project, seeds=[7, 8], scale="tiny", corpora=["mine", "its_2.0-b"])
    for run in ("hope", "titans", "transformer"):
        values = yaml.safe_load(compose(project, run)[1])
        tiny = yaml.safe_load((ROOT / "conf/scale/tiny.yaml").read_text())
        assert values["seed"] == 7
        assert values["data"]["corpora"] == ["mine", "its_2.0-b"]
        assert (values["steps"], values["model"]["dim"]) == (tiny["steps"], tiny["model"]["dim"])


def test_overrides_win(project: Path) -> None:
    overrides = ("optim=adamw", "scale=tiny", "seed=3", "optim.lr=0.5", "model.cms.teach_scale=2")
    values = yaml.safe_load(compose(project, "hope", *overrides)[1])
    assert (values["optim"]["name"], values["optim"]["lr"], values["seed"]) == ("adamw", 0.5, 3)
    assert (values["length"], values["model"]["cms"]["teach_scale"]) == (128, 2.0)


@pytest.mark.parametrize("scale", sorted(p.stem for p in (ROOT / "conf/scale").glob("*.yaml")))
@pytest.mark.parametrize("run", sorted(p.stem for p in (ROOT / "conf/run").glob("*.yaml")))
def test_every_run_composes_at_every_scale(project: Path, run: str, scale: str) -> None:
    assert compose(project, run, f"scale={scale}")[0] == 0


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_one_in_conf_and_in_the_package(name: str) -> None:
    values = yaml.safe_load((ROOT / f"conf/run/{name}.yaml").read_text())["model"]
    if name.startswith("hope"):
        assert values["cms"].pop("teach_scale") == "${teach_scale}"
    assert values == PRESETS[name]


def test_print_gives_one_value(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--conf", str(project / "conf"), "--params", str(project / "params.yaml")]
    assert main(["compose", "--print", "model.vocab_size", *where, "scale=tiny"]) == 0
    assert capsys.readouterr().out == "512\n"
    assert main(["compose", "--print", "model.vocab", *where]) == 2
    assert capsys.readouterr().err == "error: --print model.vocab: no such key\n"
    for key in ("__class__", "model.cms.chunks", "steps.real"):  # what Python has besides
        assert main(["compose", "--print", key, *where]) == 2
        assert capsys.readouterr().err == f"error: --print {key}: no such key\n"


MISTAKES = {
    "unknown parameter": ("params.yaml", "teach_scal: 0.1\n", "params.yaml: unknown key 'teach_scal'"),
    "wrong type": (
        "params.yaml",
        "seeds: [zero]\n",
        "params.yaml: seeds[0] is 'zero'; it must be a whole number",
    ),
    "unknown key": ("conf/run/hope.yaml", "modell: {dim: 3}\n", "conf/run/hope.yaml: unknown key 'modell'"),
    "unknown inner key": (
        "conf/scale/smoke.yaml",
        "model: {dimm: 3}\n",
        "unknown key 'model.dimm'",
    ),
    "unknown optimiser key": ("conf/optim/muon.yaml", "lrr: 3\n", "conf/optim/muon.yaml: unknown key"),
    "no number": (
        "conf/scale/smoke.yaml",
        "steps: many\n",
        "conf/scale/smoke.yaml: 'steps': Value 'many'",
    ),
    "broken YAML": ("conf/run/hope.yaml", "model: [1\n", "conf/run/hope.yaml:2: not YAML"),
    "a bomb": (
        "conf/scale/smoke.yaml",
        "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)),
        "conf/scale/smoke.yaml: more than 10,000 entries, its aliases written out; shorten it",
    ),
    "no mapping": ("params.yaml", "- 1\n", "params.yaml: a mapping of keys to values is wanted"),
    "out of range": ("conf/scale/smoke.yaml", "steps: 0\n", "steps is 0; it must be between 1 and"),
    "no choice": (
        "conf/optim/muon.yaml",
        "name: sgd\n",
        "optim.name is 'sgd'; choose one of muon, m3, adamw",
    ),
    "impossible model": ("conf/scale/smoke.yaml", "model: {dim: 65}\n", "65 is not a multiple of"),
    "no such scale": ("params.yaml", "scale: huge\n", "conf/scale/huge.yaml: no such file; choose one of"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    project: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, text, expected = MISTAKES[mistake]
    if name == "params.yaml" and not text.startswith("-"):
        set_params(project, **yaml.safe_load(text))
    else:
        (project / name).write_text(text)
    assert compose(project, "hope") == (2, b"")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert expected in error


def test_a_missing_parameter_and_a_missing_run_are_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose(project, "hpoe") == (2, b"")
    assert "conf/run/hpoe.yaml: no such file; choose one of gated_deltanet, hope" in capsys.readouterr().err
    (project / "params.yaml").write_text("scale: tiny\nseeds: [0]\n")
    assert compose(project, "hope") == (2, b"")
    assert "params.yaml: 'teach_scale' is missing" in capsys.readouterr().err


DIALS = {
    config.TrainConfig: "run seed model init init_sha256 attach data optim schedule teach log steps batch_size length "
    "lengths memory_chunks accumulate eval_every eval_windows checkpoint_every milestone_every milestones "
    "parallel precision tf32 compile activation_checkpoint sdpa device",
    config.DataConfig: "shards tokenizer corpora weights task eval_lengths reset",
    config.OptimConfig: "name lr matrix_lr weight_decay beta1 beta2 eps momentum slow_every slow_momentum "
    "slow_share clip groups",
    config.ScheduleConfig: "name warmup decay final",
    config.GroupConfig: "match lr schedule",
    config.TeachConfig: "warmup begin lr",
    config.AttachConfig: "period ratio levels scale clip threshold bound retention matrices",
    config.LogConfig: "every wandb mlflow project",
}


def test_the_dials_are_these() -> None:
    """A new key is a decision: add it here with a reason in the commit."""
    assert {kind: " ".join(f.name for f in dataclasses.fields(kind)) for kind in DIALS} == DIALS


def test_the_readmes_run_file_is_valid() -> None:
    readme = (ROOT / "packages/hope-train/README.md").read_text()
    text = readme.split("cat > run.yaml <<'EOF'\n")[1].split("EOF\n")[0]
    loaded = config.strict(config.TrainConfig, yaml.safe_load(text), "README.md")
    assert (loaded.run, loaded.model.dim, loaded.steps) == ("first", 128, 200)


def test_mappings_are_overridden_without_a_sign(project: Path) -> None:
    overrides = ("lengths={0:128,20:512}", "data.weights={python:1,code:2}")
    values = yaml.safe_load(compose(project, "hope", *overrides)[1])
    assert (values["lengths"], values["data"]["weights"]) == ({0: 128, 20: 512}, {"python": 1.0, "code": 2.0})
    group = 'optim.groups=[{match:"*.levels.3.*",lr:0.3,schedule:{name:constant}}]'
    assert config.load(project / "hope.yaml").lengths == {0: 128, 20: 512}
    assert compose(project, "hope", group)[0] == 0
    [rule] = config.load(project / "hope.yaml").optim.groups
    assert (rule.lr, rule.schedule and rule.schedule.name) == (0.3, "constant")


OVERRIDES = {
    "run=titans": "run=titans: the run is chosen by --run",
    "scale=huge": "huge.yaml: no such file; choose one of ablation, evening, mid, night, pilot, shared, smoke, suite, ",
    "scale=../scale/tiny": "no such file; choose one of ablation, ",
    "optim=sgd": "conf/optim/sgd.yaml: no such file; choose one of adamw, m3, muon",
    "task=huge": "conf/task/huge.yaml: no such file; choose one of compression, ",
    "+stepz=1": "an override adds a key that no run has",
    "=3": "Config group override must be",
    "optim=[1]": "no such file; choose one of adamw",
    "steps=${steps}": "'steps': Recursive interpolation",
    "lengths={a:1}": "'lengths.a': Key a (str) is incompatible with (int)",
    "optim.lr=1" + 400 * "0": "int too large to convert to float",
}


@pytest.mark.parametrize("override", OVERRIDES, ids=range(len(OVERRIDES)))
def test_an_override_that_cannot_be_is_one_line(
    project: Path, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose(project, "hope", override) == (2, b"")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert OVERRIDES[override] in error


def test_every_command_lists_the_scales(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--conf", str(project / "conf"), "--params", str(project / "params.yaml")]
    for command in (["compose", "scale=huge"], ["plan", "scale=huge"]):
        assert main([*command, *where]) == 2
        assert (
            "conf/scale/huge.yaml: no such file; choose one of ablation, evening, mid, night, "
            in capsys.readouterr().err
        )
    set_params(project, scale="huge")
    for command in (["compose", "--print", "model.vocab_size"], ["plan"]):
        assert main([*command, *where]) == 2
        assert (
            "conf/scale/huge.yaml: no such file; choose one of ablation, evening, mid, night, "
            in capsys.readouterr().err
        )
