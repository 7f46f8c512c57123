"""The bridge to transformers: same logits, same tokens, our state as the cache."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch

from hope_model import LanguageModel, ModelConfig, checkpoint
from hope_model.errors import InputError

if any(importlib.util.find_spec(name) is None for name in ("transformers", "sentencepiece")):
    pytest.skip("transformers is not installed: pip install 'hope-model[hf]'", allow_module_level=True)

import sentencepiece
import transformers

from hope_model import hf

TEXT = "the green hill and the <s>red</s> stone, ünder 12 trees\n\tgo  on▁and on <unk> 🙂"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("tokenizer"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the green hill and the red stone go on"] * 50),
        model_writer=model,
        vocab_size=300,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["\n"],
        unk_id=0,
        eos_id=1,
        bos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="module", params=["hope", "titans", "transformer"])
def exported(
    request: pytest.FixtureRequest, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    size = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model")).vocab_size()
    values = {
        "variant": request.param,
        "vocab_size": size,
        "dim": 32,
        "layers": 2,
        "head_dim": 16,
        "init_std": 0.3,
    }
    model = LanguageModel(ModelConfig.from_dict({**values, "cms": {"smallest": 8, "levels": 2}}))
    sha256 = checkpoint.sha256(tokenizer / "tokenizer.model")
    checkpoint.save(root / "checkpoint", model, {"tokenizer_sha256": sha256, "length": 64})
    return hf.export(root / "checkpoint", tokenizer, root / "hf")


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


def test_padding_is_refused(exported: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    with pytest.raises(ValueError, match="without padding"):
        model(torch.ones(1, 3, dtype=torch.int64), attention_mask=torch.tensor([[0, 1, 1]]))


def test_unfit_export_is_refused_and_leaves_nothing(exported: Path, tokenizer: Path, tmp_path: Path) -> None:
    source = exported.parent / "checkpoint"
    with pytest.raises(InputError, match="exists; name a new folder"):
        hf.export(source, tokenizer, exported)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.model").write_bytes((tokenizer / "tokenizer.model").read_bytes() + b"\n")
    with pytest.raises(InputError, match="not the tokenizer of"):
        hf.export(source, other, tmp_path / "out")
    assert hf.main([str(source), str(tmp_path), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert json.loads((exported / "config.json").read_text())["model_type"] == "hope"
