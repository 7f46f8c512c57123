"""The bridge to transformers: `AutoConfig`, `AutoModelForCausalLM`, `AutoTokenizer` and `generate` for our checkpoints.

    import hope_model.hf as bridge                           # registers the model type "hope"
    bridge.export("runs/hope/checkpoint", "data/tokenizer", "hope-hf")
    model = AutoModelForCausalLM.from_pretrained("hope-hf")

An exported folder holds what transformers reads (config.json with a `model_type`, safetensors, the tokenizer);
no code lies in it and none is loaded from it. The cache that `generate` carries is our `State`.
Needs hope-model[hf].
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from hope_model import checkpoint
from hope_model.config import ModelConfig
from hope_model.errors import InputError
from hope_model.model import LanguageModel
from hope_model.state import State, repeat, select

VOCABULARY = "tokenizer.model"
# Sentencepiece writes a space as this character; one that stands in the text itself goes through as bytes.
_SPACE = "\u2581"


class HopeConfig(transformers.PretrainedConfig):  # type: ignore[misc]  # transformers is not typed
    """Configuration for transformers.

    Args:
        hope: `ModelConfig.to_dict()`, the one home of every value.
        trained: what the checkpoint's meta.json says of its training: run, seed, length, tokenizer and so on.
    """

    model_type = "hope"

    def __init__(
        self, hope: dict[str, Any] | None = None, trained: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.hope, self.trained = ModelConfig.from_dict(hope or {}).to_dict(), dict(trained or {})
        self.vocab_size = self.hope["vocab_size"]
        self.hidden_size, self.num_hidden_layers = self.hope["dim"], self.hope["layers"]
        kwargs.setdefault("tie_word_embeddings", self.hope["tied_embedding"])
        kwargs.setdefault("eos_token_id", 1)
        kwargs.setdefault("architectures", ["HopeForCausalLM"])
        super().__init__(**kwargs)


class HopeCache(Cache):  # type: ignore[misc]
    """Our state in the place of a key-value cache."""

    def __init__(self, state: State | None = None) -> None:
        super().__init__(layers=[])
        self.state = state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen."""
        del layer_idx
        return 0 if self.state is None else self.state.position

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences named, each as often as it is named."""
        self.state = None if self.state is None else select(self.state, indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """What beam search asks for."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times in a row."""
        if self.state is not None:
            self.state = repeat(self.state, repeats)


class HopeForCausalLM(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """`LanguageModel` behind the interface of transformers; the weights are its parameters under `model.`."""

    config_class = HopeConfig
    base_model_prefix = "model"
    _tied_weights_keys: ClassVar = {"model.head.weight": "model.embed.weight"}
    main_input_name = "input_ids"

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(ModelConfig.from_dict(config.hope))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Nothing: `LanguageModel` draws its own weights."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> Any:
        """The embedding."""
        return self.model.embed

    def get_output_embeddings(self) -> Any:
        """The head."""
        return self.model.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: HopeCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, the loss if `labels` are given (-100 is left out), and the state as `past_key_values`.

        Raises:
            ValueError: the batch is padded; a recurrent state would read the padding.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("HOPE reads every token: give prompts of equal length, without padding")
        state = past_key_values.state if past_key_values is not None else None
        logits_BTV, state = self.model(input_ids, state)
        loss = None
        if labels is not None:
            shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), shifted.flatten())
        kept = logits_BTV[:, -logits_to_keep:] if logits_to_keep else logits_BTV
        cache = HopeCache(state) if use_cache is not False else None
        return CausalLMOutputWithPast(loss=loss, logits=kept, past_key_values=cache)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: HopeCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Only the tokens that the state has not seen."""
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {
            "input_ids": input_ids[:, seen:],
            "past_key_values": past_key_values,
            "attention_mask": kwargs.get("attention_mask"),
            "use_cache": kwargs.get("use_cache", True),
        }


class HopeTokenizer(transformers.PreTrainedTokenizer):  # type: ignore[misc]
    """The sentencepiece tokenizer of hope-data, id for id; no token is added by itself, none is written as text."""

    vocab_files_names: ClassVar = {"vocab_file": VOCABULARY}
    model_input_names: ClassVar = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        self._sp = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        for name, token in (("eos_token", self._sp.eos_id()), ("unk_token", self._sp.unk_id())):
            kwargs.setdefault(name, self._sp.id_to_piece(token))
        # `</s>` in a text (HTML has it) is four characters, as in training, and does not end the text.
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self._sp.vocab_size())

    def get_vocab(self) -> dict[str, int]:
        """Piece to id."""
        return {self._sp.id_to_piece(n): n for n in range(self.vocab_size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        first, *rest = text.split(_SPACE)
        pieces: list[str] = self._sp.encode(first, out_type=str)
        for part in rest:
            pieces += [*(f"<0x{byte:02X}>" for byte in _SPACE.encode()), *self._sp.encode(part, out_type=str)]
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return int(self._sp.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self._sp.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces; bytes are joined before they are decoded."""
        parts = []
        for token in tokens:
            index = self._sp.piece_to_id(token)
            if self._sp.is_byte(index):
                parts.append(bytes([int(token[3:5], 16)]))
            else:
                parts.append(token.replace(_SPACE, " ").encode())
        return b"".join(parts).decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the sentencepiece model."""
        name = f"{filename_prefix}-{VOCABULARY}" if filename_prefix else VOCABULARY
        path = Path(save_directory) / name
        path.write_bytes(Path(self.vocab_file).read_bytes())
        return (str(path),)


def register() -> None:
    """Make the model type known to the Auto classes; done when this module is imported."""
    transformers.AutoConfig.register("hope", HopeConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(HopeConfig, HopeForCausalLM, exist_ok=True)
    transformers.AutoTokenizer.register(HopeConfig, slow_tokenizer_class=HopeTokenizer, exist_ok=True)


def from_checkpoint(folder: Path | str) -> HopeForCausalLM:
    """One of our checkpoints as a model of transformers, verified as `checkpoint.load` does."""
    inner, meta = checkpoint.load(folder)
    trained = {key: value for key, value in meta.items() if key != "sha256"}  # of files that stay behind
    model = HopeForCausalLM(HopeConfig(inner.config.to_dict(), trained))
    model.model.load_state_dict(inner.state_dict())
    model.eval()
    return model


def export(folder: Path | str, tokenizer: Path | str, out: Path | str) -> Path:
    """Write a checkpoint and its tokenizer as a folder that transformers reads.

    Args:
        folder: checkpoint of hope-model.
        tokenizer: folder of `hope-data tokenizer`, the one it was trained with.
        out: a new folder; it appears when it is complete.

    Raises:
        InputError: `out` exists, something is damaged, or the tokenizer is another one.
    """
    out, source = Path(out), Path(tokenizer) / VOCABULARY
    if out.exists():
        raise InputError(f"{out} exists; name a new folder")
    if not source.is_file():
        raise InputError(f"{source} is missing; is {tokenizer} a tokenizer folder?")
    model = from_checkpoint(folder)
    expected = model.config.trained.get("tokenizer_sha256")
    if expected and checkpoint.sha256(source) != expected:
        raise InputError(
            f"{source}: not the tokenizer of {folder} ({str(expected)[:12]}); name the right one"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    model.save_pretrained(beside)
    HopeTokenizer(str(source)).save_pretrained(beside)
    beside.chmod(0o755)
    for file in beside.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only
    os.sync()
    return beside.rename(out)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m hope_model.hf CHECKPOINT TOKENIZER OUT`."""
    parser = argparse.ArgumentParser("python -m hope_model.hf", description=export.__doc__)
    for name in ("checkpoint", "tokenizer", "out"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    given = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    try:
        export(given.checkpoint, given.tokenizer, given.out)
    except (InputError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{given.out}\n")
    return 0


register()

if __name__ == "__main__":
    sys.exit(main())
