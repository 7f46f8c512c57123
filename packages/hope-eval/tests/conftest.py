"""Two tiny corpora and an untrained HOPE, made once per session by the real steps; and results made by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hope_data.cli import main as hope_data
from hope_data.tokenizer import Tokenizer
from hope_eval import results as schema
from hope_eval.results import Checkpoint, Evaluator, Items, Results, TaskResult
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks.base import Context
from hope_eval.tasks.perplexity import margins
from hope_model import LanguageModel, ModelConfig, checkpoint

VOCABULARY = 320


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `shards/{left,right}` and `tokenizer`."""
    root = tmp_path_factory.mktemp("corpora")
    for name, seed in (("left", 1), ("right", 2)):
        with (root / f"{name}.jsonl").open("w") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in documents(seed, 90))
        manifest = {
            "kind": "jsonl",
            "content": "code",
            "files": [str(root / f"{name}.jsonl")],
            "holdout": 0.2,
        }
        (root / f"{name}.yaml").write_text(json.dumps(manifest))
        step("acquire", "--manifest", root / f"{name}.yaml", "--out", root / "raw" / name)
        step("filter", root / "raw" / name, "--out", root / "clean" / name)
    step("tokenizer", root / "clean", "--out", root / "tokenizer", "--vocab-size", VOCABULARY, "--threads", 1)
    for name in ("left", "right"):
        step(
            "shard", root / "clean" / name, "--tokenizer", root / "tokenizer", "--out", root / "shards" / name
        )
    return root


def documents(seed: int, count: int) -> list[str]:
    """Sentences of a small made-up language, of very different lengths."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aeioulmnrst", k=draw.randint(2, 6))) for _ in range(40)]
    return [
        "\n".join(
            " ".join(draw.choices(words, k=draw.randint(4, 9))) + "." for _ in range(draw.randint(8, 30))
        )
        for _ in range(count)
    ]


def step(*arguments: object) -> None:
    assert hope_data([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    """HOPE whose output differs visibly from token to token."""
    torch.manual_seed(0)
    values = {"vocab_size": VOCABULARY, "dim": 32, "layers": 2, "head_dim": 16, "init_std": 0.3}
    return LanguageModel(ModelConfig.from_dict({**values, "cms": {"smallest": 16, "levels": 2}})).eval()


@pytest.fixture(scope="session")
def checkpoint_folder(corpora: Path, model: LanguageModel) -> Path:
    folder = corpora / "runs" / "tiny" / "checkpoint"
    meta = {
        "run": "tiny",
        "seed": 7,
        "step": 3,
        "tokens": 96,
        "tokenizer_sha256": Tokenizer.load(corpora / "tokenizer").sha256,
        "config_sha256": "c" * 64,
        "revision": "d" * 40,
        "corpora": ["left", "right"],
    }
    checkpoint.save(folder, model, meta)
    return folder


@pytest.fixture
def context(corpora: Path, model: LanguageModel) -> Callable[..., Context]:
    """Builds a context; keywords replace its fields, `batch_tokens` the scorer's."""

    def build(batch_tokens: int = 512, **changes: object) -> Context:
        fields: dict[str, object] = {
            "scorer": Scorer(model, batch_tokens=batch_tokens),
            "tokenizer": Tokenizer.load(corpora / "tokenizer"),
            "domains": {name: corpora / "shards" / name for name in ("left", "right")},
            "length": 64,
            "limit": None,
            "seed": 0,
        }
        return Context(**{**fields, **changes})  # type: ignore[arg-type]

    return build


@pytest.fixture
def synthetic(tmp_path: Path) -> Callable[..., Path]:
    """Writes a result file with chosen bits per byte and accuracies over 200 documents and items."""

    def write(name: str, bits: float, accuracy: float, items: str = "same") -> Path:
        draw = random.Random(f"{name}{bits}")
        tasks = [
            _perplexity(draw, bits, items),
            _choice(draw, accuracy, items),
            _passkey(draw, accuracy, items),
        ]
        result = Results(
            schema=schema.SCHEMA,
            checkpoint=Checkpoint(
                name, "hope", 1234567, 3, 250, 1024000, "a" * 64, "b" * 64, "c" * 64, "d" * 40
            ),
            evaluator=Evaluator("e" * 40, "0.1.0", "2.13", "cpu", 1),
            tasks=tasks,
            seconds=1.5,
        )
        path = tmp_path / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(schema.sealed(result))
        return path

    return write


@pytest.fixture
def edited() -> Callable[..., Path]:
    """Changes a result file, and seals it again as one would who wants to deceive."""

    def change(path: Path, edit: Callable[[dict], object]) -> Path:
        record = json.loads(path.read_text())
        record.pop("seal")
        edit(record)
        path.write_bytes(schema.sealed(record))
        return path

    return change


def _task(name: str, items: Items, fingerprint: str, chance: dict[str, float] | None = None) -> TaskResult:
    return TaskResult(name, 1, {}, 0, fingerprint, 100, 0.5, items.metrics(chance), items)


def _perplexity(draw: random.Random, bits: float, fingerprint: str) -> TaskResult:
    sizes = [float(random.Random(n).randint(50, 500)) for n in range(200)]
    scores = {
        # Documents differ far more from each other than runs do on the same document.
        "bits_per_byte": [
            s * (bits + random.Random(n).gauss(0, 0.5) + draw.gauss(0, 0.02)) for n, s in enumerate(sizes)
        ],
        "unigram_bits_per_byte": [4.0 * s for s in sizes],
    }
    labels = {"domain": ["code"] * 120 + ["prose"] * 80}
    rounded = {name: schema.rounded(values) for name, values in scores.items()}
    items = Items(labels, list(range(200)), sizes, rounded)
    result = _task("perplexity", items, fingerprint)
    return replace(result, metrics=[*result.metrics, *margins(items)])


def _choice(draw: random.Random, accuracy: float, fingerprint: str) -> TaskResult:
    hits = [float(draw.random() < accuracy) for _ in range(200)]
    items = Items(
        {"domain": ["code"] * 100 + ["prose"] * 100},
        [n // 2 for n in range(200)],
        [1.0] * 200,
        {"choice_accuracy": hits, "choice_likelihood": hits[::-1]},
    )
    return _task("choice", items, fingerprint, dict.fromkeys(items.scores, 0.25))


def _passkey(draw: random.Random, accuracy: float, fingerprint: str) -> TaskResult:
    hits = [float(draw.random() < accuracy) for _ in range(60)]
    items = Items(
        {"length": ["256", "512", "1024"] * 20, "depth": ["0"] * 30 + ["1"] * 30},
        list(range(60)),
        [1.0] * 60,
        {"passkey_choice": hits, "passkey_exact": [0.0] * 60},
    )
    return _task("passkey", items, fingerprint, {"passkey_choice": 0.1, "passkey_exact": 1e-5})
