"""The bridge to transformers: same logits, same tokens, our state as the cache."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hope_model import LanguageModel, ModelConfig, checkpoint
from hope_model.config import PRESETS
from hope_model.errors import InputError

if any(importlib.util.find_spec(name) is None for name in ("transformers", "sentencepiece")):
    pytest.skip("transformers is not installed: pip install 'hope-model[hf]'", allow_module_level=True)

import sentencepiece
import transformers

from hope_model import hf

TEXT = "the green hill and the <s>red</s> stone, ünder 12 trees\n\tgo  on▁and on <unk> 🙂"


def test_auto_classes_load_the_same_model(exported: Path) -> None:
    ours, _ = checkpoint.load(exported.parent / "checkpoint")
    config = transformers.AutoConfig.from_pretrained(exported)
    assert config.hope == ours.config.to_dict()
    assert config.trained["length"] == 64
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    tokens = torch.arange(2, 42)[None]
    with torch.no_grad():
        out = theirs(tokens, labels=tokens)
        expected, _ = ours(tokens)
    torch.testing.assert_close(out.logits, expected, rtol=0, atol=0)
    loss = torch.nn.functional.cross_entropy(expected[0, :-1], tokens[0, 1:])
    assert float(out.loss) == pytest.approx(float(loss), abs=1e-6)
    assert not [path for path in exported.iterdir() if path.suffix in {".py", ".bin", ".pt"}]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_generate_what_our_stream_does(export: Callable[..., Path], preset: str) -> None:
    folder = export(preset)
    ours, _ = checkpoint.load(folder.parent / "checkpoint")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(2, 250, (2, 11), generator=torch.Generator().manual_seed(1))
    ids = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=9, do_sample=False, eos_token_id=None
    )
    with torch.no_grad():
        for _ in range(9):
            tokens = torch.cat((tokens, ours(tokens)[0][:, -1:].argmax(-1)), 1)
    assert torch.equal(ids, tokens)


def test_generate_without_a_prompt_begins_a_document(exported: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    ids = model.generate(max_new_tokens=3, do_sample=False)
    first = model.generate(torch.tensor([[model.config.eos_token_id]]), max_new_tokens=3, do_sample=False)
    assert torch.equal(ids, first)


def test_generate_carries_our_state(exported: Path) -> None:
    """Greedy and beam search equal running everything again, and the cache is our state."""
    model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    prompts = torch.randint(2, 250, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompts)
    options = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    out = model.generate(prompts, return_dict_in_generate=True, **options)
    assert out.past_key_values.state.position == 11 + 9 - 1
    row = prompts
    for _ in range(9):
        with torch.no_grad():
            row = torch.cat((row, model.model(row)[0][:, -1:].argmax(-1)), 1)
    assert torch.equal(out.sequences, row)
    fed: list[int] = []
    model.model.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape[1]))
    longer = model.generate(
        out.sequences,
        past_key_values=out.past_key_values,
        **{**options, "attention_mask": torch.ones_like(out.sequences), "max_new_tokens": 3},
    )
    assert fed == [1, 1, 1]  # neither the prompt nor what was written before runs again
    whole = model.generate(prompts, **{**options, "max_new_tokens": 12})
    assert torch.equal(longer, whole)
    assert fed == [1, 1, 1, 11, *[1] * 11]
    beams = model.generate(prompts, num_beams=3, **options)
    again = model.generate(prompts, num_beams=3, use_cache=False, **options)
    assert torch.equal(beams, again)


def test_tokenizer_is_lossless_and_id_for_id(exported: Path, tokenizer: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    inner = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    plain = TEXT.replace("▁", "")
    assert theirs.encode(plain) == inner.encode(plain)
    assert theirs.decode(theirs.encode(TEXT)) == TEXT
    assert theirs.eos_token_id not in theirs.encode(TEXT)
    assert theirs.eos_token_id == 1
    assert theirs.decode([*theirs.encode("the hill"), 1], skip_special_tokens=True) == "the hill"


def test_ids_beyond_the_tokenizer_are_no_text(exported: Path) -> None:
    """A vocabulary resized to a multiple of 64 lets `generate` draw them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ids = tokenizer.encode("the hill")
    beyond = tokenizer.vocab_size + 3
    assert tokenizer.decode([beyond, *ids, beyond]) == "the hill"


def test_refusals_say_what_to_do(exported: Path) -> None:
    """What a Llama can do and a recurrent state cannot."""
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    ids, gap = torch.full((2, 5), 7), torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]])
    right, past = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), model(ids).past_key_values
    calls: list[tuple[dict[str, Any], str]] = [
        ({"attention_mask": gap}, "must be 1 on one stretch"),
        ({"attention_mask": right, "use_cache": True}, "pad prompts on the left"),
        ({"attention_mask": right, "past_key_values": past}, "every token after the prompt"),
        ({"attention_mask": right[:, None]}, r"attention_mask has shape \[2, 1, 5\]"),
        ({"position_ids": torch.tensor([[0, 1, 2, 0, 1]])}, "must count up by one"),
        ({"past_key_values": transformers.DynamicCache()}, "past_key_values is a DynamicCache"),
        ({"output_attentions": True}, "no attention weights"),
        ({"inputs_embeds": torch.zeros(2, 5, 32)}, "give input_ids"),
    ]
    for options, message in calls:
        with pytest.raises(ValueError, match=message):
            model(ids, **options)
    assert model(ids, position_ids=torch.arange(5)[None]).logits.shape[1] == 5
    assert model(ids, attention_mask=right).past_key_values is None
    for options, message in [
        ({"attention_mask": right, "use_cache": False}, "pad prompts on the left"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation is not supported"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.generate(ids, max_new_tokens=2, **options)
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        model.gradient_checkpointing_enable()


def test_hidden_states_are_those_of_the_tokens_whatever_is_read_twice(export: Callable[..., Path]) -> None:
    """A `layer` signal runs segments again to learn from them."""
    folder = export("hope", signal="layer")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    ids = torch.randint(2, 250, (1, 29), generator=torch.Generator().manual_seed(5))
    out = model(ids, output_hidden_states=True)
    assert [h.shape for h in out.hidden_states] == [(1, 29, 32)] * 3
    torch.testing.assert_close(model.get_output_embeddings()(out.hidden_states[-1]), out.logits)


@pytest.fixture(scope="module")
def padded(export: Callable[..., Path]) -> Path:
    """A model with 60 ids more than its tokenizer; not to be changed."""
    return export("hope", padding=60)


def test_ids_that_the_tokenizer_lacks_are_padding(padded: Path) -> None:
    """They train as any other row; outside training they have no probability and are never generated."""
    model, text = (
        kind.from_pretrained(padded)
        for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    ours, _ = checkpoint.load(padded.parent / "checkpoint")
    size, ids = len(text), torch.randint(2, 250, (2, 20), generator=torch.Generator().manual_seed(6))
    assert (model.config.tokenizer_size, model.config.vocab_size) == (size, size + 60)
    logits = model(ids).logits
    torch.testing.assert_close(logits[..., :size], ours(ids)[0][..., :size], rtol=0, atol=0)
    assert torch.all(logits[..., size:] == -torch.inf)
    torch.testing.assert_close(model.train()(ids).logits, ours(ids)[0], rtol=0, atol=0)
    with torch.no_grad():  # the extra rows would win every time
        model.model.embed.weight[size:] = model.model.norm.weight * 50
    model.eval()
    for options in ({"do_sample": True, "num_return_sequences": 8}, {"do_sample": False}, {"num_beams": 3}):
        assert int(model.generate(ids, max_new_tokens=9, pad_token_id=1, **options).max()) < size
    assert model(ids, labels=ids).loss.item() < 20
    model.resize_token_embeddings(size + 8)  # whoever resizes wants the new ids
    assert bool(model(ids).logits.isfinite().all())


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, 1.0, "cut", "gone"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.model", "SHA256SUMS"]
)
def test_every_change_of_an_exported_file_is_noticed(
    padded: Path, name: str, place: float | str, tmp_path: Path
) -> None:
    folder = shutil.copytree(padded, tmp_path / "hf")
    if place == "gone" and name != "SHA256SUMS":
        (folder / name).unlink()
    elif isinstance(place, str):
        (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    else:
        flip(folder / name, place)
    with pytest.raises((ValueError, OSError)):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    if name == "tokenizer.model":
        with pytest.raises(InputError, match=r"tokenizer\.model"):
            transformers.AutoTokenizer.from_pretrained(folder)


def test_what_is_saved_again_has_new_hashes(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight += 1
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    names = {line.split("  ")[1] for line in lines}
    assert names == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}


def test_killed_exports_leave_nothing_behind(
    exported: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, stale, live = (
        exported.parent / "checkpoint",
        tmp_path / ".hf.deadbeef.tmp",
        tmp_path / ".hf.livebeef.tmp",
    )
    for folder in (stale, live):
        folder.mkdir()
    handle = os.open(live, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with monkeypatch.context() as patch:
        patch.setattr(hf.HopeTokenizer, "save_pretrained", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hf.export(source, tokenizer, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == [".hf.livebeef.tmp"]
    hf.export(source, tokenizer, tmp_path / "hf")
    os.close(handle)
    assert {path.name for path in tmp_path.iterdir()} == {".hf.livebeef.tmp", "hf"}


def test_unfit_export_is_refused_and_leaves_nothing(
    exported: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = exported.parent / "checkpoint"
    with pytest.raises(InputError, match="exists; name a new folder"):
        hf.export(source, tokenizer, exported)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.model").write_bytes(b"torn" * 9)
    with pytest.raises(InputError, match="not the tokenizer of"):
        hf.export(source, other, tmp_path / "out")
    with pytest.raises(InputError, match="is missing; is"):
        hf.export(source, tmp_path, tmp_path / "out")
    small = ModelConfig.from_dict({"vocab_size": 100, "dim": 32, "layers": 1, "head_dim": 16})
    checkpoint.save(tmp_path / "small", LanguageModel(small), {})
    with pytest.raises(InputError, match="more than the 100 of"):
        hf.export(tmp_path / "small", tokenizer, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(hf.HopeTokenizer, "lossless", False)
        with pytest.raises(InputError, match="has no token for a space"):
            hf.export(source, tokenizer, tmp_path / "out")
    with pytest.raises(InputError, match="is no sentencepiece model"):
        hf.export(tmp_path / "small", other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert json.loads((exported / "config.json").read_text())["model_type"] == "hope"
