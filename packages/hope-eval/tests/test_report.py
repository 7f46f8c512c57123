"""The page says what the numbers say, and the pictures are the same for the same numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.report import _notes, plots, training

Write = Callable[..., Path]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for run, final in (("alpha", 3.0), ("beta", 4.0)):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        rows = [
            {"step": n, "tokens": 4096 * n, "loss": final + 4 / n, "tokens_per_s": 2048.0}
            for n in range(1, 41)
        ]
        rows[-1]["val_loss"] = final + 0.1
        for row in rows:
            row |= {
                "grad_norm": 2.0 / row["step"],
                "eta": 0.05,
                "gate_hit_rate_0": 1.0,
                "gate_hit_rate_1": 0.5,
            }
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "runs"


def report(tmp_path: Path, *extra: str) -> tuple[int, Path]:
    out = tmp_path / "reports" / "results.md"
    flags = ["--results", str(tmp_path / "results"), "--logs", str(tmp_path / "runs")]
    return main(["report", *flags, "--out", str(out), "--plots", str(out.parent / "plots"), *extra]), out


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
    assert "| 1,234,567 | 1,024,000 | 250 | 2,048 | 80 | 3 | dddddddddddd |" in squeezed
    assert "**Bits per byte** (95 %, paired): alpha is better than beta (-0.1" in text
    assert "**Continuation choice** (95 %, paired): alpha is better than beta (" in text
    assert (
        "**Passkey by greedy generation** (95 %, paired): alpha is not distinguishable from beta (0.000"
        in text
    )
    assert "every run beats it on every domain by more than three standard errors" in text
    assert "above chance (0.25): alpha (+" in text
    assert "not clearly above chance (0.25): beta (" in text
    for name in ("loss", "inside", "perplexity", "choice", "passkey"):
        assert f"](plots/{name}.png)" in text
        assert (out.parent / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("logs")
def test_the_other_way_round_the_verdict_turns(synthetic: Write, tmp_path: Path) -> None:
    synthetic("alpha", 2.0, 0.6)
    synthetic("beta", 2.1, 0.26)
    _, out = report(tmp_path, "--runs", "beta", "alpha")
    assert "**Bits per byte** (95 %, paired): beta is worse than alpha (0.1" in out.read_text()


@pytest.mark.usefixtures("logs")
def test_same_numbers_same_bytes(synthetic: Write, tmp_path: Path) -> None:
    synthetic("alpha", 2.0, 0.6)
    _, out = report(tmp_path)
    before = {path.name: path.read_bytes() for path in out.parent.rglob("*.*")}
    report(tmp_path)
    assert before == {path.name: path.read_bytes() for path in out.parent.rglob("*.*")}
    assert len(before) == 6
    assert all(b"Software" not in data for name, data in before.items() if name.endswith("png"))


@pytest.mark.usefixtures("logs")
def test_runs_over_other_items_are_not_compared(synthetic: Write, tmp_path: Path) -> None:
    synthetic("alpha", 2.0, 0.6)
    synthetic("beta", 2.1, 0.26, "other")
    synthetic("gamma", 2.2, 0.26)
    _, out = report(tmp_path)
    assert "not measured on the same items as beta" in out.read_text()


@pytest.mark.usefixtures("logs")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("results", "results: no result files here; run `hope-eval run --json` first"),
        ("runs", "no results of run 'delta' among alpha; evaluate it first"),
        ("log", "log.jsonl, line 3: not a row of the trainer"),
        ("empty", "log.jsonl: empty; train first"),
    ],
)
def test_unfit_input_is_one_line_and_leaves_nothing(
    synthetic: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    path, log = synthetic("alpha", 2.0, 0.6), tmp_path / "runs" / "alpha" / "log.jsonl"
    if fault == "results":
        path.unlink()
    if fault == "log":
        log.write_text("\n".join(log.read_text().splitlines()[:2]) + "\n{torn")
    if fault == "empty":
        log.write_text("")
    status, out = report(tmp_path, *(("--runs", "delta") if fault == "runs" else ()))
    assert status == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert not out.parent.exists()


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
