"""The report's first screen: models and baselines with costs, looks of models, values that points say."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_reports import logs, report

from hope_data.files import dump_sealed
from hope_eval import results as schema
from hope_eval.report import looks
from hope_eval.results import Items

Write = Callable[..., Path]
__all__ = ["logs"]  # a fixture


def adapted(path: Path, name: str, saved: float) -> None:
    """Adds the same task read with an adaptation that saves so many bits per byte of repeated tokens."""
    result = schema.load(path)
    task = result.tasks[0]
    half = [weight / 2 for weight in task.items.weight]
    parts = []
    for gain, suffix in ((0.0, ""), (saved, f"+{name}")):
        bits = task.items.scores["bits_per_byte"]
        whole = [b - gain * w for b, w in zip(bits, half, strict=True)]
        new, old = [b / 2 for b in bits], [b / 2 - gain * w for b, w in zip(bits, half, strict=True)]
        source = Items(
            {"source": ["new"] * len(half) + ["repeated"] * len(half)},
            [*task.items.cluster, *task.items.cluster],
            [*half, *half],
            {"bits_per_byte": schema.rounded([*new, *old])},
        )
        items = replace(task.items, scores={"bits_per_byte": schema.rounded(whole)})
        parts.append(replace(task, task=f"perplexity_source{suffix}", items=source, metrics=source.metrics()))
        if suffix:
            parts.append(replace(task, task=f"perplexity{suffix}", items=items, metrics=items.metrics()))
    path.write_bytes(schema.sealed(replace(result, tasks=[*result.tasks, *parts])))


def test_the_first_table_has_models_and_baselines_with_costs(
    synthetic: Write, logs: Path, tmp_path: Path
) -> None:
    for run, bits in (("alpha", 2.0), ("beta", 2.1)):
        adapted(synthetic(run, bits, 0.5), "neural_cache", 0.4)
        sidecar = logs / run / "checkpoint" / "training.json"
        numbers = {"step": 40, "metrics": {"flops_per_token": 3e9, "tokens": 1000, "step_seconds": 77.0}}
        log = json.loads(sidecar.read_text())["log"]
        sidecar.write_bytes(dump_sealed({"progress": numbers, "log": log}))
    _, out = report(tmp_path, "--metrics", str(tmp_path / "metrics.json"))
    table = [
        line.split("|")[1:-1] for line in out.read_text().split("## ")[1].splitlines() if line[:1] == "|"
    ]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in table[2:]}
    assert list(rows) == ["alpha", "alpha + neural cache", "beta", "beta + neural cache"]
    plain, cached = rows["alpha"], rows["alpha + neural cache"]
    values = [[float(cell.split(" ")[0]) for cell in row[1:4]] for row in (plain, cached)]
    assert values[0] == pytest.approx([2.0] * 3, abs=0.1)
    # Half of the bytes are repeated tokens, of which each saves 0.4 bits.
    assert [a - b for a, b in zip(*values, strict=True)] == pytest.approx([0.2, 0.0, 0.4], abs=2e-3)
    assert (plain[0], *plain[4:]) == ("1.23 M", "3.0", "77", "5.00")  # 3e9 x 1000 FLOP, 0.5 s for 100 tokens
    low, high = map(float, re.findall(r"\d+\.\d+", plain[1])[1:])
    assert low < values[0][0] < high
    text = out.read_text()
    said = re.search(r"alpha - beta \S* neural cache (\S+) \[", text)
    assert said
    assert float(said[1]) == pytest.approx(0.1, abs=0.01)  # 2.0 - (2.1 - 0.2)
    assert "| Bits per byte, repeated tokens | beta + neural cache |" in " ".join(text.split())
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["alpha", "beta", "alpha-beta"]


def test_looks_are_of_models_wherever_they_stand_and_dark_enough() -> None:
    few, many = looks.looks(["titans", "mine"]), looks.looks(["hope", "mine", "other", "titans"])
    assert few["titans"] == many["titans"] == (looks.COLOURS[1], "s")
    assert len(set(many.values())) == 4
    shown = looks.Looks(["hope", "titans + writes", "titans + neural cache"])
    assert shown.of("titans + writes")["color"] == shown.of("titans")["color"]
    assert (
        len(
            {shown.of(title)["fillstyle"] for title in ("titans", "titans + writes", "titans + neural cache")}
        )
        == 3
    )
    for colour in looks.COLOURS:  # W3C's contrast of graphics, 3:1 against white
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert 1.05 / (luminance + 0.05) >= 3, colour


@pytest.mark.usefixtures("logs")
def test_panels_that_do_not_change_are_left_out_and_points_say_their_values(
    synthetic: Write, tmp_path: Path
) -> None:
    for run, bits in (("alpha", 2.0), ("beta", 2.1)):
        synthetic(run, bits, 0.5)
    _, out = report(tmp_path)
    svg = {path.stem: path.read_text() for path in (out.parent / "plots").glob("*.svg")}
    # Gates and learning rates of these logs are the same in every row, and no passkey was written out.
    assert "Gradient norm" in svg["inside"]
    assert "Gate hit rate" not in svg["inside"]
    assert "inner learning rate" not in svg["inside"]
    assert "greedy" not in svg["differences"]
    bits = schema.load(tmp_path / "results" / "alpha.json").tasks[0].find("bits_per_byte")
    assert bits is not None
    assert f"<title>alpha: {bits.value:.3f} [" in svg["cost"]
    assert "<title>alpha, passkey: 0, 256: " in svg["needles"]
    assert not re.search(r"<svg [^>]*(http|date)[^>]*\d{4}-", svg["cost"])
