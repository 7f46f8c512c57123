"""Equality of two forms of one op: outputs, final states and every gradient, in float64."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hope_model import LanguageModel, ModelConfig, checkpoint
from hope_model.files import sha256
from hope_model.ops.native import build
from hope_model.tree import tensors


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["native", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who computes the chunk steps: the C++ kernels or torch."""
    monkeypatch.setenv(build.SWITCH, "0" if request.param == "torch" else "1")
    if request.param == "native" and build.kernels("gated_delta") is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


@pytest.fixture
def assert_same() -> Callable[..., None]:
    def check(
        naive: Callable[..., Any], fast: Callable[..., Any], *inputs: Any, within: float = 1e-10
    ) -> None:
        leaves = [x for x in tensors(inputs) if x.requires_grad]
        assert leaves
        results = []
        for form in (naive, fast):
            outputs = tensors(form(*inputs))
            weights = [torch.linspace(-3, 4, x.numel(), dtype=x.dtype).cos().view(x.shape) for x in outputs]
            total = torch.stack([(x * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum()
            results.append((outputs, torch.autograd.grad(total, leaves, allow_unused=True)))
        (out1, grad1), (out2, grad2) = results
        assert len(out1) == len(out2)
        for x, y in zip(out1, out2, strict=True):
            assert (x - y).abs().max() <= within * (1 + x.abs().max())
        for g, h in zip(grad1, grad2, strict=True):
            assert (g is None) == (h is None)
            if g is not None and h is not None:
                assert (g - h).abs().max() <= within * (1 + g.abs().max())

    return check


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a sentencepiece model as hope-data makes them."""
    import sentencepiece

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


@pytest.fixture(scope="session")
def export(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports an untrained model; its checkpoint lies beside the folder."""
    import sentencepiece

    from hope_model import hf

    file = tokenizer / "tokenizer.model"
    size = sentencepiece.SentencePieceProcessor(model_file=str(file)).vocab_size()

    def make(variant: str, padding: int = 0, **cms: object) -> Path:
        root = tmp_path_factory.mktemp(variant)
        torch.manual_seed(0)
        values = {"dim": 32, "layers": 2, "head_dim": 16, "init_std": 0.3, "vocab_size": size + padding}
        config = ModelConfig.named(variant, **values, cms={"smallest": 8, "levels": 2, **cms})
        meta = {"tokenizer_sha256": sha256(file), "length": 64}
        checkpoint.save(root / "checkpoint", LanguageModel(config), meta)
        return hf.export(root / "checkpoint", tokenizer, root / "hf")

    return make


@pytest.fixture(scope="session", params=["hope", "titans", "transformer"])
def exported(request: pytest.FixtureRequest, export: Callable[..., Path]) -> Path:
    """A folder of each kind of mixer; not to be changed."""
    return export(request.param)
