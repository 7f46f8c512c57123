"""Causal models behind one interface: our checkpoints and those of Hugging Face, with the tokenizer of each.

Letters: B sequences, T tokens, V vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from hope_data.errors import InputError
from hope_data.files import open_regular, read_bytes, sha256_file
from hope_data.tokenizer import META, MODEL, Tokenizer, is_foreign
from hope_eval.files import read_json
from hope_eval.results import Checkpoint
from hope_eval.results.names import trained_length
from hope_eval.scoring.about import describe, describe_foreign
from hope_eval.scoring.tokenizers import HFTokenizer, HopeTokenizer
from hope_model import LanguageModel, MemorySettings, checkpoint
from hope_model.blocks import variant_parts
from hope_model.cpu import prepare_cpu
from hope_model.errors import InputError as ModelInputError
from hope_model.files import no_checkpoint
from hope_model.state import State, select

# Full attention keeps every token and was never trained on positions further out.
ATTENTION_REACH = 4


Places = tuple[Tensor, Tensor]  # rows and columns [N] of a batch


class CausalModel(Protocol):
    """What a scorer needs; a state is a value that no call changes.

    Ids from `tokens` on, which the tokenizer does not have, are never generated.
    """

    device: str
    max_length: int | None
    tokens: int | None
    copies_state: bool
    shares_state: bool
    defers: bool

    def __call__(
        self, tokens_BT: Tensor, state: Any, at: Places | None = None, *, final: bool = False
    ) -> tuple[Tensor, Any]:
        """Logits [B, T, V], or [N, V] at some places, and the state after them, which nobody reads if `final`."""

    def fork(self, state: Any, rows: Tensor) -> Any:
        """The state's sequences named by `rows`, each as often as it is named."""


class HopeModel:
    """One of our models.

    Attributes:
        max_length: tokens of context allowed; None where the state does not grow.
        memories: what can be written at test time, of `titans`, `cms.0`, `cms.1` ...
        copies_state: False: many forks run one after another on the same state, which costs no copy.
        defers: writes of a segment wait until the token after it is known.
        settings: how memories are written at test time; None as in training.
        tokens: how many ids the tokenizer has; a padded vocabulary's other rows get no probability.
    """

    copies_state = False
    shares_state = True
    defers = True

    def __init__(
        self,
        model: LanguageModel,
        device: str = "cpu",
        *,
        length: int = 512,
        settings: MemorySettings | None = None,
        tokens: int | None = None,
    ) -> None:
        self.model, self.device, self.settings, self.tokens = model.eval(), device, settings, tokens
        self.head = model.head
        attends = variant_parts(model.config)[0] == "attention"
        full = attends and not model.config.attention.window
        mixer = () if attends else ("titans",)
        self.memories = (*mixer, *(f"cms.{n}" for n in range(model.levels)))
        self.max_length = ATTENTION_REACH * length if full else None

    def __call__(
        self, tokens_BT: Tensor, state: State | None, at: Places | None = None, *, final: bool = False
    ) -> tuple[Tensor, State]:
        del final
        if state is None:
            state = self.model.initial(len(tokens_BT), self.settings)
        logits_BTV, state = self.model(tokens_BT, state)
        return (logits_BTV if at is None else logits_BTV[at])[..., : self.tokens], state

    def with_hidden(self, tokens_BT: Tensor, state: State | None) -> tuple[Tensor, Tensor, State]:
        """Logits, what the head is given [B, T, D], and the state after them."""
        layers: list[
            tuple[Tensor, ...]
        ] = []  # by segment; the head itself may run once more for a teach signal
        logits_BTV, state = self.model(tokens_BT, state, layers, self.settings if state is None else None)
        hidden_BTD = self.model.norm(torch.cat([outputs[-1] for outputs in layers], 1))
        return logits_BTV[..., : self.tokens], hidden_BTD, state

    def fork(self, state: State, rows: Tensor) -> State:
        """Chosen sequences; the same value where every sequence is chosen once and in order."""
        return select(state, rows)


class HFModel:
    """Any causal model of transformers; its key-value cache is the state.

    Logits are the model's own, padded vocabulary included, as lm-eval's `hf` takes them.
    """

    copies_state = True
    defers = False

    def __init__(self, model: Any, device: str = "cpu", tokens: int | None = None) -> None:
        self.model, self.device, self.tokens = model.to(device).eval(), device, tokens
        limit = getattr(model.config, "max_position_embeddings", None)
        self.max_length = int(limit) if limit else None
        self.head = model.get_output_embeddings()
        # Recurrent states of transformers take one token at a time, so such a model reads every text whole.
        self.shares_state = not getattr(model, "_is_stateful", False)

    def __call__(
        self, tokens_BT: Tensor, state: Any, at: Places | None = None, *, final: bool = False
    ) -> tuple[Tensor, Any]:
        """Logits and the cache after them; the cache given is not changed."""
        cached = self.shares_state and not (final and state is None)
        options = {"past_key_values": copied(state)} if state is not None else {}
        # The head costs as much as several blocks: hidden states that nobody asks for do not reach it.
        chosen = self.head is not None and at is not None
        hook = self.head.register_forward_pre_hook(lambda _, given: (given[0][at][None],)) if chosen else None
        try:
            out = self.model(input_ids=tokens_BT, use_cache=cached, **options)
        finally:
            if hook is not None:
                hook.remove()
        logits: Tensor = out.logits
        if at is not None:
            logits = logits[0] if chosen else logits[at]
        return logits, out.past_key_values if cached else None

    def with_hidden(self, tokens_BT: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Logits, what the head is given [B, T, D], and the cache after them."""
        given: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            logits_BTV, after = self(tokens_BT, state)
        finally:
            hook.remove()
        return logits_BTV, given[0], after

    def fork(self, state: Any, rows: Tensor) -> Any:
        forked = copied(state)
        forked.batch_select_indices(rows)
        return forked


def copied(cache: Any) -> Any:
    """A cache of its own: layers replace their tensors when they grow, so the tensors themselves can be shared."""
    copies = copy.copy(cache)
    copies.layers = [copy.copy(layer) for layer in cache.layers]
    return copies


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked.

    Attributes:
        model: the model.
        about: what results say of it.
        length: tokens of a training window.
        meta: of the checkpoint; empty for models of transformers.
        own_tokenizer: None where it was trained on a task, which has no text.
    """

    model: HopeModel | HFModel
    about: Checkpoint
    length: int
    meta: Mapping[str, Any]
    own_tokenizer: HopeTokenizer | HFTokenizer | None

    @property
    def tokenizer(self) -> HopeTokenizer | HFTokenizer:
        if self.own_tokenizer is None:
            raise InputError(
                f"{self.about.run}: was trained on a task, which has no text; use `hope-eval task`"
            )
        return self.own_tokenizer


def load(
    folder: Path,
    tokenizer: Path | None = None,
    device: str = "cpu",
    length: int = 512,
    dtype: torch.dtype | None = None,
) -> Loaded:
    """Load a checkpoint of ours, or a folder of transformers with `model_type` in its config.json.

    Args:
        folder: the checkpoint.
        tokenizer: its tokenizer's folder; None looks for the one with the hash that the checkpoint names.
        device: where to compute.
        length: taken as the training length where the checkpoint does not say.
        dtype: to compute in; None: as the folder has it.

    Raises:
        InputError: missing, damaged, without safetensors, or of another tokenizer.
    """
    if not (folder / "config.json").exists():
        raise InputError(no_checkpoint(folder / "config.json"))
    config = read_json(folder / "config.json", "save the model again")
    if "model_type" in config and not (folder / "meta.json").is_file():
        return _load_hf(folder, tokenizer, device, length, dtype)
    model, meta = load_weights(folder, device)
    where = tokenizer or find_tokenizer(folder, str(meta.get("tokenizer_sha256", "")))
    length = trained_length(folder, meta, length)
    if is_foreign(where):
        check_tokenizer(folder, model, meta, sha256_file(where / META), 0, where)
        # All rows of a padded vocabulary count, as they do in transformers.
        wrapped = HopeModel(model.to(dtype=dtype), device, length=length)
        return Loaded(wrapped, describe(folder, model, meta), length, meta, HFTokenizer(where))
    inner = Tokenizer.load(where)
    check_tokenizer(folder, model, meta, inner.sha256, inner.vocab_size, tokenizer or folder)
    wrapped = HopeModel(model.to(dtype=dtype), device, length=length, tokens=inner.vocab_size)
    return Loaded(wrapped, describe(folder, model, meta), length, meta, HopeTokenizer(inner))


def load_weights(folder: Path, device: str = "cpu") -> tuple[LanguageModel, dict[str, Any]]:
    """Load the model and the metadata of a checkpoint of ours.

    Raises:
        InputError: missing or damaged.
    """
    prepare_cpu()
    try:
        return checkpoint.load(folder, device=device)
    except ModelInputError as error:
        raise InputError(str(error)) from None


def find_tokenizer(folder: Path, sha256: str) -> Path:
    """The tokenizer with a hash in the checkpoint's folder, or in `data/tokenizer` of a folder above it."""
    above = folder.resolve().parents[:5]
    for place in (folder / "tokenizer", *(parent / "data" / "tokenizer" for parent in above)):
        model = place / (META if is_foreign(place) else MODEL)
        if model.is_file() and (not sha256 or sha256_file(model) == sha256):
            return place
    raise InputError(
        f"{folder}: its tokenizer ({sha256[:12] or 'any'}) is not in {folder / 'tokenizer'} nor in data/tokenizer "
        "of a folder above; name it with --tokenizer DIR (lm_eval: tokenizer=DIR)"
    )


def check_tokenizer(
    folder: Path, model: LanguageModel, meta: dict[str, Any], sha256: str, size: int, where: Path
) -> None:
    """Refuse a checkpoint that was made with another tokenizer; a padded vocabulary may be larger than it."""
    made_with = str(meta.get("tokenizer_sha256") or sha256)
    if made_with != sha256 or model.config.vocab_size < size:
        raise InputError(
            f"{folder}: its tokenizer is {made_with[:12]} ({model.config.vocab_size} tokens), but "
            f"{where} holds {sha256[:12]} ({size or 'of Hugging Face'}); name the --tokenizer "
            "it was made with, or train again"
        )


def _load_hf(folder: Path, where: Path | None, device: str, length: int, dtype: torch.dtype | None) -> Loaded:
    try:
        import transformers  # noqa: PLC0415 (optional, and slow to import)
    except ImportError:
        raise InputError(
            f"{folder} is a model of transformers; pip install 'hope-eval[lm-eval]' to score it"
        ) from None
    transformers.logging.disable_progress_bar()
    prepare_cpu()
    ours = read_json(folder / "config.json", "save the model again")["model_type"] == "hope"
    if ours:
        from hope_model import hf  # noqa: PLC0415 (registers the type)

        if not (folder / hf.RECORD).is_file():
            raise InputError(f"{folder / hf.RECORD}: no such file; export the checkpoint again")
        try:
            hf.check(folder, ("config.json",))  # before its values are read
        except ModelInputError as error:
            raise InputError(str(error)) from None
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(
            f"{folder}: no safetensors here; pickled weights are not read, save the model as safetensors"
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        _check_types(weights)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=dtype or "auto", **options
        )
    except (InputError, ModelInputError) as error:
        raise InputError(str(error)) from None
    except Exception as error:  # noqa: BLE001 (of a damaged folder, from four libraries)
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: cannot be loaded ({reason}); save the model again") from None
    if report["missing_keys"]:
        # transformers would draw them at random and say so in a warning.
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"{weights[0]}: {missing[0]} is missing ({len(missing)} in all); save the model again"
        )
    if ours:
        return _load_exported(folder, model, where, device, length)
    tokenizer = HFTokenizer(where or folder)
    wrapped = HFModel(model, device, tokenizer.vocab_size)
    return Loaded(wrapped, describe_foreign(folder, model), wrapped.max_length or 2048, {}, tokenizer)


def _check_types(weights: Sequence[Path]) -> None:
    """Refuse weights that are no floating-point numbers: transformers would cast them."""
    for path in weights:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                kind = file.get_slice(name).get_dtype()
                if kind not in ("F16", "BF16", "F32", "F64"):
                    raise InputError(
                        f"{path}: {name} is of type {kind}; only floating-point weights are read"
                    )


def _load_exported(folder: Path, model: Any, where: Path | None, device: str, length: int) -> Loaded:
    """A checkpoint of ours that went through `hope_model.hf.export`: scored as the checkpoint itself."""
    meta, inner = model.config.trained, model.model.to(device)
    if where is None and (folder / MODEL).is_file():
        tokenizer = Tokenizer(read_bytes(folder / MODEL))
    else:
        tokenizer = Tokenizer.load(where or find_tokenizer(folder, str(meta.get("tokenizer_sha256", ""))))
    check_tokenizer(folder, inner, meta, tokenizer.sha256, tokenizer.vocab_size, where or folder)
    length = trained_length(folder, meta, length)
    wrapped = HopeModel(inner, device, length=length, tokens=tokenizer.vocab_size)
    return Loaded(wrapped, describe(folder, inner, meta), length, meta, HopeTokenizer(tokenizer))
