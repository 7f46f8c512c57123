"""Small transformers models with random weights and a tokenizer trained on the spot, and rows of tasks made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = Path(__file__).with_name("words.txt").read_text().split()


def save_model(
    folder: Path, kind: str, texts: list[str], vocab: int = 600, *, init: float = 0.15, **sizes: int
) -> Path:
    """A causal model of transformers with weights drawn large enough that answers differ."""
    import transformers

    shape = {"dim": 48, "layers": 2, "heads": 4, "length": 512, **sizes}
    tokenizer = tokenizer_of(texts, vocab)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config: Any
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=shape["dim"],
            n_layer=shape["layers"],
            n_head=shape["heads"],
            n_positions=shape["length"],
            initializer_range=init,
            eos_token_id=0,
            bos_token_id=0,
        )
    else:
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape["dim"],
            intermediate_size=2 * shape["dim"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["heads"] // 2,
            max_position_embeddings=shape["length"],
            initializer_range=init,
            eos_token_id=0,
            bos_token_id=0,
        )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def tokenizer_of(texts: list[str], vocab: int) -> Any:
    import tokenizers
    import transformers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=end, bos_token=end, unk_token=end
    )


def load_tasks(folder: Path, tasks: tuple[str, ...], limit: int | None = None) -> Any:
    """Tasks of lm-eval with rows of a mirror."""
    import tempfile

    from lm_eval.tasks import TaskManager

    from hope_eval.lm_eval_bridge import mirror

    with tempfile.TemporaryDirectory() as made:
        mirror.write_tasks(Path(made), folder, list(tasks), limit)
        return TaskManager(include_path=made, include_defaults=False).load(list(tasks))


def samples(lm: Any, loaded: Any) -> dict[str, Any]:
    """Every row's responses and accuracy by lm-eval's own evaluation."""
    from lm_eval import evaluator

    found = evaluator.evaluate(lm, loaded, bootstrap_iters=0)
    return {task: found["samples"][task] for task in loaded["tasks"]}


def hf_lm(folder: Path, batch: int = 4, dtype: str = "float32") -> Any:
    """lm-eval's own model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=batch, dtype=dtype)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-4) -> float:
    """The same rows, log-likelihoods within the tolerance, accuracies equal; returns the largest deviation."""
    worst = 0.0
    for task, rows in theirs.items():
        assert len(rows) == len(ours[task])
        for mine, row in zip(ours[task], rows, strict=True):
            assert mine["arguments"] == row["arguments"]
            a, b = (np.array(x["filtered_resps"], float) for x in (mine, row))
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
            worst = max(worst, float(np.abs(a - b).max()))
            assert {k: mine[k] for k in ("acc", "acc_norm") if k in mine} == {
                k: row[k] for k in ("acc", "acc_norm") if k in row
            }
    return worst


def write_mirror(folder: Path, count: int = 12) -> Path:
    """A mirror of a few tasks with made-up rows of the original fields."""

    def phrase(n: int, length: int) -> str:
        return " ".join(WORDS[(7 * n + 3 * k * k + k) % len(WORDS)] for k in range(length))

    rows: dict[str, list[dict[str, Any]]] = {
        "piqa/valid.jsonl": [
            {
                "goal": phrase(n, 4 + n % 7) + "?",
                "sol1": phrase(n + 1, 9),
                "sol2": phrase(n + 1, 5) + " stone",
            }
            for n in range(count)
        ],
        "boolq/boolq_validation.jsonl": [
            {"question": phrase(n, 6), "passage": phrase(n + 5, 30 + n) + ".", "answer": n % 3 == 0}
            for n in range(count)
        ],
        "arc/arc_easy_validation.jsonl": [
            {
                "id": str(n),
                "question": phrase(n, 8 + n % 5),
                "choices": {"text": [phrase(n + k, 2 + k) for k in range(4)], "label": ["A", "B", "C", "D"]},
                "answerKey": "ABCD"[n % 4],
            }
            for n in range(count)
        ],
        "hellaswag/hellaswag_val.jsonl": [
            {
                "ctx": f"Home: {phrase(n, 12).capitalize()}. {phrase(n + 2, 3)}",
                "endings": [phrase(n + k, 6 + k) + "." for k in range(4)],
                "label": n % 4,
            }
            for n in range(count)
        ],
        "winogrande/winogrande_xl_validation.jsonl": [
            {
                "sentence": f"{phrase(n, 9)} so _ {phrase(n + 3, 5)}.",
                "option1": "the cat",
                "option2": "rain",
                "answer": str(1 + n % 2),
            }
            for n in range(count)
        ],
        "lambada/lambada_openai_test.jsonl": [
            {"context": phrase(n, 25 + 2 * n), "continuation": WORDS[n]} for n in range(count)
        ],
    }
    for file, lines in rows.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "piqa" / "valid-labels.lst").write_text("".join(f"{n % 2}\n" for n in range(count)))
    wikitext = folder / "wikitext2" / "wikitext2_raw_test_joined.txt"
    wikitext.parent.mkdir()
    articles = [
        ["", f" = Title {n} = \n", "", f" {phrase(n, 40)} . \n", f" {phrase(n + 1, 30)} . \n"]
        for n in range(3)
    ]
    wikitext.write_text("\n\n".join(row for article in articles for row in article))
    return folder


def texts_of(mirror: Path) -> list[str]:
    """Text to train a tokenizer on."""
    return [path.read_text() for path in sorted(mirror.rglob("*.jsonl"))]
