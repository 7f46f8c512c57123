"""The ablations' page: verdicts by Student's t over seeds, holes told as holes."""

import json
import shutil
from pathlib import Path

import pytest

from hope_data.errors import InputError
from hope_eval.cli import main
from hope_eval.report import ablation_data, ablation_plots, ablations

SEEDS = (0, 1, 2)


def training(
    arm: str, seed: int, rate: float, loss: float, values: dict[int, float], name: str
) -> dict[str, object]:
    return {
        "schema": 1,
        "sha256": f"{arm}-{rate}-{seed}",
        "study": "tiny",
        "arm": arm,
        "seed": seed,
        "rate": rate,
        "lr": 0.01 * rate,
        "matrix_lr": 0.01 * rate,
        "variant": "hope",
        "parameters": 1000,
        "steps": 10,
        "tokens": 4000,
        "seconds": 8.0,
        "step_seconds": 8.0,
        "wall_seconds": 10.0,
        "flops": 1e9,
        "revision": "abc",
        "failed": "",
        "validation": {"val_loss": loss},
        "curve": [],
        "metrics": [
            {"name": name, "length": n, "n": 256, "value": v, "stderr": 0.01, "chance": 0.5}
            for n, v in values.items()
        ],
    }


def results(folder: Path, measured: dict[str, list[dict[int, float]]], name: str = "task_accuracy") -> Path:
    """A study whose arms have these values by seed and length; learning rate factor 1 validates best."""
    arms = {}
    for arm, rows in measured.items():
        made = [training(arm, 0, rate, 0.7, {}, name) for rate in (0.3, 3.0)] if rows else []
        made += [training(arm, seed, 1.0, 0.5, values, name) for seed, values in enumerate(rows)]
        (folder / "tiny" / arm).mkdir(parents=True)
        for one in made:
            unit = f"rate{one['rate']:g}-seed{one['seed']}"
            (folder / "tiny" / arm / f"{unit}.json").write_text(json.dumps(one))
        units = {f"rate{r:g}-seed{s}": f"{arm}-{r}-{s}" for r in (0.3, 1.0, 3.0) for s in SEEDS}
        arms[arm] = {
            "parameters": 1000,
            "state_bytes": 20992,
            "missing": "",
            "variant": "hope",
            "length": 32,
            "chunk": 32,
            "segment": 64,
            "chosen": 1.0 if rows else None,
        }
        arms[arm]["units"] = units
    arms["never"] = {**arms[next(iter(arms))], "missing": "no switch", "units": {}}
    arms[next(iter(arms))]["run"] = "hope"  # named as its run: nothing to be told
    if "better" in arms:
        arms["better"] |= {"run": "hope", "overrides": ["teach_scale=0", "seed=1"]}
    study = {"question": "Which?", "order": 1, "scale": "suite", "rates": [0.3, 1.0, 3.0]}
    plan = {"tiny": {**study, "seeds": list(SEEDS), "lengths": ["1x"], "arms": arms}}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


MEASURED = {
    "hope": [{32: 1.0, 64: 0.70}, {32: 1.0, 64: 0.80}, {32: 0.99, 64: 0.75}],
    "better": [{32: 1.0, 64: 0.90}, {32: 1.0, 64: 1.02}, {32: 0.99, 64: 0.96}],
    "unsure": [{32: 0.9, 64: 0.90}, {32: 1.0, 64: 0.70}, {32: 0.99, 64: 0.85}],
    "few": [{32: 0.2, 64: 0.1}],
    "none": [],
}


def test_verdicts_by_hand(tmp_path: Path) -> None:
    study = ablation_data.load(results(tmp_path, MEASURED))[0]
    arms = {arm.name: arm for arm in study.arms}
    found = ablation_data.verdict(study, arms["better"], 64)
    assert found is not None
    # Differences 0.20, 0.22, 0.21: mean 0.21, standard error 0.01 / sqrt 3, t(2) = 4.303.
    assert (found.word, found.n) == ("better", 3)
    assert found.difference == pytest.approx(0.21)
    assert found.low == pytest.approx(0.21 - 4.303 * 0.01 / 3**0.5)
    words = {name: ablation_data.verdict(study, arms[name], 64) for name in ("unsure", "few", "none")}
    assert words["unsure"] is not None
    assert words["unsure"].word == "no difference"
    assert (words["few"], words["none"]) == (None, None)
    same = ablation_data.verdict(study, arms["better"], 32)
    assert same is not None
    assert (same.word, same.difference, same.low) == ("no difference", 0.0, 0.0)


def test_the_runner_says_which_rate_counts(tmp_path: Path) -> None:
    folder = results(tmp_path, MEASURED)
    plan = json.loads((folder / "plan.json").read_text())
    plan["tiny"]["arms"]["better"]["chosen"] = 3.0
    (folder / "plan.json").write_text(json.dumps(plan))
    better = ablation_data.load(folder)[0].arms[1]
    assert [(seed, one.rate) for seed, one in better.seeds.items()] == [(0, 3.0)]


def test_lower_bits_are_better(tmp_path: Path) -> None:
    values = {"hope": [{512: 2.0}, {512: 2.1}, {512: 2.2}], "more": [{512: 2.5}, {512: 2.61}, {512: 2.7}]}
    study = ablation_data.load(results(tmp_path, values, "bits_per_byte"))[0]
    found = ablation_data.verdict(study, study.arms[1], 512)
    assert found is not None
    assert found.word == "worse"


def test_one_diverged_seed_solves_nothing_and_is_drawn(tmp_path: Path) -> None:
    folder = results(tmp_path / "r", {"hope": [{32: 1.0, 64: 1.0}] * 3, "gone": [{32: 1.0, 64: 1.0}] * 3})
    for arm, seeds in {"hope": (2,), "gone": SEEDS}.items():
        for seed in seeds:
            path = folder / "tiny" / arm / f"rate1-seed{seed}.json"
            spoilt = {"metrics": [], "failed": "diverged", "steps": 0, "validation": {}}
            path.write_text(json.dumps(json.loads(path.read_text()) | spoilt))
    ablations.write(folder, tmp_path / "page.md", tmp_path / "plots")
    page = (tmp_path / "page.md").read_text()
    assert "`hope` solves it at no length." in page
    assert "| gone | 0.01 | 3, 3 diverged | - | - |" in page
    left_out = "left out, diverged: 3 of 3 seeds of `gone`; left out, diverged: 1 of 3 seeds of `hope`."
    assert f"not decided at 64 (0 seeds in common); {left_out}" in page
    assert (tmp_path / "plots" / "ablation_tiny.png").is_file()


def test_rates_are_told_with_what_decided_between_them(tmp_path: Path) -> None:
    folder = results(tmp_path, {"hope": [{32: 1.0}] * 3})
    for rate in (0.3, 1.0, 3.0):
        path = folder / "tiny" / "hope" / f"rate{rate:g}-seed0.json"
        found = {"val_loss": 0.1, "val_loss_64": 9.0, "val_loss_128": rate / 4}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"validation": found}))
    page = ablations.page(ablation_data.load(folder), {})
    assert "- hope: 0.003: 0.1000 / 0.0750; **0.01: 0.1000 / 0.2500**; 0.03: 0.1000 / 0.7500" in page


def test_arms_named_by_numbers_stand_in_their_order() -> None:
    names = ["teach_0.1", "teach_0", "teach_0.05", "4_levels", "every_32", "from_8_to_512", "hope"]
    numbers = [ablation_plots._number(type("Arm", (), {"name": name})()) for name in names]
    assert numbers == [0.1, 0.0, 0.05, 4.0, 32.0, 0.0, 0.0]


def test_results_of_another_definition_do_not_count(tmp_path: Path) -> None:
    folder = results(tmp_path, MEASURED)
    plan = json.loads((folder / "plan.json").read_text())
    plan["tiny"]["arms"]["better"]["units"]["rate1-seed2"] = "changed"
    (folder / "plan.json").write_text(json.dumps(plan))
    study = ablation_data.load(folder)[0]
    assert sorted(study.arms[1].seeds) == [0, 1]
    assert ablation_data.verdict(study, study.arms[1], 64) is None


def test_the_page_says_what_was_found_and_what_was_not_run(tmp_path: Path) -> None:
    folder = results(tmp_path / "results", MEASURED)
    out, plots = tmp_path / "page.md", tmp_path / "plots"
    arguments = ["--results", str(folder), "--out", str(out), "--plots", str(plots)]
    assert main(["ablations", *arguments]) == 0
    page = out.read_text()
    assert "**18 of 25 trainings are done.**" in page
    assert "better at 64 (+0.210, 95 % [+0.185, +0.235], 3 seeds)" in page
    assert "`few` against `hope`: not decided at 32 (1 seeds in common)" in page
    assert "`hope` solves it (≥ 0.99 with every seed, 3 of them) at 32." in page
    assert "`few` solves it at no length." in page
    assert "training never saw a chunk's boundary" in page
    assert "| none | not run | 0 |" in page
    assert "`never` cannot be run: no switch." in page
    assert "`better` is `hope` with `teach_scale=0 seed=1`." in page
    assert (
        "| hope | 0.01 | 3 | 0.997 ± 0.003 | 0.750 ± 0.029 | 1,000 | 21.0 | 4,000 | 8 | 500 | 1e+09 |" in page
    )
    first = (plots / "ablation_tiny.png").read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    ablations.write(folder, out, plots)
    assert (plots / "ablation_tiny.png").read_bytes() == first
    assert out.read_text() == page


def test_a_study_without_results_is_not_run(tmp_path: Path) -> None:
    page = ablations.page(ablation_data.load(results(tmp_path, {"hope": [], "other": []})), {})
    assert "**0 of 10 trainings are done.**" in page
    assert "(10 trainings)" in page


def test_a_spoilt_result_is_named(tmp_path: Path) -> None:
    folder = results(tmp_path, MEASURED)
    path = folder / "tiny" / "hope" / "rate1-seed0.json"
    path.write_text(path.read_text().replace('"seconds": 8.0', '"seconds": "8"'))
    with pytest.raises(InputError, match=r"rate1-seed0.json: seconds: .*remove the file"):
        ablation_data.load(folder)
    with pytest.raises(InputError, match="run `hope-train ablations` first"):
        ablation_data.load(tmp_path / "nowhere")


def streamed(way: str, last: float, forgetting: float) -> list[dict[str, object]]:
    """R of two domains: 3 before, 2 after their own stage, `last` at the end."""
    R = {"0>a": 3.0, "0>b": 3.0, "1>a": 2.0, "1>b": 3.0, "2>a": last, "2>b": 2.0}
    rows = [("bits_per_byte", f"{way} {cell}", v) for cell, v in R.items()]
    rows += [("forgetting", way, forgetting), ("backward_transfer", way, 0.0), ("forward_transfer", way, 0.0)]
    return [
        {"name": m, "group": g, "value": v, "length": 32, "n": 4, "stderr": 0.1, "chance": None}
        for m, g, v in rows
    ]


def test_a_stream_is_judged_by_way_of_learning(tmp_path: Path) -> None:
    folder = results(tmp_path / "r", {"hope": [{32: 0.0}] * 3, "other": [{32: 0.0}] * 3}, "bits_per_byte")
    plan = json.loads((folder / "plan.json").read_text())
    plan["tiny"]["stream"] = {"domains": ["a", "b"], "tokens": 10, "held_out": 5, "lr": 0.1}
    (folder / "plan.json").write_text(json.dumps(plan))
    for arm, ways in {"hope": ("memorize+off", "memorize+on", "train"), "other": ("train",)}.items():
        for seed in SEEDS:
            path = folder / "tiny" / arm / f"rate1-seed{seed}.json"
            lost = {"memorize+off": 0.6, "memorize+on": 0.4, "train": 0.2 if arm == "hope" else 0.5}
            rows = [row for w in ways for row in streamed(w, 2 + lost[w] + seed / 100, lost[w] + seed / 100)]
            path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": rows}))
    path = folder / "tiny" / "other" / "rate1-seed2.json"
    spoilt = {"metrics": [], "failed": "diverged", "steps": 0, "validation": {}}
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | spoilt))
    out = tmp_path / "page.md"
    ablations.write(folder, out, tmp_path / "plots")
    assert "`other` (by training) against `hope` (by training): not decided in bits/byte" in out.read_text()
    path.write_text(whole)
    ablations.write(folder, out, tmp_path / "plots")
    page = out.read_text()
    # The last row is (2 + lost, 2): its mean changes by half of what is forgotten.
    assert "memories written against frozen: better in bits/byte at the end (-0.1000, 95 %" in page
    # Before it is 3, whatever came.
    assert "; better in change (-0.1000, 95 %" in page
    assert (
        "`other` (by training) against `hope` (by training): worse in bits/byte at the end (+0.1500" in page
    )
    assert "worse in average forgetting (+0.3000" in page
    row = "3.000 ± 0.000 | 2.305 ± 0.003 | -0.695 ± 0.003 | 1.000 ± 0.000 | 0.610 ± 0.006"
    assert f"| hope | memories frozen | 0.01 | 3 | {row} |" in page
    assert "other: worse by training (+0.150, worse in change)" in page
    assert (tmp_path / "plots" / "ablation_tiny.png").is_file()


def test_equal_time_has_a_table_and_verdicts_of_its_own(tmp_path: Path) -> None:
    measured = {"hope": [{32: 0.90}, {32: 0.91}, {32: 0.92}], "cheap": [{32: 0.80}, {32: 0.81}, {32: 0.82}]}
    folder = results(tmp_path, measured)
    plan = json.loads((folder / "plan.json").read_text())
    plan["tiny"]["equal_time"] = "hope"
    plan["tiny"]["arms"] |= {
        "like": dict(plan["tiny"]["arms"]["hope"]),
        "unknown": dict(plan["tiny"]["arms"]["hope"]),
    }
    for arm, timed_ in {"hope": {}, "like": {}, "unknown": None}.items():
        plan["tiny"]["arms"][arm]["timed"] = timed_
        if arm != "hope":
            shutil.copytree(folder / "tiny" / "hope", folder / "tiny" / arm)
    plan["tiny"]["arms"]["cheap"]["timed"] = {f"rate1-seed{s}-steps25": f"long-{s}" for s in SEEDS}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert "At equal time:" not in ablations.page(ablation_data.load(folder), {})
    for seed in SEEDS:
        made = training("cheap", seed, 1.0, 0.5, {32: 0.93 + seed / 100}, "task_accuracy")
        made |= {"sha256": f"long-{seed}", "steps": 25, "tokens": 10_000}
        (folder / "tiny" / "cheap" / f"rate1-seed{seed}-steps25.json").write_text(json.dumps(made))
    page = ablations.page(ablation_data.load(folder), {})
    ordinary, timed = page.split("At equal time:")
    assert "`cheap` 25 steps for 10 (2.5 times)" in timed
    assert "worse at 32 (-0.100" in ordinary
    assert "better at 32 (+0.030" in timed
    assert "| cheap | 0.01 | 3 | 0.940 ± 0.006 | 1,000 | 21.0 | 10,000 |" in timed
    assert "| hope | 0.01 | 3 | 0.910 ± 0.006 | 1,000 | 21.0 | 4,000 | 8 |" in timed
    assert "| like | 0.01 | 3 | 0.910 ± 0.006 |" in timed  # as dear as the reference
    assert "| unknown | not run |" in timed
    assert "**23 of 23 trainings are done.**" in page
    assert "not all of one machine" not in page
    for file in folder.glob("tiny/*/*.json"):
        new = {"machine": f"Box of {'cheap' if file.parent.name == 'cheap' else 'hope'}", "step_seconds": 4.0}
        file.write_text(json.dumps(json.loads(file.read_text()) | new))
    page = ablations.page(ablation_data.load(folder), {})
    assert "| 4,000 | 4 | 1,000 |" in page
    assert "not all of one machine: `cheap` took these steps on another than `hope` ran on." in page
    for seed in (0, 1):  # the wall's clock is not mixed in
        file = folder / "tiny" / "cheap" / f"rate1-seed{seed}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"step_seconds": 0.0}))
    assert ablations.page(ablation_data.load(folder), {}) == page
    file = folder / "tiny" / "cheap" / "rate1-seed2.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"step_seconds": 0.0}))
    assert "| 4,000 | - | - |" in ablations.page(ablation_data.load(folder), {})
    assert "revision abc; on Box of cheap, Box of hope." in page


def test_a_replication_says_what_came_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = {
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
    a, b = results(tmp_path / "a", first), results(tmp_path / "b", second)
    plan = json.loads((b / "plan.json").read_text())
    units = plan["tiny"]["arms"]["changed"]["units"]
    units |= {unit: f"other-{sha256}" for unit, sha256 in units.items()}
    plan["tiny"]["arms"]["never"]["question"] = "x"
    (b / "plan.json").write_text(json.dumps(plan))
    assert main(["replication", str(a), str(b)]) == 2  # an unknown key of a plan
    del plan["tiny"]["arms"]["never"]["question"]
    # A fourth seed, on one side only, does not count.
    plan["tiny"]["seeds"] = [*SEEDS, 3]
    plan["tiny"]["arms"]["same"]["units"]["rate1-seed3"] = "same-1.0-3"
    fourth = training("same", 3, 1.0, 0.5, {32: 9.0}, "task_accuracy")
    (b / "tiny" / "same" / "rate1-seed3.json").write_text(json.dumps(fourth))
    (b / "plan.json").write_text(json.dumps(plan))
    gone = b / "tiny" / "few" / "rate1-seed1.json"
    spoilt = {"metrics": [], "failed": "diverged", "steps": 0, "validation": {}}
    gone.write_text(json.dumps(json.loads(gone.read_text()) | spoilt))
    capsys.readouterr()
    assert main(["replication", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "5 arms, 5 means; they differ by 0.010 (median) and at most 0.300 (tiny/turns at 32)." in text
    assert "of 3 in both 1 are the same, 1 went between a difference and none, 1 reversed." in text
    assert "Defined otherwise and left out: tiny/changed." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "tiny/" in line]
    assert rows[-2:] == [
        ["tiny/fades", "32", "3", "0.820 ± 0.012", "0.780 ± 0.061", "better", "no difference"],
        ["tiny/turns", "32", "3", "0.820 ± 0.012", "0.520 ± 0.012", "better", "worse"],
    ]
    assert main(["replication", str(a), str(b), "--all"]) == 0
    whole = capsys.readouterr().out
    assert "tiny/same" in whole
    few = next(line for line in whole.splitlines() if "tiny/few" in line)
    assert [cell.strip() for cell in few.split("|")[1:6]] == ["tiny/few", "32", "1", "0.500", "0.500"]
    assert main(["replication", str(a), str(tmp_path)]) == 2
    assert "plan.json" in capsys.readouterr().err
