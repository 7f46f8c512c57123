"""The pages of studies: verdicts by Student's t over seeds, holes named as holes, files that DVC reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from cases import SEEDS, Case, Measured, diverged, record
from suites import ROOT

from hope_model.errors import InputError
from hope_study.cli import main
from hope_study.report import data, plots
from hope_study.report.page import overview, page
from hope_study.store import Store

MEASURED: Measured = {
    "hope": [{32: 1.0, 64: 0.70}, {32: 1.0, 64: 0.80}, {32: 0.99, 64: 0.75}],
    "better": [{32: 1.0, 64: 0.90}, {32: 1.0, 64: 1.02}, {32: 0.99, 64: 0.96}],
    "unsure": [{32: 0.9, 64: 0.90}, {32: 1.0, 64: 0.70}, {32: 0.99, 64: 0.85}],
    "few": [{32: 0.2, 64: 0.1}],
    "none": [],
}


def test_verdicts_by_hand(tmp_path: Path) -> None:
    study = Case(tmp_path, MEASURED).results()
    arms = {arm.name: arm for arm in study.arms}
    found = data.verdict(study, arms["better"], 64)
    assert found is not None
    # Differences 0.20, 0.22, 0.21: mean 0.21, standard error 0.01 / sqrt 3, t(2) = 4.303.
    assert (found.word, found.n) == ("better", 3)
    assert found.difference == pytest.approx(0.21)
    assert found.low == pytest.approx(0.21 - 4.302653 * 0.01 / 3**0.5)
    words = {name: data.verdict(study, arms[name], 64) for name in ("unsure", "few", "none")}
    assert words["unsure"] is not None
    assert words["unsure"].word == "no difference"
    assert (words["few"], words["none"]) == (None, None)
    same = data.verdict(study, arms["better"], 32)
    assert same is not None
    assert (same.word, same.difference, same.low) == ("no difference", 0.0, 0.0)


def test_fifteen_seeds_have_their_own_quantile() -> None:
    ours, theirs = dict(enumerate([0.0, 1.0] * 8)), dict.fromkeys(range(16), 0.0)
    assert data.paired(ours, theirs, 9, lower_is_better=True) is None  # of nine documents nothing is said
    found = data.paired(ours, theirs, 10, lower_is_better=True)
    assert found is not None
    assert found.half == pytest.approx(2.131450 * 0.1290994)  # t(15), not the t(9) at which a table ended


def test_lower_bits_are_better(tmp_path: Path) -> None:
    values = {"hope": [{512: 2.0}, {512: 2.1}, {512: 2.2}], "more": [{512: 2.5}, {512: 2.61}, {512: 2.7}]}
    study = Case(tmp_path, values, "bits_per_byte").results()
    found = data.verdict(study, study.arms[1], 512)
    assert found is not None
    assert found.word == "worse"


def test_one_diverged_seed_solves_nothing_and_is_drawn(tmp_path: Path) -> None:
    case = Case(tmp_path, {"hope": [{32: 1.0, 64: 1.0}] * 3, "gone": [{32: 1.0, 64: 1.0}] * 3})
    for arm, seeds in {"hope": (2,), "gone": SEEDS}.items():
        for seed in seeds:
            case.store.add(diverged(case.store.records("tiny")[arm, f"rate1-seed{seed}"]))
    # Of `gone` every rate diverged but those that were only tried; they must not win.
    for rate in ("0.3", "3"):
        case.store.add(diverged(case.store.records("tiny")["gone", f"rate{rate}-seed0"]))
    text = case.page()
    assert "`hope` solves it at no length." in text
    assert "left out, diverged: 1 of 3 seeds of `hope`" in text
    assert plots.draw(case.results(), tmp_path / "tiny.png")
    assert (tmp_path / "tiny.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_rates_stand_with_what_decided_between_them(tmp_path: Path) -> None:
    case = Case(tmp_path, {"hope": [{32: 1.0}] * 3, "other": []})
    for rate in (0.3, 1.0, 3.0):
        # Rates that solve the task are ranked by the loss at the longest validated length.
        losses = {"val_loss": 1e-4, "val_loss_64": 9.0, "val_loss_128": 1 / rate}
        case.change("hope", f"rate{rate:g}-seed0", validation=losses)
    case.store.add(record(case.arms()[0].training(3.0, 1), 0.5, {32: 1.0}, "task_accuracy"))
    text = case.page()
    assert "- hope: 0.003: 0.0001 / 3.3333; 0.01: 0.0001 / 1.0000; **0.03: 0.0001 / 0.3333**" in text


def test_arms_named_by_numbers_stand_in_their_order() -> None:
    names = ["teach_0.1", "teach_0", "teach_0.05", "4_levels", "every_32", "from_8_to_512", "hope"]
    numbers = [plots._number(type("Arm", (), {"name": name})()) for name in names]
    assert numbers == [0.1, 0.0, 0.05, 4.0, 32.0, None, None]
    arms = [type("Arm", (), {"name": name})() for name in ("chunk_16", "chunk_32", "chunk_64", "chunk_256")]
    assert plots._places(arms) == ([0, 1, 2, 4], ["16", "32", "64", "256"])
    arms[1].name = "hope"
    assert plots._places(arms)[0] == [0, 1, 2, 3]


def test_records_of_another_definition_do_not_count(tmp_path: Path) -> None:
    case = Case(tmp_path, MEASURED)
    case.change("better", "rate1-seed2", sha256="changed")
    study = case.results()
    assert sorted(study.arms[1].seeds) == [0, 1]
    assert data.verdict(study, study.arms[1], 64) is None


def test_the_page_says_what_was_measured_and_what_was_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(tmp_path, MEASURED)
    out, folder = tmp_path / "overview.md", case.store.folder
    common = ["--results", str(folder), "--conf", str(case.conf), "--params", str(ROOT / "params.yaml")]
    assert main(["report", "--out", str(out), *common]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    whole = out.read_text()
    assert "**18 of 25 results exist**, of 18 trainings, in 0.1 core-hours with their measurements." in whole
    assert (
        "| [tiny](studies/tiny.md) | Which? | Answers right | hope | **better** better at 64 (+0.210); "
        in whole
    )
    text = (folder / "tiny.md").read_text()
    assert "better at 64 (+0.210, 95 % [+0.185, +0.235], 3 seeds)" in text
    assert "`few` against `hope`: not decided at 32 (1 seeds in common)" in text
    assert "`hope` solves it (≥ 0.99 with every seed, 3 of them) at 32." in text
    assert "`few` solves it at no length." in text
    assert "training never saw a chunk's boundary" in text
    assert "| none | not run | 0 |" in text
    assert "`never` cannot be run: no switch." in text
    assert "`better` is `hope` with `optim.clip=2.5`" in text
    assert "| hope | 0.01 | 3 | 0.997 ± 0.003 | 0.750 ± 0.029 |" in text
    picture = (folder / "plots" / "tiny.png").read_bytes()
    metrics = json.loads((folder / "tiny.metrics.json").read_text())["tiny"]
    # Means over both lengths: 0.85, 0.9, 0.87.
    assert metrics["hope"] == {"mean": 0.8733, "stderr": 0.0145, "n": 3}
    assert metrics["few"] == {"mean": 0.15, "stderr": None, "n": 1}
    assert "none" not in metrics
    lines = (folder / "tiny.csv").read_text().splitlines()
    assert lines[:2] == ["arm,seed,step,tokens,val_loss,val_bpb,val_accuracy", "hope,0,5,2000,0.5,,"]
    assert len(lines) == 1 + 3 + 3 + 3 + 1
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert main(["report", "tiny", *common]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "plots" / "tiny.png").read_bytes() == picture


def test_a_study_without_records_is_not_run(tmp_path: Path) -> None:
    results = Case(tmp_path, {"hope": [], "other": []}).results()
    assert "Not run (10 trainings)." in page(results)
    assert "**0 of 10 results exist**" in overview([results], Path("studies"))
    assert "Defined, but not trained: tiny (all)." in overview([results], Path("studies"))


def test_a_spoilt_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path, {"hope": [{32: 1.0}] * 3, "other": []})
    path = case.store.path("tiny")
    whole = path.read_text()
    first, second, *rest = whole.splitlines(keepends=True)
    for spoilt, message in {
        first.replace('"seconds": 8.0', '"seconds": "8"'): "line 1: seconds: input should be a valid number",
        first.replace('"seconds": 8.0', '"seconds": 9.0'): "line 1: changed after it was written",
        first.replace('"seed": 0', '"seed": 1'): "line 1: changed after it was written",
        first[:50] + "\n": "line 1: not a sealed record",
        "[" * 100_000 + "\n": "line 1: not a sealed record",
        second: "line 2: hope/rate1-seed0 stands twice",
    }.items():
        path.write_text("".join([spoilt, second, *rest]))
        with pytest.raises(InputError, match=f"tiny.jsonl, {message}"):
            Store(path.parent).records("tiny")
    path.write_text(whole)
    path.rename(path.with_name("other.jsonl"))
    with pytest.raises(InputError, match="line 1: a record of study 'tiny'"):
        Store(path.parent).records("other")
    assert main(["report", "--results", str(tmp_path / "no"), "--params", str(ROOT / "params.yaml")]) == 2
    assert "no records (*.jsonl) here; run `hope-study run` first" in capsys.readouterr().err


def test_runners_may_share_a_folder(tmp_path: Path) -> None:
    case = Case(tmp_path, {"hope": [], "other": []})
    one, two = Store(case.store.folder), Store(case.store.folder)
    arm = case.arms()[0]
    for seed, store in enumerate((one, two, one, two)):
        store.add(record(arm.training(1.0, seed), 0.5, {}, "task_accuracy"))
    assert list(one.records("tiny")) == [("hope", f"rate1-seed{seed}") for seed in range(4)]
    assert one.records("tiny") == two.records("tiny") == Store(case.store.folder).records("tiny")


def test_equal_time_has_a_table_and_verdicts_of_its_own(tmp_path: Path) -> None:
    rows = [{32: 0.90}, {32: 0.91}, {32: 0.92}]
    measured = {"hope": rows, "cheap": [{32: 0.80}, {32: 0.81}, {32: 0.82}], "like": rows, "unknown": rows}
    case = Case(tmp_path, measured, equal_time="hope")
    for (arm, run), one in list(case.store.records("tiny").items()):
        machine, seconds = ("Far", 8.0) if arm == "unknown" else ("Box", 3.2 if arm == "cheap" else 8.0)
        case.store.add(dataclasses.replace(one, machine=machine, step_seconds=seconds))
        assert run
    assert "At equal time:" not in case.page()
    arms = {arm.name: arm for arm in case.arms()}
    for seed in SEEDS:
        longer = arms["cheap"].training(1.0, seed, 25)
        one = record(longer, 0.5, {32: 0.93 + seed / 100}, "task_accuracy")
        case.store.add(dataclasses.replace(one, machine="Box"))
    ordinary, timed = case.page().split("At equal time:")
    assert "`cheap` 25 steps for 10 (2.5 times)" in timed
    assert "worse at 32 (-0.100" in ordinary
    assert "better at 32 (+0.030" in timed
    assert "| cheap | 0.01 | 3 | 0.940 ± 0.006 |" in timed
    assert "| 10,000 | 8 | 1,250 |" in timed
    assert "| hope | 0.01 | 3 | 0.910 ± 0.006 |" in timed
    assert "| like | 0.01 | 3 | 0.910 ± 0.006 |" in timed  # costs as much as the reference
    assert "| unknown | not run |" in timed
    assert "not all of one machine" not in timed
    for seed in SEEDS:
        case.change("cheap", f"rate1-seed{seed}-steps25", machine="Far")
    assert "not all of one machine: `cheap` took these steps on another than `hope` ran on." in case.page()
    assert "revision abc; on Box, Far." in case.page()
    for seed in (0, 1):  # the wall's clock is not mixed in
        case.change("cheap", f"rate1-seed{seed}-steps25", step_seconds=0.0)
    assert "| 10,000 | 8 | 1,250 |" in case.page()
    case.change("cheap", "rate1-seed2-steps25", step_seconds=0.0)
    assert "| 10,000 | - | - |" in case.page()


def test_a_replication_says_what_came_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first: Measured = {
        "hope": [{32: 0.70}, {32: 0.72}, {32: 0.74}],
        "same": [{32: 0.60}, {32: 0.62}, {32: 0.64}],
        "fades": [{32: 0.80}, {32: 0.82}, {32: 0.84}],
        "turns": [{32: 0.80}, {32: 0.82}, {32: 0.84}],
        "changed": [{32: 0.10}] * 3,
        "few": [{32: 0.5}, {32: 0.1}],
    }
    second = first | {
        "same": [{32: 0.59}, {32: 0.61}, {32: 0.63}],
        "fades": [{32: 0.90}, {32: 0.70}, {32: 0.74}],
        "turns": [{32: 0.50}, {32: 0.52}, {32: 0.54}],
    }
    a, b = Case(tmp_path / "a", first), Case(tmp_path / "b", second)
    for run in ("rate0.3-seed0", "rate1-seed0", "rate3-seed0", "rate1-seed1", "rate1-seed2"):
        b.change("changed", run, sha256="other")
    # A fourth seed, on one side only, does not count.
    same = next(arm for arm in b.arms() if arm.name == "same")
    b.store.add(record(same.training(1.0, 3), 0.5, {32: 9.0}, "task_accuracy"))
    b.store.add(diverged(b.store.records("tiny")["few", "rate1-seed1"]))
    folders = [str(a.store.folder), str(b.store.folder), "--conf", str(a.conf)]
    assert main(["replication", *folders]) == 0
    text = capsys.readouterr().out
    assert "5 arms, 5 means; they differ by 0.010 (median) and at most 0.300 (tiny/turns at 32)." in text
    assert "of 3 in both 1 are the same, 1 went between a difference and none, 1 reversed." in text
    assert "Defined otherwise and left out: tiny/changed." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "tiny/" in line]
    assert rows[-2:] == [
        ["tiny/fades", "32", "3", "0.820 ± 0.012", "0.780 ± 0.061", "better", "no difference"],
        ["tiny/turns", "32", "3", "0.820 ± 0.012", "0.520 ± 0.012", "better", "worse"],
    ]
    assert main(["replication", *folders, "--all"]) == 0
    whole = capsys.readouterr().out
    assert "tiny/same" in whole
    few = next(line for line in whole.splitlines() if "tiny/few" in line)
    assert [cell.strip() for cell in few.split("|")[1:6]] == ["tiny/few", "32", "1", "0.500", "0.500"]
    assert main(["replication", folders[0], str(tmp_path), "--conf", str(a.conf)]) == 2
    assert "no arm of one definition has records in both" in capsys.readouterr().err
