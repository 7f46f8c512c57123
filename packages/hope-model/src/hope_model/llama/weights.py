"""The tensors of a Llama-family folder by our names, and back; several files, safetensors only."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hope_model.checkpoint import PRECISIONS, WEIGHTS
from hope_model.config import ModelConfig
from hope_model.counting import build_meta
from hope_model.errors import InputError
from hope_model.files import parse_json

INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
IGNORED = ("rotary_emb.inv_freq",)  # a constant that old folders hold


def names(config: ModelConfig) -> dict[str, list[tuple[str, int]]]:
    """Our parameters, each with the tensors it is made of, in order, and how many rows each gives."""
    d = config.head_dim
    rows = {"q": config.query_heads * d, "k": config.kv_heads * d, "v": config.kv_heads * d}
    table = {"embed.weight": [("model.embed_tokens.weight", config.vocab_size)]}
    for n in range(config.layers):
        ours, theirs = f"blocks.{n}", f"model.layers.{n}"
        table[f"{ours}.mixer_norm.weight"] = [(f"{theirs}.input_layernorm.weight", config.dim)]
        table[f"{ours}.channel_norm.weight"] = [(f"{theirs}.post_attention_layernorm.weight", config.dim)]
        for kind, qkv, out in (
            ("weight", True, True),
            ("bias", config.attention.bias != "none", config.attention.bias == "all"),
        ):
            if qkv:
                parts = [(f"{theirs}.self_attn.{x}_proj.{kind}", size) for x, size in rows.items()]
                table[f"{ours}.mixer.qkv.{kind}"] = parts
            if out:
                table[f"{ours}.mixer.out.{kind}"] = [(f"{theirs}.self_attn.o_proj.{kind}", config.dim)]
            if kind == "weight" or config.mlp_bias:
                parts = [(f"{theirs}.mlp.{x}_proj.{kind}", config.hidden) for x in ("gate", "up")]
                table[f"{ours}.channel.up.{kind}"] = parts
                table[f"{ours}.channel.down.{kind}"] = [(f"{theirs}.mlp.down_proj.{kind}", config.dim)]
        if config.attention.qk_norm:
            for x in "qk":
                table[f"{ours}.mixer.{x}_norm.weight"] = [(f"{theirs}.self_attn.{x}_norm.weight", d)]
    table["norm.weight"] = [("model.norm.weight", config.dim)]
    if not config.tied_embedding:
        table["head.weight"] = [("lm_head.weight", config.vocab_size)]
    return table


def read(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Return a folder's tensors by our names, bit by bit as they are.

    Raises:
        InputError: names the file and the tensor that is missing, unknown, quantised or of another shape.
    """
    with ExitStack() as stack:
        where: dict[str, tuple[Path, Any]] = {}
        for path in _files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} cannot be read as safetensors: {error}") from None
            where |= dict.fromkeys(file.keys(), (path, file))
        table = names(config)
        _check(folder, where, table, config)
        return {
            ours: _joined(ours, [where[name][1].get_tensor(name) for name, _ in parts])
            for ours, parts in table.items()
        }


def split(tensors: Mapping[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by Hugging Face's names, the inverse of `read`."""
    for ours, parts in names(config).items():
        pieces = torch.split(tensors[ours], [rows for _, rows in parts])
        yield from ((name, piece.contiguous()) for (name, _), piece in zip(parts, pieces, strict=True))


def _files(folder: Path) -> list[Path]:
    index, single = folder / INDEX, folder / WEIGHTS
    if index.is_file():
        shards = parse_json(index.read_bytes(), str(index)).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in shards.values()
        ):
            raise InputError(f"{index} has no weight_map from tensors to files of this folder")
        files = [folder / name for name in sorted(set(shards.values()))]
        if missing := [path for path in files if not path.is_file()]:
            raise InputError(f"{missing[0]} is missing, and {index.name} names it; download it again")
        return files
    if single.is_file():
        return [single]
    if pickled := sorted(path for pattern in PICKLED for path in folder.glob(pattern)):
        raise InputError(
            f"{folder} holds pickled weights only ({pickled[0].name}), which can run code and are never read; "
            "save the model as safetensors"
        )
    raise InputError(f"{single} is missing; is {folder} a model of transformers?")


def _check(
    folder: Path,
    where: Mapping[str, tuple[Path, Any]],
    table: Mapping[str, list[tuple[str, int]]],
    config: ModelConfig,
) -> None:
    own = dict(build_meta(config).named_parameters())
    wanted = {name: (rows, *own[ours].shape[1:]) for ours, parts in table.items() for name, rows in parts}
    for name, shape in wanted.items():
        if name not in where:
            raise InputError(f"{folder}: the tensor {name} is missing; download the folder again")
        part = where[name][1].get_slice(name)
        if part.get_dtype() not in PRECISIONS:
            raise InputError(
                f"{where[name][0]}: {name} is of type {part.get_dtype()}, not {', '.join(PRECISIONS)}; "
                "quantised weights cannot be converted, others after saving them as one of these"
            )
        if tuple(part.get_shape()) != shape:
            raise InputError(
                f"{where[name][0]}: {name} has shape {part.get_shape()}, config.json says {list(shape)}"
            )
    for name in where.keys() - wanted.keys():
        if name == "lm_head.weight" and _same(where, name, "model.embed_tokens.weight"):
            continue
        if not name.endswith(IGNORED):
            raise InputError(f"{where[name][0]}: {name[:100]!r} has no place in this architecture")


def _same(where: Mapping[str, tuple[Path, Any]], one: str, other: str) -> bool:
    return torch.equal(*(where[name][1].get_tensor(name) for name in (one, other)))


def _joined(ours: str, parts: list[Tensor]) -> Tensor:
    if len({part.dtype for part in parts}) > 1:
        raise InputError(
            f"{ours}: its parts are of {', '.join(sorted({str(x.dtype) for x in parts}))}, not of one type"
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)
