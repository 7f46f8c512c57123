"""Side by side: what is done with a Llama of transformers is done with ours, and ends alike."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if any(importlib.util.find_spec(name) is None for name in ("transformers", "sentencepiece", "accelerate")):
    pytest.skip("transformers is not installed: pip install 'hope-model[hf]'", allow_module_level=True)

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from hope_model import hf

PROMPTS = torch.randint(2, 250, (2, 11), generator=torch.Generator().manual_seed(1))
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}


@pytest.fixture(scope="module", params=["llama", "hope", "hope_attention"])
def folder(
    request: pytest.FixtureRequest, export: Callable[..., Path], tokenizer: Path, tmp_path_factory: Any
) -> Path:
    if request.param != "llama":
        return export(request.param)
    made: Path = tmp_path_factory.mktemp("llama")
    pieces = hf.HopeTokenizer(str(tokenizer / "tokenizer.model"))
    pieces.save_pretrained(made)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"eos_token_id": 1, "bos_token_id": None, "tie_word_embeddings": True}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=pieces.vocab_size, initializer_range=0.15, **sizes, **special
    )
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    return made


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def rows(*sizes: int, masked: int = 0) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(2)
    made = []
    for n, size in enumerate(sizes):
        ids = torch.randint(2, 250, (size,), generator=draw)
        labels = ids.clone()
        labels[: masked * n] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def train(model: Any, data: list[dict[str, Any]], out: Path, collator: Any = None, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(out),
        max_steps=1,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        **options,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, data_collator=collator
    )
    trainer.train()
    return trainer


def step(*arguments: Any, **options: Any) -> tuple[float, float]:
    """Loss and gradient norm of the first step."""
    first = train(*arguments, **options).state.log_history[0]
    return first["loss"], first["grad_norm"]


def test_loss_and_gradient_do_not_depend_on_accumulation(folder: Path, tmp_path: Path) -> None:
    """Eight rows of different numbers of labels in one pass, in four, or in eight."""
    data, found = rows(*[24] * 8, masked=2), []
    for size, times in ((8, 1), (2, 4), (1, 8)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": times}
        found.append(step(model, data, tmp_path, **options))
    assert found[1:] == [pytest.approx(found[0], rel=2e-5)] * 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        each = [model(row["input_ids"][None], labels=row["labels"][None]).loss for row in data]
    counts = [int((row["labels"][1:] != -100).sum()) for row in data]
    mean = sum(float(loss) * n for loss, n in zip(each, counts, strict=True)) / sum(counts)
    assert found[0][0] == pytest.approx(mean, rel=1e-5)


def test_batches_padded_on_the_right_train_as_their_rows(folder: Path, model: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    data = [{"input_ids": row["input_ids"].tolist()} for row in rows(24, 9, 17, 3)]
    loss, _ = step(model, data, tmp_path, collator, per_device_train_batch_size=4)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        each = [torch.tensor([row["input_ids"]]) for row in data]
        nats = sum(float(model(row, labels=row).loss) * (row.shape[1] - 1) for row in each)
    assert loss == pytest.approx(nats / (23 + 8 + 16 + 2), rel=1e-5)


def test_batches_padded_on_the_left_train_as_their_rows(folder: Path, model: Any, tmp_path: Path) -> None:
    """Trainer counts the token after padding as a target, which it is not here; a Llama predicts it from padding."""
    if model.config.model_type == "llama":
        pytest.skip("a Llama's loss has that token, too")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    data = [{"input_ids": row["input_ids"].tolist()} for row in rows(24, 9, 17, 3)]
    loss, _ = step(model, data, tmp_path, collator, per_device_train_batch_size=4)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        each = [torch.tensor([row["input_ids"]]) for row in data]
        nats = sum(float(model(row, labels=row).loss) * (row.shape[1] - 1) for row in each)
    assert loss == pytest.approx(nats / (23 + 8 + 16 + 2), rel=1e-5)


def test_trainer_evaluates_and_its_checkpoint_resumes(folder: Path, model: Any, tmp_path: Path) -> None:
    trainer = train(model, rows(24, 24), tmp_path, per_device_train_batch_size=2)
    with torch.no_grad():
        batch = torch.stack([row["input_ids"] for row in rows(24, 24)])
        expected = model.eval()(batch, labels=batch).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert trainer.predict(rows(24, 24)).predictions.shape == (2, 24, model.config.vocab_size)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(batch).logits, model(batch).logits, rtol=0, atol=0)


def test_generation_without_a_cache_is_the_same(model: Any) -> None:
    whole = model(model.generate(PROMPTS, **OPTIONS)[:, :-1]).logits
    greedy = model.generate(PROMPTS, **OPTIONS)
    assert torch.equal(greedy[:, 11:], whole[:, 10:].argmax(-1))
    for change in (
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"repetition_penalty": 1.3},
    ):
        cached, plain = (model.generate(PROMPTS, **OPTIONS | change, use_cache=use) for use in (True, False))
        assert torch.equal(cached, plain)
    drawn = []
    for use in (True, False):
        torch.manual_seed(3)
        change = {"do_sample": True, "temperature": 0.8, "top_k": 20, "num_return_sequences": 3}
        drawn.append(model.generate(PROMPTS, **OPTIONS | change, use_cache=use))
    assert drawn[0].shape == (6, 17)
    assert torch.equal(*drawn)


def test_generation_stops_as_told(folder: Path, model: Any) -> None:
    text = AutoTokenizer.from_pretrained(folder)
    greedy = model.generate(PROMPTS[:1], **OPTIONS)[0, 11:].tolist()
    stopped = model.generate(PROMPTS[:1], **OPTIONS | {"eos_token_id": greedy[2]})[0, 11:].tolist()
    assert stopped == greedy[: greedy.index(greedy[2]) + 1]
    assert model.generate(PROMPTS, **OPTIONS | {"max_new_tokens": None, "max_length": 14}).shape == (2, 14)
    assert model.generate(PROMPTS, **OPTIONS | {"stop_strings": ["the"]}, tokenizer=text).shape[1] <= 17


def test_prompts_padded_on_the_left_continue_as_alone(model: Any) -> None:
    pads = torch.tensor([0, 4, 7, 4])
    prompts = torch.randint(2, 250, (4, 11), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(11) >= pads[:, None]).long()
    for change in ({}, {"num_beams": 3}, {"use_cache": False}):
        made = model.generate(torch.where(mask > 0, prompts, 1), attention_mask=mask, **OPTIONS | change)
        for row, pad in enumerate(pads.tolist()):
            alone = model.generate(prompts[row : row + 1, pad:], **OPTIONS | change)[0, 11 - pad :]
            assert made[row, 11 : 11 + len(alone)].tolist() == alone.tolist()
    model.requires_grad_(False)
    logits = model(prompts, attention_mask=mask).logits
    for row, pad in enumerate(pads.tolist()):
        alone = model(prompts[row : row + 1, pad:]).logits[0]
        torch.testing.assert_close(logits[row, pad:], alone, rtol=0, atol=2e-4)
    labels = torch.where(mask > 0, prompts, -100)
    labels[mask.cumsum(1) == 1] = -100  # a Llama would predict these from padding
    nats = [
        float(model(prompts[n : n + 1, pad:], labels=prompts[n : n + 1, pad:]).loss)
        for n, pad in enumerate(pads)
    ]
    loss = model(prompts, attention_mask=mask, labels=labels).loss
    weights = (10 - pads).tolist()
    assert float(loss) == pytest.approx(
        sum(a * b for a, b in zip(nats, weights, strict=True)) / sum(weights), rel=1e-4
    )


def test_pipeline_continues_texts(folder: Path, model: Any) -> None:
    text = AutoTokenizer.from_pretrained(folder, padding_side="left")
    text.pad_token = text.eos_token
    prompts, options = ["the green hill and the", "the red"], {"max_new_tokens": 5, "do_sample": False}
    made = transformers.pipeline("text-generation", model=str(folder))(
        prompts, return_full_text=False, **options
    )
    for prompt, [answer] in zip(prompts, made, strict=True):
        ids = torch.tensor([text.encode(prompt)])
        row = model.generate(ids, **OPTIONS | options)[0, ids.shape[1] :]
        assert answer["generated_text"] == text.decode(row, skip_special_tokens=True)
    batched = transformers.pipeline("text-generation", model=model, tokenizer=text, batch_size=2)
    assert batched(prompts, return_full_text=False, **options) == made
    assert len(batched("the", num_return_sequences=3, max_new_tokens=2, do_sample=True)) == 3


@pytest.mark.parametrize("size", [320, 200, None])
def test_vocabulary_is_resized(model: Any, size: int | None, tmp_path: Path) -> None:
    before = model(PROMPTS % 199).logits
    embed = model.resize_token_embeddings(size, pad_to_multiple_of=None if size else 64)
    after, new = model(PROMPTS % 199).logits, size or 320
    assert [embed.num_embeddings, model.config.vocab_size, after.shape[-1]] == [new] * 3
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    shared = min(new, before.shape[-1])
    # The teach signal is a softmax over the vocabulary, so what HOPE writes after a segment changes a little.
    torch.testing.assert_close(after[:, :8, :shared], before[:, :8, :shared])
    assert model(PROMPTS % 199, labels=PROMPTS % 199).loss.item() > 0
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(PROMPTS % 199).logits, after, rtol=0, atol=0)
    step(again, rows(24, 24), tmp_path / "out", per_device_train_batch_size=2) if new > 250 else None


def test_outputs_have_the_same_parts(model: Any) -> None:
    out = model(PROMPTS, labels=PROMPTS, output_hidden_states=True)
    assert [h.shape for h in out.hidden_states] == [(2, 11, 32)] * 3
    head = model.get_output_embeddings()
    torch.testing.assert_close(head(out.hidden_states[-1]), out.logits)
    torch.testing.assert_close(out.hidden_states[0], model.get_input_embeddings()(PROMPTS))
    first = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), PROMPTS[:, 1:].flatten())
    assert float(out.loss) == pytest.approx(float(first), rel=1e-5)
    assert float(model(PROMPTS, labels=PROMPTS, num_items_in_batch=5).loss) == pytest.approx(
        4 * float(first), rel=1e-5
    )
    parts = model(PROMPTS, labels=PROMPTS, return_dict=False)
    assert [type(parts), len(parts), parts[1].shape] == [tuple, 3, out.logits.shape]
    assert model(PROMPTS, use_cache=False).past_key_values is None
    for keep in (3, torch.tensor([2, 5])):
        columns = slice(-3, None) if isinstance(keep, int) else keep
        torch.testing.assert_close(model(PROMPTS, logits_to_keep=keep).logits, out.logits[:, columns])
    cache = model(PROMPTS[:, :4]).past_key_values
    for start in (4, 7):
        part = model(
            PROMPTS[:, start : start + 3], past_key_values=cache
        ).logits  # the cache changes in place
        torch.testing.assert_close(part, out.logits[:, start : start + 3], rtol=0, atol=1e-4)
    assert cache.get_seq_length() == 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(folder: Path, model: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of 70 tokens, so that memories are written: the loss of float32 within rounding, a generation, a step."""
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    [row] = rows(70)
    ids = row["input_ids"][None]
    out, exact = half(ids, labels=ids), model(ids, labels=ids)
    assert [half.dtype, out.logits.dtype, out.loss.dtype] == [dtype, dtype, torch.float32]
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=0.005)
    assert half.generate(ids, **OPTIONS).shape == (1, 76)
    half.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, out.logits)
    loss, norm = step(half, [row], tmp_path / "out", per_device_train_batch_size=1)
    assert loss == pytest.approx(exact.loss.item(), rel=0.005)
    assert 0 < norm < 100
