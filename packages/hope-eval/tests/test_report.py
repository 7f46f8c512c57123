"""The page says what the numbers say, and the pictures are the same for the same numbers."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_reports import logs, report, write_log

from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.report import _notes, plots, tables, training
from hope_eval.report.numbers import losses
from hope_eval.report.seeds import pool
from hope_eval.tasks.perplexity import margins

Write = Callable[..., Path]
__all__ = ["logs"]  # a fixture


@pytest.mark.usefixtures("logs")
def test_page_holds_the_numbers_and_what_follows(synthetic: Write, tmp_path: Path) -> None:
    paths = [synthetic("alpha", 2.0, 0.6), synthetic("beta", 2.1, 0.26)]
    status, out = report(tmp_path)
    assert status == 0
    text = out.read_text()
    alpha, beta = (schema.load(path) for path in paths)
    for result in (alpha, beta):
        for task in result.tasks:
            for metric in task.metrics:
                if not metric.group.startswith("depth=") and metric.name != "unigram_bits_per_byte":
                    assert schema.value(metric.value, metric.stderr) in text
    squeezed = " ".join(text.split())
    assert "| 1,234,567 | 1,024,000 | 250 | 2,048 | 3 | dddddddddddd |" in squeezed
    said = re.search(
        r"\*\*Bits per byte\*\*: alpha - beta (\S+) \[(\S+), (\S+)\], these weights, 200 documents\.", text
    )
    assert said
    assert [float(x) for x in said.groups()] == pytest.approx([-0.1, -0.103, -0.097], abs=0.01)
    assert "**Passkey by greedy generation**" not in text  # none of both, which is no difference to speak of
    assert not re.search(
        r"\b(better|worse|distinguishable)\b", text.split("## Differences")[0].split("method is better")[1]
    )
    assert "every run is more than three standard errors below it, on domains of 10 documents or more" in text
    assert "above chance (0.25): alpha (+" in text
    assert "not clearly above chance (0.25): beta (" in text
    for name in ("cost", "differences", "loss", "inside", "needles"):
        assert f"](plots/{name}.png)" in text
        assert (out.parent / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("logs")
def test_the_other_way_round_the_difference_turns(synthetic: Write, tmp_path: Path) -> None:
    synthetic("alpha", 2.0, 0.6)
    synthetic("beta", 2.1, 0.26)
    _, out = report(tmp_path, "--runs", "beta", "alpha")
    assert "**Bits per byte**: beta - alpha +0.1" in out.read_text()


@pytest.mark.usefixtures("logs")
def test_nine_documents_claim_nothing(synthetic: Write, tmp_path: Path) -> None:
    for name, bits in (("alpha", 2.0), ("beta", 2.5)):
        path = synthetic(name, bits, 0.6)
        result = schema.load(path)
        task = result.tasks[0]
        items = replace(
            task.items,
            labels={"domain": task.items.labels["domain"][:9]},
            cluster=task.items.cluster[:9],
            weight=task.items.weight[:9],
            scores={key: values[:9] for key, values in task.items.scores.items()},
        )
        nine = replace(task, items=items, metrics=[*items.metrics(), *margins(items)])
        path.write_bytes(schema.sealed(replace(result, tasks=[nine])))
    _, out = report(tmp_path)
    text = out.read_text()
    assert re.search(r"alpha - beta -\d\.\d+ \(too few for an interval\), these weights, 9 documents", text)
    assert "**Unigram**" not in text
    row = next(
        line for line in text.split("## Differences")[1].splitlines() if line.startswith("| Bits per byte")
    )
    assert [cell.strip() for cell in row.split("|")[4:7]] == ["-", "9", "9"]


@pytest.mark.usefixtures("logs")
def test_same_numbers_same_bytes(synthetic: Write, tmp_path: Path) -> None:
    synthetic("alpha", 2.0, 0.6)
    _, out = report(tmp_path)
    before = {path.name: path.read_bytes() for path in out.parent.rglob("*.*")}
    report(tmp_path)
    assert before == {path.name: path.read_bytes() for path in out.parent.rglob("*.*")}
    assert set(before) == {
        "results.md",
        *(f"{n}.{k}" for n in ("cost", "inside", "loss", "needles") for k in ("png", "svg")),
    }
    assert all(b"Software" not in data for name, data in before.items() if name.endswith("png"))


def test_groups_are_named_as_people_read_them() -> None:
    named = {
        "depth=0.25": "depth 0.25",
        "domain=code": "code",
        "source=new": "new tokens",
        "length=64": "64 tokens",
    }
    assert {group: tables._group(group) for group in named} == named


@pytest.mark.usefixtures("logs")
def test_runs_over_other_items_are_not_compared(synthetic: Write, tmp_path: Path) -> None:
    synthetic("alpha", 2.0, 0.6)
    synthetic("beta", 2.1, 0.26, "other")
    synthetic("gamma", 2.2, 0.26)
    _, out = report(tmp_path)
    assert "not measured on the same items as beta" in out.read_text()


ROW = {"step": 1, "tokens": 10, "loss": 3.0, "tokens_per_s": 2.0}
# What a log holds instead: rows to be sealed, or a change of its text.
LOGS: dict[str, tuple[list[dict] | Callable[[str], str], str]] = {
    "torn": (
        lambda text: "\n".join(text.splitlines()[:2]) + "\n{torn",
        "log.jsonl, line 3: not a row of the trainer",
    ),
    "empty": (lambda text: "", "log.jsonl: empty; train first"),
    "digit": (
        lambda text: text.replace('"loss": 3.8', '"loss": 3.7'),
        "log.jsonl: was changed after it was written (its hash in",
    ),
    "gap": (
        lambda text: "".join(text.splitlines(keepends=True)[:3] + text.splitlines(keepends=True)[4:]),
        "log.jsonl: was changed after it was written (its hash in",
    ),
    "deep": (lambda text: "[" * 100_000, "log.jsonl, line 1: not a row of the trainer"),
    "still": ([ROW, {**ROW, "tokens": 20, "tokens_per_s": 0.0}], "line 2: tokens_per_s is 0, not above 0"),
    "nan": ([{**ROW, "loss": float("nan")}], "line 1: loss is nan: the run diverged there"),
    "text": ([{**ROW, "loss": "3"}], "line 1: not a row of the trainer: loss is no number"),
    "back": ([ROW, ROW], "line 2: tokens are 10.0, not more than before"),
}


@pytest.mark.usefixtures("logs")
@pytest.mark.parametrize("fault", LOGS)
def test_an_unfit_log_is_one_line_and_leaves_nothing(
    synthetic: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    synthetic("alpha", 2.0, 0.6)
    log, (change, message) = tmp_path / "runs" / "alpha" / "log.jsonl", LOGS[fault]
    if callable(change):
        log.write_text(change(log.read_text()))
    else:
        write_log(log, change)
    refused(report(tmp_path), capsys.readouterr().err, message)


@pytest.mark.usefixtures("logs")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("results", "results: no result files here; run `hope-eval run --json` first"),
        ("runs", "no results of run 'delta' among alpha; evaluate it first"),
        ("twice", "alpha.json is of a run of the same name; rename one of them"),
    ],
)
def test_unfit_input_is_one_line_and_leaves_nothing(
    synthetic: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    path, extra = synthetic("alpha", 2.0, 0.6), ["--runs", "delta"] if fault == "runs" else []
    if fault == "results":
        path.unlink()
    if fault == "twice":
        (tmp_path / "other").mkdir()
        shutil.copy(path, tmp_path / "other")
        extra = ["--results", str(tmp_path / "results"), str(tmp_path / "other")]
    refused(report(tmp_path, *extra), capsys.readouterr().err, message)


def refused(outcome: tuple[int, Path], said: str, message: str) -> None:
    assert outcome[0] == 2
    assert said.count("\n") == 1
    assert message in said
    assert not outcome[1].parent.exists()


def test_curve_by_hand(logs: Path) -> None:
    curve = training.load(logs / "alpha" / "log.jsonl")
    assert curve.run == "alpha"
    assert curve.seconds[:3] == [2.0, 4.0, 6.0]
    assert curve.validation == [(4096 * 40, 80.0, 3.1)]
    assert curve.tokens_per_s == 2048


def test_smoothing_keeps_a_constant_and_lags_a_step() -> None:
    assert plots.smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    stepped = plots.smooth([0.0] * 50 + [1.0] * 50)
    assert stepped[49] == 0
    assert stepped[50] == pytest.approx(0.2, abs=0.01)
    assert stepped[99] > 0.99


def test_notes_say_whose_they_are(synthetic: Write) -> None:
    named = []
    for run, notes in (("alpha", ["both", "one"]), ("beta", ["both"])):
        result = schema.load(synthetic(run, 2.0, 0.5))
        first, *others = result.tasks
        named.append((run, replace(result, tasks=[replace(first, notes=notes), *others])))
    assert _notes(named).splitlines() == ["Notes:", "", "- perplexity: both", "- perplexity: one (alpha)"]
    assert _notes(named[1:]).splitlines() == ["Notes:", "", "- perplexity: both"]


def of_seeds(tmp_path: Path, run: str, paths: list[Path]) -> None:
    """Result files as those of the run's seeds 0, 1, ..."""
    folder = tmp_path / "results" / run
    folder.mkdir()
    for seed, path in enumerate(paths):
        result = schema.load(path)
        seeded = replace(result, checkpoint=replace(result.checkpoint, seed=seed))
        (folder / f"{seed}.json").write_bytes(schema.sealed(seeded))
        path.unlink()


def test_seeds_decide_what_is_better_and_what_is_undecided(synthetic: Write, tmp_path: Path) -> None:
    of_seeds(tmp_path, "alpha", [synthetic(f"a{n}", bits, 0.6) for n, bits in enumerate((2.0, 2.01, 1.99))])
    of_seeds(tmp_path, "beta", [synthetic(f"b{n}", bits, 0.3) for n, bits in enumerate((2.1, 2.11, 2.09))])
    # On average as far from alpha as beta is, but its seeds differ by more.
    of_seeds(tmp_path, "gamma", [synthetic(f"c{n}", bits, 0.6) for n, bits in enumerate((2.0, 2.3, 2.0))])
    changes = tmp_path / "changes"
    changes.write_text("teach_scale: 0.15 (default 0.1)\nseeds: 0, 1 (default 0, 1, 2)\n")
    out, csv, metrics = (tmp_path / "reports" / name for name in ("results.md", "loss.csv", "metrics.json"))
    flags = ["--results", str(tmp_path / "results"), "--out", str(out), "--plots", str(tmp_path / "plots")]
    flags += ["--changes", str(changes), "--curves", str(csv), "--metrics", str(metrics)]
    assert main(["report", *flags]) == 0
    text = out.read_text()
    assert text.startswith(
        "# Results\n\n**What differs from the defaults**: teach_scale: 0.15 (default 0.1); "
        "seeds: 0, 1 (default 0, 1, 2).\n\n## At a glance\n\n| model "
    )
    [line] = [line for line in text.splitlines() if line.startswith("- **Bits per byte**")]
    said = re.findall(r"alpha - (\w+) (\S+) \[(\S+), (\S+)\], 3 seeds x 200 documents: ([\w ]+)[;.]", line)
    assert [(name, verdict) for name, *_, verdict in said] == [
        ("beta", "alpha better"),
        ("gamma", "undecided"),
    ]
    assert [float(value) for _, value, *_ in said] == pytest.approx([-0.1, -0.1], abs=0.01)
    numbers = json.loads(metrics.read_text())
    assert list(numbers) == ["alpha", "beta", "gamma", "alpha-beta", "alpha-gamma"]
    assert numbers["gamma"] - numbers["alpha"] == pytest.approx(0.1, abs=0.01)
    difference, half = map(float, numbers["alpha-gamma"].split(" ± "))
    assert difference == pytest.approx(-0.1, abs=0.01)
    # Seeds that differ by 0.3, give or take noise: half the interval is 4.30 standard errors of about 0.1.
    assert 0.38 < half < 0.46


def test_a_pooled_run_has_the_mean_of_its_seeds_and_one_line_for_unfit_ones(
    synthetic: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = schema.load(synthetic("one", 2.0, 0.6))
    two = schema.load(synthetic("two", 2.2, 0.4))
    first, second = (replace(r, checkpoint=replace(r.checkpoint, seed=n)) for n, r in enumerate((one, two)))
    pooled = pool("run", [first, second])
    for task in pooled.tasks:
        for metric in task.metrics:
            each = [r.task(task.task).find(metric.name, metric.group).value for r in (one, two)]  # type: ignore[union-attr]
            assert metric.value == pytest.approx(sum(each) / 2, abs=1e-5), metric
    assert pooled.checkpoint.seed is None
    bits = [r.task("perplexity").find("bits_per_byte") for r in (pooled, one)]  # type: ignore[union-attr]
    assert bits[0].stderr > bits[1].stderr  # seeds that differ by 0.2 add their own
    of_seeds(tmp_path, "alpha", [synthetic("a", 2.0, 0.6), synthetic("b", 2.0, 0.6, items="other")])
    for path in (tmp_path / "results").glob("*.json"):
        path.unlink()
    flags = [
        "--results",
        str(tmp_path / "results"),
        "--out",
        str(tmp_path / "x.md"),
        "--plots",
        str(tmp_path / "p"),
    ]
    assert main(["report", *flags]) == 2
    assert capsys.readouterr().err == (
        "error: run 'alpha', perplexity: seeds measured on different items; evaluate all again\n"
    )


def test_curves_of_seeds_go_by_their_run(tmp_path: Path) -> None:
    for run, seed in (("alpha", "0"), ("alpha", "10"), ("beta", "0")):
        folder = tmp_path / "runs" / run / "seeds" / seed
        folder.mkdir(parents=True)
        rows = [{"step": n, "tokens": 10 * n, "loss": 4.0, "tokens_per_s": 5.0} for n in (1, 2)]
        write_log(folder / "log.jsonl", rows)
    curves = [training.load(path) for path in training.find([tmp_path / "runs"])]
    assert [(c.run, c.seed) for c in curves] == [("alpha", "0"), ("alpha", "10"), ("beta", "0")]
    assert losses(curves[:1]) == "run,seed,tokens,loss\nalpha,0,10,4.0\nalpha,0,20,4.0\n"
