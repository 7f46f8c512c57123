"""What a memory is worth: rates of two seeds, budgets that share a run before its decay, adaptations in the record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path, PurePath
from typing import Any

import pytest
import yaml
from suites import ROOT, SILENT, TINY, Fake, arms, fake, project

from hope_eval import results
from hope_eval.results import Checkpoint, Evaluator, Items, Results, TaskResult
from hope_model.errors import InputError
from hope_study import study
from hope_study.cli import main
from hope_study.ledger import Ledger
from hope_study.measure import commands, read
from hope_study.records import Record, record_of
from hope_study.report import data, worth, worth_plots
from hope_study.report.page import overview, page
from hope_study.runner import Runner
from hope_study.store import Store


class Seeded(Fake):
    """The first seed alone would choose another rate than both do."""

    def _train(self, training: study.Training, lock: int) -> Record:
        record = super()._train(training, lock)
        worse = 0.2 if (training.rate, training.config.seed) == (1.0, 1) else 0.0
        return dataclasses.replace(record, validation={"val_loss": record.validation["val_loss"] + worse})


def test_two_seeds_choose_a_rate_that_another_study_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = project(tmp_path, widen=0, rate_seeds=2, arms={"delta": {"run": "gated_deltanet"}})
    longer = TINY | {"arms": {"delta": {"run": "gated_deltanet"}}, "rates_of": "tiny"}
    longer |= {"overrides": [*TINY["overrides"][:1], "steps=4", *TINY["overrides"][2:]]}  # type: ignore[index]
    (conf / "study/longer.yaml").write_text(yaml.safe_dump(longer))
    losses = {0.3: 0.7, 1.0: 0.4, 3.0: 0.45}
    both = [*arms(conf), *arms(conf, "longer")]
    early = Ledger(both, Store(tmp_path / "results"))
    assert (early.chosen(both[1]), early.left(both[1]), early.total(both[0])) == (None, 3, 7)
    with pytest.raises(InputError, match=r"longer/delta: its rate is chosen by 'tiny', which has not ended"):
        early.final(both[1])
    first = fake(tmp_path, conf, losses, kind=Seeded)
    first.ledger, first.arms = early, both
    assert first.run()
    tried = [f"tiny/delta/rate{rate}-seed{seed}" for rate in ("0.3", "1", "3") for seed in (0, 1)]
    assert first.trained == [
        *tried,
        "tiny/delta/rate3-seed2",
        *[f"longer/delta/rate3-seed{seed}" for seed in (0, 1, 2)],
    ]
    assert (early.left(both[0]), early.left(both[1]), early.total(both[1])) == (0, 0, 3)
    places = [
        "--conf",
        str(conf),
        "--params",
        str(ROOT / "params.yaml"),
        "--results",
        str(tmp_path / "results"),
    ]
    assert main(["run", "--plan", "--only", "longer", *places]) == 0
    assert capsys.readouterr().out.startswith("3 of 3 results exist")
    collected = data.collect(early)
    assert [(one.done, one.planned) for one in collected] == [(7, 7), (3, 3)]
    assert "learning rates chosen with seeds 0, 1; revision" in page(collected[0])
    rates = "- delta: 0.003: 0.7000, 0.7000; 0.01: 0.4000, 0.6000; **0.03: 0.4500, 0.4500**"
    assert f" and by seed; the mean decides:\n\n{rates}" in page(collected[0])
    assert "learning rates chosen by `tiny`; revision" in page(collected[1])
    assert "Validation loss" not in page(collected[1])
    shared = longer | {"rates_of": "tiny/delta", "arms": {"other": {"run": "gated_deltanet"}}}
    (conf / "study/longer.yaml").write_text(yaml.safe_dump(shared))
    others = [*arms(conf), *arms(conf, "longer")]
    assert Ledger(others, Store(tmp_path / "results")).chosen(others[1]) == 3.0
    (conf / "study/longer.yaml").write_text(yaml.safe_dump(longer | {"rates_of": "nothing"}))
    with pytest.raises(InputError, match=r"rates_of is 'nothing'; choose among longer, tiny"):
        study.load(conf, ["longer"])


def test_a_longer_training_goes_on_from_before_the_decay_of_a_shorter_one(tmp_path: Path) -> None:
    """With the bits of a training of its own."""
    plan = [*TINY["overrides"][:1], "batch_size=2", "length=8", "model.dim=32", "model.layers=1"]  # type: ignore[index]
    plan += ["schedule.name=wsd", "schedule.decay=0.5", "schedule.warmup=0.25", "steps=4", "eval_every=0"]
    one_arm = {"arms": {"delta": {"run": "gated_deltanet"}}, "checkpoint_every": None}
    del one_arm["checkpoint_every"]
    conf = project(tmp_path, overrides=plan, **one_arm)
    twice = [*plan, "steps=8", "schedule.warmup=0.125"]
    (conf / "study/longer.yaml").write_text(yaml.safe_dump(TINY | one_arm | {"overrides": twice}))
    short, long = (arms(conf, name)[0].training(1.0, 0) for name in ("tiny", "longer"))
    assert (short.constant, long.constant, short.trunk) == (2, 4, long.trunk)
    records = []
    for work, trainings in (("shared", [short, long]), ("alone", [long])):
        folder = tmp_path / work
        real = Runner(Ledger([training.arm for training in trainings], Store(folder / "results")), folder)
        real.display = SILENT
        for training in trainings:
            real._do(training)
        steps = sorted(int(path.name) for path in (folder / "trunks" / long.trunk).iterdir())
        assert steps == [training.constant for training in trainings]
        records.append(real.ledger.result(long))
    shared, alone = records
    assert shared.steps == alone.steps == 8
    assert shared.validation["val_loss"] == alone.validation["val_loss"]
    assert [value.value for value in shared.metrics] == [value.value for value in alone.metrics]
    assert shared.curve[-1]["val_loss"] == alone.curve[-1]["val_loss"]


def test_text_is_measured_under_every_adaptation(tmp_path: Path) -> None:
    adapt = ["neural_cache:tokens=64 sharpness", "off"]
    conf = project(tmp_path, scale="ablation", overrides=["data.corpora=[a]"], adapt=adapt, arms={
        "delta": {"run": "gated_deltanet"}, "other": {"run": "transformer", "adapt": ["off"]},
    })  # fmt: skip
    delta, other = arms(conf)
    training = delta.training(1.0, 0)
    alone = dataclasses.replace(delta.definition, adapt=[])
    assert (
        dataclasses.replace(delta, definition=alone, _trainings={}).training(1.0, 0).sha256 != training.sha256
    )
    first, tune, cached, off = commands(training, tmp_path)
    assert first[0] == "run"
    assert "perplexity,perplexity_shuffled" in first
    assert tune[:3] == ["tune", "--adapt", "neural_cache:tokens=64"]
    assert tune[-2:] == ["--dials", "sharpness"]
    assert cached[-2:] == ["--adapt", str(tmp_path / "tuned-neural_cache.json")]
    assert off[-2:] == ["--adapt", "off"]
    assert len(commands(other.training(1.0, 0), tmp_path)) == 2

    def text(name: str, bits: list[float], **settings: float) -> TaskResult:
        items = Items({"domain": ["a", "a"]}, [0, 1], [2.0, 4.0], {"bits_per_byte": bits})
        return TaskResult(name, 1, dict(settings), 0, "", 0, 0.0, items.metrics(), items)

    def target(name: str, nats: float) -> TaskResult:
        items = Items({"target": ["new"]}, [0], [1.0], {"token_nats": [nats]})
        return TaskResult(name, 1, {}, 0, "", 0, 0.0, items.metrics()[1:], items)

    costs = {
        "plain_flops_per_token": 10,
        "adapt_flops_per_token": 11,
        "adapt_state_bytes": 12,
        "ms_per_token": 0.5,
    }
    plain = [text("perplexity", [6.0, 6.0], ms_per_token=0.25), target("perplexity_target", 3.0)]
    files = {
        "measured": [*plain, text("perplexity_shuffled", [9.0, 9.0])],
        "measured-neural_cache": [*plain, text("perplexity+neural_cache", [3.0, 3.0], **costs),
            target("perplexity_target+neural_cache", 2.0), text("perplexity_shuffled+neural_cache", [12.0, 12.0])],
        "measured-off": [*plain, text("perplexity+off", [6.0, 12.0], **costs)],
    }  # fmt: skip
    about = Checkpoint("r", "titans", 1, 0, 1, 1, "", "", "", "")
    for name, tasks in files.items():
        whole = Results(results.SCHEMA, about, Evaluator("", "", "", "cpu", 1), tasks, 0.0)
        (tmp_path / f"{name}.json").write_bytes(results.sealed(whole))
    tuned = {"adapt": "neural_cache", "best": {"strength": 0.5, "sharpness": 0.1, "tokens": 64}}
    (tmp_path / "tuned-neural_cache.json").write_text(json.dumps(tuned))
    measured = read(training, tmp_path)
    values = {(value.name, value.group): value.value for value in measured.metrics}
    assert values[next(iter(values))] == 2.0, "a study's page takes the plain value first"
    expected = {
        ("bits_per_byte", "plain"): 2.0, ("bits_per_byte", "neural_cache"): 1.0, ("bits_per_byte", "off"): 3.0,
        ("bits_per_byte", "plain/domain=a"): 2.0, ("bits_per_byte", "plain/shuffled"): 3.0,
        ("bits_per_byte", "neural_cache/shuffled"): 4.0, ("token_nats", "plain/target=new"): 3.0,
        ("token_nats", "neural_cache/target=new"): 2.0, ("flops_per_token", "plain"): 10.0,
        ("ms_per_token", "plain"): 0.25, ("flops_per_token", "neural_cache"): 11.0, ("state_bytes", "off"): 12.0,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert measured.documents == {
        "bytes": [2.0, 4.0], "plain": [6.0, 6.0], "neural_cache": [3.0, 3.0], "off": [6.0, 12.0],
    }  # fmt: skip
    assert measured.dials == {
        "neural_cache": "neural_cache:strength=0.5,sharpness=0.1,tokens=64",
        "off": "off",
    }
    record = record_of(training, tmp_path, measured, "diverged", "abc", 1.0)
    line = record.to_line()
    assert Record.from_line(line, "here") == record
    assert "documents" not in dataclasses.replace(record, documents={}, dials={}).to_line()


BITS = {  # of every document of one byte, by model and condition, before the seed adds a hundredth
    "cms": {"plain": 1.8, "neural_cache": 1.6, "off": 2.0},
    "base": {"plain": 2.0, "neural_cache": 1.5, "writes": 1.9},
}


class Documents(Fake):
    """Every training was measured on twelve documents, which differ by a hundredth."""

    def _train(self, training: study.Training, lock: int) -> Record:
        record = super()._train(training, lock)
        seed, (first, *_) = training.config.seed, record.metrics
        bits = {
            name: [value + seed / 100 + n / 100 for n in range(12)]
            for name, value in BITS[training.arm.name].items()
        }
        values = [dataclasses.replace(first, name="bits_per_byte", length=512, value=2.0, chance=None)]
        values += [dataclasses.replace(first, name="token_nats", group="plain/target=new", value=5.0 + seed)]
        return dataclasses.replace(
            record, documents={"bytes": [1.0] * 12, **bits}, metrics=values, flops=2e12, step_seconds=4.0
        )


def with_steps(
    whole: data.StudyResults,
    name: str,
    steps: int,
    only: int | None = None,
    corpora: list[str] | None = None,
    **others: Any,
) -> data.StudyResults:
    """The same results as those of another budget, of one arm alone, of other text, or trained in another way."""

    def arm(n: int, one: data.ArmResults) -> data.ArmResults:
        config = one.composed.config
        text = dataclasses.replace(config.data, corpora=corpora or config.data.corpora)
        new = steps if only in (None, n) else config.steps
        config = dataclasses.replace(config, steps=new, data=text, **others)
        composed = dataclasses.replace(one.composed, config=config)
        return dataclasses.replace(one, arm=composed)

    return dataclasses.replace(whole, name=name, arms=[arm(n, one) for n, one in enumerate(whole.arms)])


def as_pair(whole: data.StudyResults, *variants: str) -> data.StudyResults:
    """The same results as those of other models."""
    arms = []
    for one, variant in zip(whole.arms, variants, strict=True):
        config = one.composed.config
        model = dataclasses.replace(config.model, variant=variant)
        composed = dataclasses.replace(one.composed, config=dataclasses.replace(config, model=model))
        arms.append(dataclasses.replace(one, arm=composed))
    return dataclasses.replace(whole, arms=arms)


def page_of(whole: data.StudyResults) -> str:
    return overview([whole], PurePath("studies"))


def measured(tmp_path: Path) -> data.StudyResults:
    """A study of two models, one of which writes."""
    arms_of = {
        "cms": {"run": "hope_deltanet", "adapt": ["neural_cache", "off"]},
        "base": {"run": "gated_deltanet", "adapt": ["neural_cache", "writes"]},
    }
    text = {"scale": "ablation", "overrides": ["data.corpora=[a]"], "adapt": ["neural_cache"], "widen": 0}
    conf = project(tmp_path, arms=arms_of, **text)
    runner = fake(tmp_path, conf, {0.3: 0.7, 1.0: 0.2, 3.0: 0.5}, kind=Documents)
    assert runner.run()
    [whole] = data.collect(runner.ledger)
    return whole


def test_a_claim_for_writes_needs_both_comparisons(tmp_path: Path) -> None:
    whole = measured(tmp_path)
    cms, base = whole.arms
    found = worth.difference(cms, "plain", base, "writes")
    assert found is not None
    assert (found.value, found.seeds, found.clusters) == (pytest.approx(-0.1), 3, 12)
    assert found.high == pytest.approx(-0.1), "paired by seed and document nothing is left to vary"
    alone = worth.estimate(cms)
    assert alone is not None
    assert alone.value == pytest.approx(1.8 + 0.01 + 0.055)
    assert alone.high is not None
    assert alone.high > alone.value + 0.02, "seeds and documents both vary"
    section = worth.section(whole)
    assert (
        "| cms | base | **-0.200 [-0.200, -0.200]** | *+0.100 [+0.100, +0.100]* | **-0.100 [-0.100, -0.100]** |"
        in section
    )
    single = dataclasses.replace(cms, seeds={0: cms.seeds[0]})
    assert (one := worth.difference(single, "plain", base, "plain")) is not None
    assert (one.low, one.high, one.seeds) == (None, None, 1), (
        "documents vary, but a seed alone decides nothing"
    )
    assert "| cms | base | -0.200 |" in worth.section(dataclasses.replace(whole, arms=[single, base]))
    assert "- `cms`: by the rule ahead of no baseline." in section
    assert (
        "for each training.\n- Learning rates were chosen on validation text, at this budget, with one seed.\n"
        in section
    )
    assert "| cms | plain | 1.865 ± " in section
    assert " | 6.00 | - | - | - | - | 2e+12 | 4 | 500 | " in section, (
        "mean over seeds of new targets, and what was not measured"
    )
    for record in cms.seeds.values():
        record.documents["neural_cache"] = [value - 0.2 for value in record.documents["neural_cache"]]
    assert "- `cms`: by the rule ahead of `base`." in worth.section(whole)
    for arm, saved in ((cms, 0.1), (base, 0.25)):
        for record in arm.seeds.values():
            record.documents["dynamic"] = [value - saved for value in record.documents["plain"]]
    base.seeds[0].dials["writes"] = "writes:scale=0.03,period=8,bound=0.1"
    del base.tuned[3.0]
    edges = " At an end of what was tried: base, writes: scale 0.03; base, writes: bound 0.1.\n"
    assert (
        f"{edges}- Learning rates were chosen on validation text, at this budget, with one seed; not all"
        in worth.section(whole)
    )
    assert "were tried of `base`." in worth.section(whole)
    del base.tuned[0.3]
    assert "with one seed; of `base` one rate only was tried.\n" in worth.section(whole)
    learning = " | against baseline + dynamic evaluation | both + dynamic evaluation |"
    assert learning not in section
    assert learning in (section := worth.section(whole))
    assert " | *+0.050 [+0.050, +0.050]* | **-0.050 [-0.050, -0.050]** |\n" in section
    assert "dynamic evaluation: behind `base`. Both + dynamic evaluation: ahead of `base`." in section
    assert "## What a memory is worth, after 0.12 M tokens" in page_of(whole)
    assert "By tokens trained" not in page_of(whole)


def test_budgets_stand_together_and_other_text_apart(tmp_path: Path) -> None:
    whole = measured(tmp_path)
    cms, base = whole.arms
    for record in cms.seeds.values():
        record.documents["neural_cache"] = [value - 0.2 for value in record.documents["neural_cache"]]
    longer = with_steps(whole, "longer", 2 * cms.composed.config.steps)
    flops = with_steps(whole, "flops", 3 * cms.composed.config.steps, only=1)
    novels = with_steps(whole, "novels", 9, corpora=["n"])
    four = [longer, whole, flops, novels]
    assert [study.name for study in worth.adapted(four)] == ["tiny", "flops", "longer"]
    [budgets] = worth.equal_tokens(worth.adapted(four))
    assert [(b.study.name, b.ours.name, b.theirs.name) for b in budgets] == [
        ("tiny", "cms", "base"),
        ("longer", "cms", "base"),
    ]
    assert worth.elsewhere(four) == [novels]
    rows = with_steps(whole, "rows", 9, length=1024)
    cosine = with_steps(
        whole, "cosine", 9, schedule=dataclasses.replace(cms.composed.config.schedule, name="wsd")
    )
    deeper = dataclasses.replace(cms.composed.config.model, layers=7)
    large = with_steps(whole, "large", 9, model=deeper)
    assert worth.elsewhere([*four, rows, cosine, large]) == [novels, rows, cosine, large]
    assert worth.longest(four) is longer
    bare = dataclasses.replace(base, seeds={})
    assert "Defined, but not trained" not in page_of(whole)
    assert "Defined, but not trained: tiny (base)." in page_of(dataclasses.replace(whole, arms=[cms, bare]))
    alone_ = dataclasses.replace(longer, arms=longer.arms[:1])
    assert worth.longest([whole, alone_]) is whole
    page_ = overview(four, PurePath("studies"))
    row = " M | 3 | 2.065 ± 0.034 | 1.965 ± 0.034 | 2.065 ± 0.034 | 1.865 ± 0.034 | **-0.200 [-0.200, -0.200]** |"
    assert page_.count(row) == 2
    assert "**40 of 40 results exist**, of 10 trainings, in " in page_, "four studies share them"
    every = page_.partition("The rule with every baseline:\n\n")[2].partition("## At")[0]
    assert every.count("| cms | base | **-0.200 [-0.200, -0.200]** |") == 2
    assert "## At equal cost\n\n[flops](studies/flops.md): Which one?\n" in page_
    assert (
        "## With other text, contexts, schedule or size\n\n[novels](studies/novels.md): Which one?\n" in page_
    )
    assert "| novels | 0.018 M | cms | base | **-0.200" in page_
    elsewhere = {
        record.seed: dataclasses.replace(record, machine="B (1/2)") for record in base.seeds.values()
    }
    here = [dataclasses.replace(r, machine="A (3/4)") for r in cms.seeds.values()]
    mixed = [
        dataclasses.replace(cms, seeds={r.seed: r for r in here}),
        dataclasses.replace(base, seeds=elsewhere),
    ]
    section = worth.section(dataclasses.replace(whole, arms=mixed))
    assert "| 2e+12 | 4 (3/4) | 500 (3/4) |" in section
    assert "| 2e+12 | 4 (1/2) | 500 (1/2) |" in section
    worth_plots.draw([whole], tmp_path / "plots")
    for pairs in (1, 2):
        known = [whole, longer]
        if pairs == 2:
            known += [as_pair(study, "hope", "titans") for study in known]
        drawn = worth_plots.by_flops(known)
        assert [axes.get_title() or axes.get_title(loc="left") for axes in drawn.axes][2:] == [
            "cms minus base"
        ] * pairs
        leads = drawn.axes[2:]
        assert len({(*axes.get_xlim(), *axes.get_ylim()) for axes in leads}) == 1, "to be compared by eye"
        assert all(
            axes.get_ylim()[0] < axes.dataLim.y0 < axes.dataLim.y1 < axes.get_ylim()[1] for axes in leads
        )
    assert {path.name for path in (tmp_path / "plots").glob("*.png")} == {
        "worth.png",
        "worth_by_class.png",
    }
