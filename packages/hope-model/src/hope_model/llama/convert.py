"""From a Llama-family folder of Hugging Face to a checkpoint of ours, and back."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from hope_model import checkpoint
from hope_model.config import ModelConfig
from hope_model.errors import InputError
from hope_model.files import new_folder, parse_json, refuse_existing, sha256, write_atomic
from hope_model.llama import settings, weights
from hope_model.ranges import shown

# What Hugging Face's tokenizers read; the first must be there.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
)
GENERATION = "generation_config.json"


def convert(source: Path | str, out: Path | str, tokenizer: Path | str | None = None) -> Path:
    """Write a checkpoint of ours with the weights, the architecture and the tokenizer of a Llama-family folder.

    Args:
        source: folder with config.json, safetensors and a fast tokenizer.
        out: a new folder; it appears when it is complete.
        tokenizer: folder of its tokenizer, where that is another one.

    Raises:
        InputError: `out` exists, or something cannot be represented or read; the message names it.
    """
    source, out = Path(source), Path(out)
    folder = Path(tokenizer or source)
    refuse_existing(out)
    for place in (source, folder):
        _refuse_pipes(place)
    theirs = _json(source / checkpoint.CONFIG, "is it a model of transformers?")
    try:
        config = settings.to_ours(theirs)
    except InputError as error:
        raise InputError(f"{source / checkpoint.CONFIG}: {error}") from None
    _check_tokenizer(folder, config)
    tensors = weights.read(source, config)
    length = theirs.get("max_position_embeddings", 2048)
    meta: dict[str, Any] = {
        "run": source.resolve().name,
        "length": length,
        "tokenizer_sha256": sha256(folder / TOKENIZER_FILES[0]),
        "source": {"name": source.resolve().name, "config": theirs, "sha256": _hashes(source)},
    }
    if (source / GENERATION).is_file():
        meta["source"]["generation_config"] = _json(source / GENERATION, "")
    with new_folder(out) as beside:
        _copy_tokenizer(folder, beside / checkpoint.TOKENIZER)
        # What transformers looks for to choose the tokenizer's class.
        kind = json.dumps({"model_type": theirs["model_type"]}) + "\n"
        write_atomic(beside / checkpoint.TOKENIZER / checkpoint.CONFIG, kind.encode())
        checkpoint.write(beside, tensors, config, meta)
    return out


def export(folder: Path | str, out: Path | str, tokenizer: Path | str | None = None) -> Path:
    """Write a Transformer of ours as a folder that transformers reads without our code; the inverse of `convert`.

    Args:
        folder: checkpoint of a `transformer`, converted or trained.
        out: a new folder; it appears when it is complete.
        tokenizer: folder of a Hugging Face tokenizer; None: the one inside the checkpoint.

    Raises:
        InputError: `out` exists, something is damaged, or no architecture of the Llama family fits.
    """
    folder, out = Path(folder), Path(out)
    refuse_existing(out)
    own = Path(tokenizer or folder / checkpoint.TOKENIZER)
    _refuse_pipes(own)
    config, meta = checkpoint.read(folder)
    _check_tokenizer(own, config)
    checkpoint.check_tokenizer_hash(folder, meta, own / TOKENIZER_FILES[0])
    tensors = load_file(folder / checkpoint.WEIGHTS)
    hidden = len(tensors["blocks.0.channel.up.weight"]) // 2 if "blocks.0.channel.up.weight" in tensors else 0
    source = meta.get("source") or {}
    before: dict[str, Any] = source.get("config") or {}
    theirs = settings.from_ours(config, hidden, int(meta.get("length", 2048)), before.get("model_type", ""))
    if before:  # the same model, so its own words are right, and hold what ours have no key for
        theirs = before
    with new_folder(out) as beside:
        named = dict(weights.split(tensors, settings.to_ours(theirs)))
        save_file(named, beside / checkpoint.WEIGHTS, metadata={"format": "pt"})
        write_atomic(beside / checkpoint.CONFIG, _dump(theirs))
        if "generation_config" in source:
            write_atomic(beside / GENERATION, _dump(source["generation_config"]))
        _copy_tokenizer(own, beside)
    return out


def _refuse_pipes(folder: Path) -> None:
    """Refuse what is no file where one could be: a pipe would wait for ever."""
    names = ("*.json", "*.model", "*.safetensors")
    for path in sorted(path for name in names for path in folder.glob(name)):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no regular file; download it again, or remove it")


def _json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {remedy}") from None


def _dump(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _hashes(source: Path) -> dict[str, str]:
    return {
        path.name: sha256(path)
        for path in sorted((source / checkpoint.CONFIG, *source.glob("*.safetensors")))
    }


def _check_tokenizer(folder: Path, config: ModelConfig) -> None:
    """Refuse a tokenizer with code of its own, one that is not fast, or one with more tokens than the model."""
    path = folder / TOKENIZER_FILES[0]
    if not path.is_file():
        raise InputError(
            f"{path} is missing; "
            "save the tokenizer with transformers as a fast one, or name its folder with --tokenizer"
        )
    about = folder / TOKENIZER_FILES[1]
    if about.is_file() and _json(about, "").get("auto_map"):
        raise InputError(f"{about}: auto_map: this tokenizer runs code of its own, which is never run here")
    values = _json(path, "")
    model, added = values.get("model"), values.get("added_tokens", [])
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not isinstance(added, list):
        raise InputError(f"{path} is no tokenizer of Hugging Face: it has no model with a vocab")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    ids += [token.get("id") for token in added if isinstance(token, dict)]
    if wrong := [number for number in ids if type(number) is not int]:
        raise InputError(f"{path}: {shown(wrong[0])} is no token's number")
    if max(ids, default=-1) >= config.vocab_size:
        raise InputError(
            f"{path} has {max(ids) + 1} tokens, more than the vocab_size {config.vocab_size} of the model; "
            "name the tokenizer it was trained with"
        )


def _copy_tokenizer(folder: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
