"""Real rows of five tasks: our harness against lm-eval's own `hf` model; batches and shared prefixes change nothing."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if any(importlib.util.find_spec(name) is None for name in ("lm_eval", "transformers")):
    pytest.skip("lm-eval is not installed: pip install 'hope-eval[lm-eval]'", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))
import hf_models
from hf_models import assert_same, samples

from hope_eval.lm_eval_bridge import mirror
from hope_eval.lm_eval_bridge.model import HopeLM

ROWS = Path(__file__).parents[4] / "shared" / "data" / "eval"
if not ROWS.is_dir():
    pytest.skip(f"no rows of the original data sets in {ROWS}", allow_module_level=True)
TASKS = ("piqa", "arc_easy", "boolq", "hellaswag", "lambada_openai")
N = int(os.environ.get("HOPE_ROWS", "8"))  # of each task; 40 takes half a minute a model


@pytest.fixture(scope="module")
def loaded() -> Any:
    return hf_models.load_tasks(ROWS, TASKS, N)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_equal_to_lm_evals_hf_model(kind: str, loaded: Any, tmp_path: Path) -> None:
    texts = [str(row) for task in TASKS for row in mirror.rows(ROWS, task)[:100]]
    folder = hf_models.save_model(tmp_path, kind, texts, vocab=2000, init=0.08, length=2048)
    # In float32 lm-eval's sum over the longest row of PIQA, 1,182 nats, is itself rounded to 1.2e-4.
    theirs = samples(hf_models.hf_lm(folder, 8, "float64"), loaded)
    worst = {"hf": assert_same(samples(HopeLM(folder), loaded), theirs)}
    for batch, share in ((1, True), (16, True), (16, False)):
        ours = samples(HopeLM(folder, batch_size=batch, share=share), loaded)
        worst[f"batch {batch}{' shared' if share else ''}"] = assert_same(ours, theirs)
    sys.stdout.write(f"{kind}: largest deviations {worst}\n")
    for task in TASKS:
        assert len(theirs[task]) == N
        hits = [row["acc"] for row in theirs[task]]
        # Rows must be told apart, or equality would say nothing.
        assert task == "lambada_openai" or 0 < np.mean(hits) < 1
