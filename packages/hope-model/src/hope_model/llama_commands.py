"""Command lines of `hope-model convert` and `hope-model export`."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "convert",
        help="a Llama, Mistral, Qwen2, Qwen3 or SmolLM folder becomes a checkpoint of ours",
        description="Read config.json, safetensors and tokenizer of a folder that transformers reads. What cannot be "
        "represented is refused by name; no code of a model runs, and no pickle is read.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of Hugging Face")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: SOURCE")
    parser.set_defaults(function=_convert)
    parser = commands.add_parser(
        "export",
        help="a checkpoint of ours becomes a folder that transformers reads",
        description="With a tokenizer of Hugging Face, a Transformer becomes a Llama, Mistral or Qwen, which is read "
        "without our code; with one of hope-data, any variant becomes a model of the type 'hope' (hope_model.hf).",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="one of ours")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: the one inside CHECKPOINT")
    parser.set_defaults(function=_export)


def _convert(arguments: argparse.Namespace) -> None:
    from hope_model.llama.convert import convert  # noqa: PLC0415 (torch is slow to import)

    print(convert(arguments.source, arguments.out, arguments.tokenizer))


def _export(arguments: argparse.Namespace) -> None:
    from hope_model.conversation import is_ours  # noqa: PLC0415
    from hope_model.llama.convert import export  # noqa: PLC0415

    folder = arguments.tokenizer or arguments.checkpoint / "tokenizer"
    if is_ours(folder):
        from hope_model import hf  # noqa: PLC0415 (transformers is optional)

        print(hf.export(arguments.checkpoint, folder, arguments.out))
    else:
        print(export(arguments.checkpoint, arguments.out, folder))
