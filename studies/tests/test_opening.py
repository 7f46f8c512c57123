"""Locked documents are opened once, with the dials found before, and reported beside the rest."""

from __future__ import annotations

import json
from pathlib import Path, PurePath

import pytest
from suites import ROOT, fake, project
from test_worth import Documents

from hope_eval import results
from hope_eval.results import Checkpoint, Evaluator, Items, Results, TaskResult
from hope_eval.tasks.locked import Locked
from hope_model.errors import InputError
from hope_study.cli import main
from hope_study.opening import OPENED, open_locked
from hope_study.report import data, worth
from hope_study.report.page import overview
from hope_study.store import Store

BITS = {"": 3.0, "neural_cache": 2.5, "writes": 2.8, "off": 3.5}


class Measuring:
    """`hope-eval`, saying the same of every model: `BITS`, and a tenth less of the CMS."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.status = 0

    def __call__(self, command: list[str]) -> int:
        self.asked.append(command)
        out = Path(command[command.index("--json") + 1])
        tasks = [self._text("perplexity", out, "")]
        if "--adapt" in command:
            name = out.stem.removeprefix("measured-")
            tasks.append(self._text(f"perplexity+{name}", out, name))
        about = Checkpoint("r", "titans", 1, 0, 1, 1, "", "", "", "")
        whole = Results(results.SCHEMA, about, Evaluator("", "", "", "cpu", 1), tasks, 0.0)
        out.write_bytes(results.sealed(whole))
        return self.status

    def _text(self, name: str, out: Path, condition: str) -> TaskResult:
        bits = BITS[condition] - (0.1 if "/cms/" in str(out) else 0.0)
        items = Items({"domain": ["a"] * 11}, list(range(11)), [1.0] * 11, {"bits_per_byte": [bits] * 11})
        return TaskResult(name, 1, {}, 0, "", 0, 0.0, items.metrics(), items)


def test_the_repositorys_own_were_opened_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the list in git, on one day, and for the studies whose records are there."""
    folder = ROOT / "reports/locked"
    about = json.loads((folder / OPENED).read_text())
    assert about["list"] == Locked.read(ROOT / "reports/locked.json").sha256
    assert about["date"] == "2026-12-01"
    assert (
        about["studies"] == sorted(path.stem for path in folder.glob("*.jsonl")) == ["worth_1m", "worth_3m"]
    )
    counts = {len(record.documents["bytes"]) for record in Store(folder).all()}
    assert counts == {112}
    monkeypatch.chdir(ROOT)
    assert main(["open", "worth_1m"]) == 2
    assert "opened on 2026-12-01 for 24 trainings" in capsys.readouterr().err


def test_locked_documents_are_opened_once(tmp_path: Path) -> None:
    arms_of = {
        "cms": {"run": "hope_deltanet", "adapt": ["neural_cache sharpness", "off"]},
        "base": {"run": "gated_deltanet", "adapt": ["neural_cache sharpness", "writes scale"]},
    }
    text = {"scale": "ablation", "overrides": ["data.corpora=[a]"], "adapt": ["neural_cache"], "widen": 0}
    runner = fake(
        tmp_path, project(tmp_path, arms=arms_of, **text), {0.3: 0.7, 1.0: 0.2, 3.0: 0.5}, kind=Documents
    )
    assert runner.run()
    listed, folder = tmp_path / "locked.json", tmp_path / "locked"
    listed.write_bytes(Locked("t", frozenset({"a", "b"})).dumps())
    asked = Measuring()

    def opening(*names: str) -> None:
        open_locked(runner.ledger, names, listed, folder, runner.work, asked, lambda _: None)

    with pytest.raises(InputError, match=r"no checkpoint of tiny/cms/rate1-seed0; train it again"):
        opening("tiny")
    assert not folder.exists(), "nothing is opened where nothing can be measured"
    for training in [one for arm in runner.ledger.arms for one in runner.ledger.final(arm)]:
        kept = runner.work / training.config.run
        (kept / "checkpoint").mkdir(parents=True)
        for name in ("neural_cache", "writes"):
            best = (
                {"strength": 0.5, "sharpness": 0.1, "tokens": 64}
                if name == "neural_cache"
                else {"scale": 0.3}
            )
            (kept / f"tuned-{name}.json").write_text(json.dumps({"adapt": name, "best": best}))
    asked.status = 2
    with pytest.raises(InputError, match="not measured; the same command goes on here"):
        opening("tiny")
    asked.status, asked.asked = 0, []
    opening("tiny")
    assert len(asked.asked) == 6 * 3, "plain and two adaptations of each; no dial is tuned again"
    assert all(command[-2:] == ["--documents", str(listed)] for command in asked.asked)
    assert all(command[command.index("--tasks") + 1] == "perplexity" for command in asked.asked)
    about = json.loads((folder / OPENED).read_text())
    assert about["studies"] == ["tiny"]
    assert about["list"] == Locked.read(listed).sha256
    opening("tiny")
    assert len(asked.asked) == 18, "what is done is not done again"
    (folder / OPENED).write_text(json.dumps(about | {"studies": ["other"], "date": "2000-01-01"}))
    with pytest.raises(InputError, match=r"opened on 2000-01-01 for 6 trainings of \['other'\]; once is all"):
        opening("tiny")
    (folder / OPENED).write_text(json.dumps(about | {"trainings": about["trainings"][1:]}))
    with pytest.raises(InputError, match=r"for 5 trainings of \['tiny'\]; once is all"):
        opening("tiny")
    [whole] = data.collect(runner.ledger)
    again = data.on_locked(whole, Store(folder))
    found = worth.difference(again.arms[0], "plain", again.arms[1], "writes")
    assert found is not None
    assert (found.value, found.clusters) == (pytest.approx(2.9 - 2.8), 11)
    page = overview([whole], PurePath("studies"), [again], "2000-01-01")
    assert "The rule once more, on 11 of the test documents" in page
    assert (
        "| tiny | 0.12 M | cms | base | **-0.100 [-0.100, -0.100]** | **-0.100 [-0.100, -0.100]** | *+0.100"
        in page
    )
    del whole.arms[0].seeds[0]
    assert sorted(data.on_locked(whole, Store(folder)).arms[0].seeds) == [0, 1, 2], "what was seen stays"
