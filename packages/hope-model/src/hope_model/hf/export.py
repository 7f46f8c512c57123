"""From one of our checkpoints to a folder that transformers reads."""

from pathlib import Path

from hope_model import checkpoint
from hope_model.errors import InputError
from hope_model.files import new_folder, refuse_existing
from hope_model.hf.config import HopeConfig
from hope_model.hf.model import HopeForCausalLM
from hope_model.hf.tokenizer import VOCABULARY, HopeTokenizer


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
    refuse_existing(out)
    if not source.is_file():
        raise InputError(f"{source} is missing; is {tokenizer} a tokenizer folder?")
    model = from_checkpoint(folder)
    checkpoint.check_tokenizer_hash(Path(folder), model.config.trained, source)
    try:
        pieces = HopeTokenizer(str(source))
    except RuntimeError:
        raise InputError(f"{source}: is no sentencepiece model; name the tokenizer's folder") from None
    if pieces.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{source}: has {pieces.vocab_size} tokens, more than the {model.config.vocab_size} of {folder}; "
            "name the tokenizer it was trained with"
        )
    if not pieces.lossless:
        raise InputError(
            f"{source}: has no token for a space, so text would not come back as it was; train the tokenizer again"
        )
    model.config.tokenizer_size = pieces.vocab_size
    with new_folder(out) as beside:
        model.save_pretrained(beside)
        pieces.save_pretrained(beside)
    return out
