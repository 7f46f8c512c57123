"""Pages of studies that learn one domain after another."""

import dataclasses
from pathlib import Path

from cases import SEEDS, Case, diverged

from hope_study.records import Value
from hope_study.report import outputs, plots
from hope_study.report.page import overview


def streamed(way: str, last: float, forgetting: float) -> list[Value]:
    """R of two domains: 3 before, 2 after their own stage, `last` at the end."""
    R = {"0>a": 3.0, "0>b": 3.0, "1>a": 2.0, "1>b": 3.0, "2>a": last, "2>b": 2.0}
    rows = [("bits_per_byte", f"{way} {cell}", v) for cell, v in R.items()]
    rows += [("forgetting", way, forgetting), ("backward_transfer", way, 0.0), ("forward_transfer", way, 0.0)]
    return [Value(name, 32, 5, value, 0.1, None, group) for name, group, value in rows]


def test_a_stream_is_judged_by_way_of_learning(tmp_path: Path) -> None:
    stream = {"domains": ["a", "b"], "tokens": 10, "held_out": 5, "lr": 0.1}
    case = Case(tmp_path, {"hope": [{32: 0.0}] * 3, "other": [{32: 0.0}] * 3}, "bits_per_byte", stream=stream)
    for arm, ways in {"hope": ("memorize+off", "memorize+on", "train"), "other": ("train",)}.items():
        for seed in SEEDS:
            lost = {"memorize+off": 0.6, "memorize+on": 0.4, "train": 0.2 if arm == "hope" else 0.5}
            rows = [v for w in ways for v in streamed(w, 2 + lost[w] + seed / 100, lost[w] + seed / 100)]
            case.change(arm, f"rate1-seed{seed}", metrics=rows)
    whole = case.store.records("tiny")["other", "rate1-seed2"]
    case.store.add(diverged(whole))
    assert "`other` (by training) against `hope` (by training): not decided in bits/byte" in case.page()
    case.store.add(whole)
    text = case.page()
    # The last row is (2 + lost, 2): its mean changes by half of what is forgotten.
    assert "memories written against frozen: better in bits/byte at the end (-0.1000, 95 %" in text
    # Before it is 3, whatever came.
    assert "; better in change (-0.1000, 95 %" in text
    assert (
        "`other` (by training) against `hope` (by training): worse in bits/byte at the end (+0.1500" in text
    )
    assert "worse in average forgetting (+0.3000" in text
    row = "3.000 ± 0.000 | 2.305 ± 0.003 | -0.695 ± 0.003 | 1.000 ± 0.000 | 0.610 ± 0.006"
    assert f"| hope | memories frozen | 0.01 | 3 | {row} |" in text
    results = case.results()
    assert "other: worse by training (+0.150, worse in change)" in overview([results], Path("studies"))
    assert outputs.metrics(results)["tiny"]["hope memorize+on"] == {"mean": 2.205, "stderr": 0.0029, "n": 3}
    assert plots.draw(results, tmp_path / "tiny.png")


def test_a_stream_of_classes_is_judged_by_accuracy(tmp_path: Path) -> None:
    stream = {"domains": ["a", "b"], "classes": "clinc150", "data": "here"}
    case = Case(
        tmp_path, {"hope": [{32: 0.0}] * 3, "other": [{32: 0.0}] * 3}, "label_accuracy", stream=stream
    )

    def pages(share: float) -> str:
        for arm, last in {"hope": 0.6, "other": 0.2}.items():
            for seed in SEEDS:
                found = streamed("replay", last + seed / 100, 0.8 - last)
                kept = [dataclasses.replace(v, value=share * v.value, chance=0.25) for v in found]
                kept = [
                    dataclasses.replace(v, name=v.name.replace("bits_per_byte", "label_accuracy"))
                    for v in kept
                ]
                case.change(arm, f"rate1-seed{seed}", metrics=kept)
        return case.page()

    text = pages(1.0)
    both = "`other` (by training with replay) against `hope` (by training with replay)"
    assert f"{both}: worse in accuracy at the end (-0.2000, 95 %" in text
    assert "worse in average forgetting (+0.4000" in text
    assert "| hope | by training with replay | 0.01 | 3 | 3.000 ± 0.000 | 1.305 ± 0.003 | -1.695" in text
    assert "| -1.695 ± 0.003 | -1.000 ± 0.000 | 0.200 ± 0.000 |" in text
    assert "n 5 to 5 questions of each. Guessing among the classes met at the end: 0.250." in text
    assert "bits/byte" not in text
    guessing = (
        "- Every arm guesses (at most 0.131 right at the end, chance 0.250): nothing can be told apart."
    )
    assert guessing in pages(0.1)
