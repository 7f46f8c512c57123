"""Forgetting and transfer by hand, streams that are learned, classes by label scoring, memorisation in pairs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hope_data.errors import InputError
from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.results import Items
from hope_eval.scoring import memorize
from hope_eval.scoring.load import HopeModel, load
from hope_eval.scoring.memorize import Memorize
from hope_eval.scoring.paired import both
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks import choice, class_data, continual, learning, perplexity
from hope_eval.tasks.base import Context
from hope_model import LanguageModel, MemorySettings

Build = Callable[..., Context]


def test_forgetting_and_transfer_by_hand() -> None:
    losses = np.array([[5.0, 6.0, 7.0], [2.0, 5.5, 6.5], [2.5, 3.0, 6.0], [3.0, 2.8, 4.0]])
    found = continual.transfer(losses, lower_is_better=True)
    # Domain 0: best 2.0, last 3.0; domain 1: best and last 2.8.
    assert found.forgetting == pytest.approx((1.0 + 0.0) / 2)
    # After its own stage minus last: 2 - 3 and 3 - 2.8.
    assert found.backward == pytest.approx((-1.0 + 0.2) / 2)
    # Before anything minus just before its own stage: 6 - 5.5 and 7 - 6.
    assert found.forward == pytest.approx((0.5 + 1.0) / 2)
    mirrored = continual.transfer(-losses, lower_is_better=False)
    assert mirrored == found
    with pytest.raises(ValueError, match="must be"):
        continual.transfer(losses[:3], lower_is_better=True)


def test_errors_of_forgetting_are_those_of_its_documents() -> None:
    """Two domains; documents of the first are forgotten by 1 ± spread, so the error is spread / sqrt(n)."""
    rng = np.random.default_rng(0)
    n, spread = 400, 0.5
    after, last = np.zeros(n), 1 + rng.normal(0, spread, n)
    scores = np.concatenate([np.zeros(2 * n), after, np.zeros(n), last, np.zeros(n)])
    stages, names = [str(i) for i in range(3) for _ in range(2 * n)], (["a"] * n + ["b"] * n) * 3
    items = Items(
        {"domain": names, "stage": stages},
        list(range(2 * n)) * 3,
        [1.0] * 6 * n,
        {"bits_per_byte": scores.tolist()},
    )
    found = continual.transfer_errors(items, "bits_per_byte", ["a", "b"], lower_is_better=True)
    assert found is not None
    assert found.forgetting == pytest.approx(spread / n**0.5, rel=0.15)
    assert found.backward == pytest.approx(spread / n**0.5, rel=0.15)
    assert found.forward == 0.0


def flags(checkpoint: Path, out: Path) -> list[str]:
    return [
        "--checkpoint",
        str(checkpoint),
        "--tokenizer",
        str(checkpoint.parents[2] / "tokenizer"),
        "--json",
        str(out),
    ]


@pytest.mark.parametrize("how", ["memorize", "train"])
def test_a_stream_is_learned_and_the_model_left_alone(
    how: str, corpora: Path, checkpoint_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stream.json"
    extra = [
        "--shards",
        str(corpora / "shards"),
        "--learn",
        how,
        "--tokens",
        "1500",
        "--held-out",
        "300",
        "--lr",
        "1e-3",
    ]
    assert main(["continual", *flags(checkpoint_folder, out), *extra]) == 0
    [task] = schema.load(out).tasks
    assert task.task == f"continual_stream_{how}"
    R = continual.matrix(task.metrics, "bits_per_byte", ["left", "right"])
    assert R.shape == (3, 2)
    found = continual.transfer(R, lower_is_better=True)
    for name, value in (
        ("forgetting", found.forgetting),
        ("backward_transfer", found.backward),
        ("forward_transfer", found.forward),
    ):
        metric = task.find(name)
        assert metric is not None
        assert metric.value == pytest.approx(value)
    assert not np.allclose(R[0], R[1])
    if how == "train":
        assert R[1, 0] < R[0, 0] - 0.2
    fresh = load(checkpoint_folder, corpora / "tokenizer")
    scorer = Scorer(fresh.model)
    row = np.arange(2, 90)
    before = scorer.token_logp([row])[0]
    learner = learning.Learner(scorer, learning.Learning(how, lr=1e-2))
    learner.learn(row)
    assert learner.nats(row) != pytest.approx(-before.sum(), abs=1e-3)
    np.testing.assert_array_equal(scorer.token_logp([row])[0], before)


def clinc(folder: Path) -> Path:
    groups = {"money": ["pay_bill", "balance"], "travel": ["book_flight", "visa"], "home": ["lights"]}
    labels = [label for found in groups.values() for label in found]
    data = {
        split: [[f"{label} {n} {split}", label] for label in labels for n in range(3)]
        for split in ("train", "test")
    }
    folder.mkdir()
    with gzip.open(folder / "data_full.json.gz", "wt") as file:
        json.dump(data, file)
    (folder / "domains.json").write_text(json.dumps(groups))
    return folder


def test_classes_are_picked_among_those_met(checkpoint_folder: Path, corpora: Path, tmp_path: Path) -> None:
    folder, out = clinc(tmp_path / "clinc"), tmp_path / "classes.json"
    extra = ["--classes", "clinc150", "--data", str(folder), "--shots", "2", "--questions", "2"]
    assert main(["continual", *flags(checkpoint_folder, out), *extra]) == 0
    [task] = schema.load(out).tasks
    first, third, last = (
        task.find("label_accuracy", f"cell={cell}") for cell in ("1>money", "1>home", "3>home")
    )
    assert first is not None
    assert third is not None
    assert last is not None
    # Two classes met after the first group; five in all, and for groups not met yet.
    assert (first.chance, third.chance, last.chance) == (0.5, 0.2, 0.2)
    assert (first.n, last.n) == (4, 2)
    assert main(["continual", *flags(checkpoint_folder, out), *extra, "--learn", "each"]) == 0
    ways = [task.task.removeprefix("continual_classes_") for task in schema.load(out).tasks]
    assert ways == ["memorize+off", "memorize+on", "cms", "train", "replay", "ewc"]


def test_labels_are_scored_as_whole_sequences(checkpoint_folder: Path, corpora: Path) -> None:
    loaded = load(checkpoint_folder, corpora / "tokenizer")
    scorer = Scorer(loaded.model)
    prompt = np.arange(2, 40)
    fork = scorer.prefill_from(prompt[None], None)
    labels = [[5], [6, 7], [8, 9], [10, 11, 12]]
    found = scorer.labels(fork, labels)
    for label, score in zip(labels, found, strict=True):
        whole = scorer.token_logp([np.concatenate((prompt, label))])[0]
        assert score == pytest.approx(whole[-len(label) :].mean(), abs=1e-4)


def test_class_files_are_drawn_by_seed(tmp_path: Path) -> None:
    folder = clinc(tmp_path / "clinc")
    a, b, c = (class_data.load("clinc150", folder, 2, 1, seed) for seed in (0, 0, 1))
    assert a == b
    assert a != c
    assert a[0].labels == ["pay bill", "balance"]
    assert {label for _, label in a[0].learn} == {"pay bill", "balance"}
    assert not {text for text, _ in a[0].learn} & {text for text, _ in a[0].ask}
    bank = tmp_path / "bank"
    bank.mkdir()
    for split in ("train", "test"):
        lines = "".join(f'"text, {n}",intent_{n % 12:02d}\n' for n in range(24))
        (bank / f"{split}.csv").write_text("text,category\n" + lines)
    groups = class_data.load("banking77", bank, 1, 1)
    assert [len(group.labels) for group in groups] == [11, 1]
    with pytest.raises(InputError, match="choose among clinc150"):
        class_data.load("other", folder, 1, 1)
    with pytest.raises(InputError, match=r"data_full.json: no such file"):
        class_data.load("clinc150", bank, 1, 1)


def test_memorising_runs_both_and_pairs_them(context: Build, model: LanguageModel) -> None:
    whole = context()
    settings = choice.Settings(items=24, prefix=48, continuation=8)
    runs = lambda scorer: [choice.run(context(scorer=scorer), settings)]  # noqa: E731
    tasks, differences = both(whole.scorer, Memorize(), runs)
    off, on = tasks
    assert (off.task, on.task) == ("choice+off", "choice+on")
    assert off.settings["memorize"] == "off"
    assert on.settings["memorize_steps"] == 1
    a, b = np.array(on.items.scores["choice_accuracy"]), np.array(off.items.scores["choice_accuracy"])
    row = next(r for r in differences if (r.metric, r.group) == ("choice_accuracy", "all"))
    assert row.difference == pytest.approx(a.mean() - b.mean())
    assert (row.written, row.frozen, row.n) == (pytest.approx(a.mean()), pytest.approx(b.mean()), 24)
    # As trained is the same as memories written once, by all paths.
    assert choice.run(whole, settings).items.scores == on.items.scores


def test_the_oracle_is_named_and_wins(context: Build) -> None:
    settings = choice.Settings(items=40, prefix=33, continuation=16)
    runs = lambda scorer: [choice.run(context(scorer=scorer), settings)]  # noqa: E731
    tasks, differences = both(context().scorer, Memorize(oracle=True), runs)
    assert tasks[1].task == "choice+oracle"
    assert tasks[1].settings["memorize"] == "oracle"
    assert {row.mode for row in differences} == {"oracle"}


@pytest.mark.parametrize(
    "changed",
    [
        Memorize(steps=2),
        Memorize(paths=("titans",)),
        Memorize(threshold=1e9),
        Memorize(teach_scale=1.0),
        Memorize(carry=True),
    ],
)
def test_every_switch_changes_what_is_written(changed: Memorize, model: LanguageModel) -> None:
    """Log-likelihoods after a context of several segments, against memories written as trained."""
    prompts = np.random.default_rng(0).integers(2, 320, (3, 80))
    answers = np.random.default_rng(1).integers(2, 320, (3, 1, 6))

    def scored(how: Memorize | None) -> np.ndarray:
        wrapped = HopeModel(model)
        scorer = Scorer(wrapped)
        if how:
            wrapped.settings, scorer.memorize = memorize.settings_on(wrapped, how), how
        rows = [scorer.candidates(scorer.prefill(prompts[b : b + 1]), answers[b : b + 1]) for b in range(3)]
        return np.concatenate(rows).ravel()

    assert np.abs(scored(changed) - scored(Memorize())).max() > 1e-4
    np.testing.assert_array_equal(scored(Memorize()), scored(None))


def test_frozen_means_frozen(model: LanguageModel) -> None:
    """What stands before the convolutions' reach can then not be remembered; written memories do remember it."""
    tokens = torch.arange(2, 82)[None]
    other = tokens.clone()
    other[0, :10] += 100

    def moved(settings: MemorySettings | None) -> float:
        wrapped = HopeModel(model, settings=settings)
        with torch.no_grad():
            return float((wrapped(tokens, None)[0][0, -1] - wrapped(other, None)[0][0, -1]).abs().max())

    assert moved(MemorySettings(0.0, 1.0, 0.0, ())) == 0.0
    assert moved(None) > 1e-3


def test_perplexity_refuses_to_read_twice(context: Build) -> None:
    whole = context()
    whole.scorer.memorize = Memorize(steps=2)
    with pytest.raises(InputError, match="more than one reading would show what is scored"):
        perplexity.run(whole, perplexity.Settings(tokens=100))


def test_run_with_memorize_writes_the_pair(corpora: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    folders = [
        "--shards",
        str(corpora / "shards"),
        "--tasks",
        "perplexity,choice",
        "--limit",
        "4",
        "--length",
        "48",
    ]
    assert main(["run", *flags(checkpoint_folder, out), *folders, "--memorize"]) == 0
    result = schema.load(out)
    names = ["perplexity", "perplexity_position", "perplexity_target", "choice"]
    modes = [f"{name}+{mode}" for mode in ("off", "on") for name in names]
    assert [task.task for task in result.tasks] == modes
    assert {row.metric for row in result.memorized} >= {"bits_per_byte", "choice_accuracy"}
    assert all(row.stderr is not None for row in result.memorized if row.group == "all")


def test_a_stream_is_memorised_or_not_in_pairs(
    corpora: Path, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stream.json"
    sizes = ["--shards", str(corpora / "shards"), "--tokens", "400", "--held-out", "200"]
    assert main(["continual", *flags(checkpoint_folder, out), *sizes, "--memorize-steps", "2"]) == 0
    result = schema.load(out)
    assert [task.task for task in result.tasks] == [
        "continual_stream_memorize+off",
        "continual_stream_memorize+on",
    ]
    off, on = result.tasks
    assert on.settings["memorize_steps"] == 2
    # Frozen memories keep nothing of a stream but what stands in the convolutions' reach.
    R = continual.matrix(off.metrics, "bits_per_byte", ["left", "right"])
    written = continual.matrix(on.metrics, "bits_per_byte", ["left", "right"])
    assert np.ptp(R, axis=0).max() < 0.5 * np.ptp(written, axis=0).max()
    row = next(row for row in result.memorized if row.group == "cell=2>left")
    assert row.difference == pytest.approx(written[2, 0] - R[2, 0], abs=1e-5)
    assert next(row for row in result.memorized if row.group == "all").stderr is not None
    for wrong in (["--memorize-oracle"], ["--learn", "train", "--memorize"]):
        assert main(["continual", *flags(checkpoint_folder, out), *sizes, *wrong]) == 2
    assert capsys.readouterr().err.count("leave out --memorize") == 2


def test_each_way_of_learning_in_one_file(
    corpora: Path, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "each.json"
    sizes = ["--shards", str(corpora / "shards"), "--tokens", "300", "--held-out", "100", "--learn", "each"]
    common = ["continual", *flags(checkpoint_folder, out), *sizes]
    assert main([*common, "--corpora", "right,left"]) == 0
    tasks = {task.task.removeprefix("continual_stream_"): task for task in schema.load(out).tasks}
    assert list(tasks) == ["memorize+off", "memorize+on", "cms", "train", "replay", "ewc"]
    assert tasks["memorize+on"].settings["memory_bytes"] == tasks["replay"].settings["memory_bytes"] > 0
    for task in tasks.values():
        assert list(dict.fromkeys(task.items.labels["domain"])) == ["right", "left"]
    found = [continual.matrix(task.metrics, "bits_per_byte", ["right", "left"]) for task in tasks.values()]
    for R in found[2:]:
        np.testing.assert_allclose(R[0], found[1][0], atol=1e-4)
    # Nothing has been learned yet; frozen memories read otherwise than those that a text writes.
    assert not np.allclose(found[0][2], found[1][2], atol=1e-3)
    assert main([*common, "--memorize"]) == 2
    assert main([*common, "--corpora", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert "--learn each" in said
    assert "no shards of corpus nowhere" in said
