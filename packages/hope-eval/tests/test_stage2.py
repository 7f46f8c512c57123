"""The page of packs beside the paper's rows says what the files say."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hope_eval.cli import main


def _with_boolq(pack: dict, right: int, nats: float) -> None:
    """Adds two zero-shot tasks of 20 rows to a result file."""
    hits = [float(n < right) for n in range(20)]
    share, error = right / 20, (right * (20 - right) / 20**2 / 19) ** 0.5
    metric = {
        "name": "acc",
        "group": "all",
        "value": share,
        "stderr": error,
        "n": 20,
        "clusters": 20,
        "chance": 0.5,
    }
    items = {"labels": {}, "cluster": list(range(20)), "weight": [1.0] * 20, "scores": {"acc": hits}}
    task = {
        "task": "boolq",
        "version": 1,
        "settings": {},
        "seed": 0,
        "items_sha256": "b",
        "tokens": 9,
        "seconds": 1.0,
    }
    pack["tasks"].append({**task, "metrics": [metric], "items": items})
    scores = {"target_nats": [nats + n / 10 for n in range(20)]}
    last_word = {"task": "lambada_openai", "metrics": [], "items": {**items, "scores": scores}}
    pack["tasks"].append({**task, **last_word})


def test_tables_and_sentences(
    synthetic: Callable[..., Path], edited: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [synthetic("hope", 2.0, 0.7), synthetic("titans", 2.5, 0.5)]
    for path, right, nats in zip(paths, (20, 8), (3.0, 5.0), strict=True):
        edited(path, lambda pack, right=right, nats=nats: _with_boolq(pack, right, nats))
    (tmp_path / "train_hope.json").write_text(json.dumps({"tokens_per_s": 1234.4, "flops_per_token": 3.4e7}))
    measured = {"tokens_per_s": 9.0, "tokens": 9000, "step_seconds": 4.0, "flops_per_token": 1e7}
    (tmp_path / "train_titans.json").write_text(json.dumps(measured))
    out = tmp_path / "stage2.md"
    given = ["--packs", *paths, "--training", tmp_path, "--out", out]
    assert main(["stage2", *map(str, given)]) == 0
    page = out.read_text()
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in page.splitlines()
        if "|" in line
    }
    assert rows["HOPE, 760M / 30B"] == [
        "20.53",
        "20.47",
        "39.02",
        "70.13",
        "49.21",
        "52.70",
        "66.89",
        "36.05",
        "40.71",
        "63.29",
        "52.26",
    ]
    assert re.search(
        r"hope - titans, these weights: .*Bits per byte -0\.5\d\d \[-0\.5\d\d, -0\.4\d\d\] \(200\)", page
    )
    assert re.search(r"BoolQ \+0\.600 \[\+0\.[34]\d\d, \+0\.[78]\d\d\] \(20\)", page)
    assert "LAMBADA, nats of the last word -2.000 [-2.000, -2.000] (20)" in page
    assert not re.search(r"better|worse|no difference", page)
    assert "| hope " in page
    ours = next(line for line in page.splitlines() if line.startswith("| titans"))
    assert "40.0 ± 11.2" in ours
    assert ours.count("not run") == 9
    assert rows["chance"][9] == "50.0"
    assert rows["n"][9] == "20"
    assert " 1,234 |" in page
    assert " 2,250 |" in page
    assert "titans is more than three standard errors above chance at none of these tasks." in page


def test_no_pack_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage2", "--packs", str(tmp_path / "no.json"), "--out", str(tmp_path / "o.md")]) == 2
    assert "no.json" in capsys.readouterr().err
    assert not (tmp_path / "o.md").exists()
