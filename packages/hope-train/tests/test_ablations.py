"""The runner of studies: fair arms only, a learning rate for each, nothing done twice, interruptible anywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from hope_model import counting
from hope_model.blocks import EQUATIONS
from hope_model.errors import InputError
from hope_train import ablations, equal_time, study
from hope_train.ablations import DIVERGED, Suite
from hope_train.cli import main
from hope_train.measure import asked_for, command, streamed
from hope_train.progress import ASSUMED

ROOT = Path(__file__).parents[3]
TINY = {
    "question": "Which one?",
    "scale": "suite",
    "overrides": ["task=parity", "steps=2", "batch_size=2", "length=8", "model.dim=32", "model.layers=1"],
    "arms": {
        "delta": {"run": "gated_deltanet"},
        "full": {"run": "transformer"},
        "none": {"missing": "no switch"},
    },
    "lengths": ["1x", "2x"],
    "tolerance": 0.5,
}


def project(tmp_path: Path, **changes: object) -> Path:
    conf = tmp_path / "conf"
    conf.mkdir()
    for part in ("config.yaml", "run", "scale", "task", "optim"):
        (conf / part).symlink_to(ROOT / "conf" / part)
    (conf / "study").mkdir()
    (conf / "study" / "tiny.yaml").write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    return conf


def suite(tmp_path: Path, conf: Path) -> Suite:
    loaded = study.load(conf, [])
    return Suite(study.chains("tiny", loaded["tiny"], conf, []), tmp_path / "results", tmp_path / "work")


class Fake(Suite):
    """Trains nothing: the validation loss is what `losses` says of the rate."""

    losses: dict[float, float | None]
    trained: list[str]
    most: int

    def _train(self, unit: study.Unit) -> dict[str, Any]:
        if len(self.trained) == self.most:
            raise KeyboardInterrupt
        self.trained.append(unit.config.run)
        value = self.losses[unit.rate]
        record = self._record(unit, self.work, [], "diverged" if value is None else "")
        metrics = [{"name": "task_accuracy", "length": 8, "value": 0.5}]
        known = {} if value is None else {"val_loss": value}
        return record | {"wall_seconds": 3.0, "validation": known, "metrics": metrics}


def fake(tmp_path: Path, conf: Path, losses: dict[float, Any], most: int = 100) -> Fake:
    made = suite(tmp_path, conf)
    made = Fake(made.chains, made.results, made.work)
    made.losses, made.trained, made.most = losses, [], most
    made.work.mkdir(exist_ok=True)
    (made.work / "train.json").write_text("{}")
    return made


def test_the_best_rate_on_validation_is_the_one_that_counts(tmp_path: Path) -> None:
    first = fake(tmp_path, project(tmp_path, widen=0), {0.3: 0.7, 1.0: None, 3.0: 0.5})
    assert first.run()
    tuning = [f"tiny/delta/rate{rate}-seed0" for rate in ("0.3", "1", "3")]
    assert first.trained[:5] == [*tuning, *[f"tiny/delta/rate3-seed{seed}" for seed in (1, 2)]]
    assert len(first.trained) == 10  # the arm that cannot be run is left alone
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("results/tiny/full/*.json"))]
    assert [(r["rate"], r["seed"]) for r in records] == [(0.3, 0), (1.0, 0), (3.0, 0), (3.0, 1), (3.0, 2)]
    assert records[2]["lr"] == pytest.approx(3e-2)


@pytest.mark.parametrize(
    "losses",
    [
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.5, 10.0: 0.55},  # bracketed
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.5, 10.0: 0.4, 30.0: None},
        {0.3: 0.5, 1.0: 0.6, 3.0: 0.7, 0.1: 0.4, 0.03: 0.3},  # twice, no more
        {0.3: 0.7, 1.0: 0.6, 3.0: 0.0005},  # solved
        {0.3: None, 1.0: None, 3.0: None},
    ],
)
def test_a_rate_beyond_the_end_is_tried(tmp_path: Path, losses: dict[float, Any]) -> None:
    first = fake(tmp_path, project(tmp_path, arms={"delta": {"run": "gated_deltanet"}}, widen=2), losses)
    assert first.run()
    names = [f"rate{rate:g}-seed0" for rate in losses]
    assert first.trained[: len(names)] == [f"tiny/delta/{name}" for name in names]
    best = min(losses, key=lambda rate: float("inf") if losses[rate] is None else losses[rate])
    assert first.trained[len(names) :] == [f"tiny/delta/rate{best:g}-seed{seed}" for seed in (1, 2)]
    plan = json.loads((tmp_path / "results/plan.json").read_text())["tiny"]["arms"]["delta"]
    assert list(plan["units"])[::3] == names
    assert plan["chosen"] == best
    assert (first.left(first.chains[0]), first.total(first.chains[0])) == (0, len(names) + 2)


def test_rates_that_solve_a_task_are_told_apart_at_the_longest_length() -> None:
    solved = study.score({"val_loss": 1e-7, "val_loss_64": 0.2, "val_loss_128": 0.5})
    assert solved == (study.SOLVED, 0.5)
    assert study.score({"val_loss": 9e-4, "val_loss_64": 0.3, "val_loss_128": 0.4}) < solved
    assert study.score({"val_loss": 0.5, "val_loss_64": 0.1}) == (0.5, 0.5) > solved
    assert study.score({"val_loss": 1e-4}) == (study.SOLVED, 1e-4)
    assert study.score({}) == (float("inf"), float("inf"))


def test_what_is_done_is_not_done_again_until_its_definition_changes(tmp_path: Path) -> None:
    conf = project(tmp_path)
    losses = {0.3: 0.7, 1.0: 0.2, 3.0: 0.5}
    stopped = fake(tmp_path, conf, losses, most=4)
    assert not stopped.run()
    again = fake(tmp_path, conf, losses)
    assert [again.left(chain) for chain in again.chains[:2]] == [1, 5]
    assert again.seconds(again.chains[0]) == 3.0
    assert again.run()
    assert len(again.trained) == 6
    assert not set(stopped.trained) & set(again.trained)
    assert not fake(tmp_path, conf, losses, most=0).trained
    values = yaml.safe_load((conf / "study/tiny.yaml").read_text())
    values["arms"]["full"]["overrides"] = ["optim.clip=0.5"]
    (conf / "study/tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    changed = fake(tmp_path, conf, losses)
    assert [changed.left(chain) for chain in changed.chains[:2]] == [0, 5]


def test_equal_runs_of_two_studies_are_trained_once(tmp_path: Path) -> None:
    conf = project(tmp_path)
    first = fake(tmp_path, conf, {0.3: 0.7, 1.0: 0.2, 3.0: 0.5})
    assert first.run()
    twin = TINY | {"arms": {"same": {"run": "transformer"}}}
    (conf / "study/twin.yaml").write_text(yaml.safe_dump(twin))
    chains = study.chains("twin", study.load(conf, [])["twin"], conf, [])
    second = fake(tmp_path, conf, first.losses)
    second.chains = chains
    assert second.run()
    assert not second.trained
    record = json.loads((tmp_path / "results/twin/same/rate1-seed2.json").read_text())
    assert (record["study"], record["arm"], record["seed"]) == ("twin", "same", 2)


def test_a_real_training_leaves_its_json_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = project(tmp_path, arms={"delta": {"run": "gated_deltanet"}})
    real = suite(tmp_path, conf)
    assert real.seconds(real.chains[0]) == ASSUMED
    unit = real.chains[0].unit(1.0, 0)
    real.display = type("Silent", (), {"finished": lambda *_: None})()  # type: ignore[assignment]
    real._unit(unit)
    record = real.result(unit)
    assert record is not None
    assert [(m["name"], m["length"], m["n"]) for m in record["metrics"]] == [
        (name, length, 256) for name in ("task_accuracy", "task_exact") for length in (8, 16)
    ]
    assert (record["steps"], record["tokens"], record["failed"]) == (2, 32, "")
    assert record["flops"] > 0
    assert not list((tmp_path / "work").rglob("*.safetensors"))


def test_what_another_runner_made_meanwhile_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = suite(tmp_path, project(tmp_path))
    unit = real.chains[0].unit(1.0, 0)
    theirs = {"schema": ablations.SCHEMA, "sha256": unit.sha256, "by": "another"}

    @contextmanager
    def waited(_: Path) -> Iterator[int]:
        real.path(unit).parent.mkdir(parents=True)
        real.path(unit).write_text(json.dumps(theirs))
        yield 0

    monkeypatch.setattr(ablations, "_locked", waited)
    assert real._train(unit) == theirs
    assert not (tmp_path / "work").exists()


def test_a_diverged_run_is_told_from_a_broken_one() -> None:
    assert DIVERGED.search("error: run 'x': loss is nan and gradient norm nan at step 3 (samples ...")
    assert not DIVERGED.search("error: data/shards: no such folder")


def test_unfair_comparisons_are_refused(tmp_path: Path) -> None:
    conf = project(tmp_path, tolerance=0.001)
    with pytest.raises(
        InputError, match=r"arm 'full' has [\d,]+ parameters, 'delta' [\d,]+: more than 0% apart"
    ):
        suite(tmp_path, conf)
    values = TINY | {"seeds": [0, 1]}
    (conf / "study/tiny.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="at least three 'rates' and three 'seeds'"):
        study.load(conf, [])


def test_every_study_of_the_repository_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every arm composes and is of its study's size, else `--plan` refuses."""
    studies = study.load(ROOT / "conf", [])
    orders = [one.order for one in studies.values()]
    assert orders == sorted(set(orders))
    for name, one in studies.items():
        assert len(one.arms) > 1, name
        assert len(one.seeds) >= 3
        assert len(one.rates) >= 3
    stages = yaml.safe_load((ROOT / "reports/dvc.yaml").read_text())["stages"]
    assert stages["ablation"]["matrix"]["study"] == list(studies)
    common = ["--conf", str(ROOT / "conf"), "--params", str(ROOT / "params.yaml"), "--results", str(tmp_path)]
    assert main(["ablations", "--plan", "--only", "nothing", *common]) == 2
    assert "--only nothing: no such study; choose among" in capsys.readouterr().err
    assert main(["ablations", "--plan", *common]) == 0
    assert list(json.loads((tmp_path / "plan.json").read_text())) == list(studies)


def test_arms_that_say_so_have_states_of_one_size() -> None:
    chains = study.chains(
        "mqar_state", study.load(ROOT / "conf", ["mqar_state"])["mqar_state"], ROOT / "conf", []
    )
    sizes = [counting.state_bytes(chain.config.model, 64) for chain in chains]
    assert max(sizes) / min(sizes) < 1.05


def test_what_two_studies_share_is_estimated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both compare HOPE with a variant of it: twenty results, fifteen trainings of an assumed minute."""
    common = ["--conf", str(ROOT / "conf"), "--params", str(ROOT / "params.yaml"), "--results", str(tmp_path)]
    assert main(["ablations", "--plan", "--only", "order", "through_writes", *common]) == 0
    said = capsys.readouterr().out
    assert said.startswith("0 of 20 results there; the rest takes about 0.2 h, all of them 0.2 h")
    assert list(json.loads((tmp_path / "plan.json").read_text())["order"]["arms"]) == ["first", "second"]


def test_the_run_with_writes_is_the_one_that_counts() -> None:
    off, on = (
        {"task": f"perplexity+{mode}", "metrics": [{"value": n}]} for n, mode in enumerate(("off", "on"))
    )
    assert asked_for([off, on]) == [{"value": 1}]
    assert asked_for([{"task": "perplexity", "metrics": [{"value": 7}]}]) == [{"value": 7}]


def test_a_stream_brings_what_was_not_trained_on(tmp_path: Path) -> None:
    stream = {"domains": ["b", "c"], "tokens": 9}
    arms = {"delta": {"run": "gated_deltanet"}}
    text = ["data.corpora=[a]", "optim.lr=0.02"]
    conf = project(tmp_path, scale="ablation", overrides=text, arms=arms, stream=stream)
    [chain] = suite(tmp_path, conf).chains
    unit = chain.unit(0.5, 0)
    told = command(unit, Path("here"), Path("out.json"))
    for key, given in {"--corpora": "b,c", "--learn": "each", "--lr": "0.001", "--tokens": "9"}.items():
        assert told[told.index(key) + 1] == given
    loaded = study.load(conf, [])["tiny"]
    with pytest.raises(InputError, match=r"arm 'delta' is trained on 'b', which the stream brings as new"):
        study.chains("tiny", dataclasses.replace(loaded, overrides=[]), conf, ["b"])
    longer = dataclasses.replace(loaded, stream=dataclasses.replace(loaded.stream, tokens=10))
    assert study.chains("tiny", longer, conf, [])[0].unit(0.5, 0).sha256 != unit.sha256


def test_a_result_is_of_what_its_variant_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of memories are nothing to a variant that has none; new equations make results of before another's."""
    relu = ["model.memory.activation=relu"]
    arms = {"delta": {"run": "gated_deltanet"}, "delta_relu": {"run": "gated_deltanet", "overrides": relu}}
    arms |= {"titans": {"run": "titans"}, "titans_relu": {"run": "titans", "overrides": relu}}
    conf = project(tmp_path, arms=arms)

    def hashes() -> list[str]:
        return [chain.unit(1.0, 0).sha256 for chain in suite(tmp_path, conf).chains]

    delta, delta_relu, titans, titans_relu = hashes()
    assert delta == delta_relu
    assert len({delta, titans, titans_relu}) == 3
    monkeypatch.setitem(EQUATIONS, "memory", EQUATIONS["memory"] + 1)
    assert [old == new for old, new in zip((delta, titans), hashes()[::2], strict=True)] == [True, False]


def test_of_a_stream_cells_and_transfers_are_kept() -> None:
    row = {"name": "bits_per_byte", "n": 4, "value": 2.0, "stderr": None, "chance": None}
    groups = ("all", "cell=0>a", "stage=0", "domain=a")
    metrics = [row | {"group": g} for g in groups] + [row | {"name": "forgetting", "group": "all"}]
    found = streamed([{"task": "continual_stream_memorize+on", "metrics": metrics}], 512)
    assert [(m["name"], m["group"], m["length"]) for m in found] == [
        ("bits_per_byte", "memorize+on 0>a", 512),
        ("forgetting", "memorize+on", 512),
    ]


class Clocked(Fake):
    """A step takes what `costs` says of the arm, in seconds."""

    costs: dict[str, float]

    def _train(self, unit: study.Unit) -> dict[str, Any]:
        record = super()._train(unit)
        steps = unit.config.steps
        return record | {"steps": steps, "step_seconds": self.costs[unit.chain.arm] * steps}


def clocked(tmp_path: Path, conf: Path, costs: dict[str, float], most: int = 100) -> Clocked:
    made = fake(tmp_path, conf, {0.3: 0.7, 1.0: 0.2, 3.0: 0.5}, most)
    again = Clocked(made.chains, made.results, made.work)
    again.losses, again.trained, again.most, again.costs = made.losses, [], most, costs
    return again


def test_cheaper_arms_train_again_for_as_long(tmp_path: Path) -> None:
    arms = {
        "ours": {"run": "gated_deltanet"},
        "cheap": {"run": "transformer"},
        "like": {"run": "transformer", "overrides": ["optim.clip=0.5"]},
    }
    conf = project(tmp_path, arms=arms, equal_time="ours", overrides=[*TINY["overrides"], "steps=100"])
    first = clocked(tmp_path, conf, {"ours": 3.0, "cheap": 0.911, "like": 2.9}, most=16)
    hashes = [[chain.unit(1.0, 0).sha256 for chain in first.chains]]
    assert not first.run()
    assert first.trained[15] == "tiny/cheap/rate1-seed0-steps330"  # 3 / 0.911 = 3.29
    # Slower by then; what was begun is gone on with, at the chosen rate.
    again = clocked(tmp_path, conf, {"ours": 3.0, "cheap": 2.0, "like": 2.9})
    assert again.run()
    assert again.trained == [f"tiny/cheap/rate1-seed{seed}-steps330" for seed in (1, 2)]
    plan = json.loads((tmp_path / "results/plan.json").read_text())["tiny"]["arms"]
    assert list(plan["cheap"]["timed"]) == [f"rate1-seed{seed}-steps330" for seed in (0, 1, 2)]
    assert (plan["ours"]["timed"], plan["like"]["timed"]) == ({}, {})
    assert again.seconds(again.chains[1]) == 3.0
    (conf / "study/tiny.yaml").write_text(
        (conf / "study/tiny.yaml").read_text().replace("equal_time: ours", "equal_time: ''")
    )
    without = suite(tmp_path, conf)
    assert [chain.unit(1.0, 0).sha256 for chain in without.chains] == hashes[0]
    assert not without.timed(without.chains[1])


def test_steps_at_equal_time_by_hand() -> None:
    assert equal_time.steps(60, 1.0, 1.09) == 60
    assert equal_time.steps(60, 1.0, 0.33) == 180  # 3.03, so 3.0
    assert equal_time.steps(60, 1.0, 1.6) == 37  # 0.625, so 0.62: 37.2
    records = [{"step_seconds": s, "steps": 10, "failed": ""} for s in (10.0, 90.0, 20.0)]
    assert equal_time.step_seconds(records) == 1.0  # the others had company
    assert equal_time.step_seconds([{"step_seconds": 0.0, "steps": 0, "failed": "diverged"}]) is None
    assert equal_time.step_seconds([{"seconds": 9.0, "steps": 10, "failed": ""}]) is None  # shared, perhaps
    with pytest.raises(InputError, match="'equal_time: x' is no arm; choose among"):
        study.Study(equal_time="x")


def test_seconds_of_different_machines_are_not_compared() -> None:
    def ran(machine: str, seconds: float) -> dict[str, Any]:
        return {"step_seconds": seconds, "steps": 10, "failed": "", "machine": machine}

    theirs = [ran("slow", 80.0), ran("fast", 40.0)]
    assert equal_time.costs(theirs, [ran("slow", 20.0)]) == (8.0, 2.0)
    assert equal_time.costs(theirs, [ran("other", 5.0), ran("fast", 10.0)]) == (4.0, 1.0)
    assert equal_time.costs(theirs, [ran("other", 5.0)]) == (4.0, 0.5)  # the page says so
    assert equal_time.costs([], [ran("slow", 20.0)]) == (None, 2.0)
