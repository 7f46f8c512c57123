"""A checkpoint through transformers: Auto classes, `generate` with our state as its cache, tokens counted.

python bridge.py CHECKPOINT TOKENIZER FILE [--prompt 600] [--new 48]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, logging

from hope_model import checkpoint, hf


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, text in (
        ("checkpoint", "of ours"),
        ("tokenizer", "its folder"),
        ("file", "prompt: its beginning"),
    ):
        parser.add_argument(name, type=Path, help=text)
    parser.add_argument("--prompt", type=int, default=600, help="tokens")
    parser.add_argument("--new", type=int, default=48, help="tokens to write")
    given = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        folder = hf.export(given.checkpoint, given.tokenizer, Path(place) / "hf")
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt_1T = tokenizer(given.file.read_text("utf-8"), return_tensors="pt")["input_ids"][:, : given.prompt]
    if prompt_1T.shape[1] < given.prompt:
        sys.exit(f"error: {given.file} has {prompt_1T.shape[1]} tokens; --prompt asks for {given.prompt}")

    fed: list[int] = []
    model.model.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape[1]))
    options: dict[str, Any] = {"max_new_tokens": given.new, "do_sample": False, "eos_token_id": None}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    start = time.perf_counter()
    out = model.generate(prompt_1T, attention_mask=torch.ones_like(prompt_1T), **options)
    seconds, position = time.perf_counter() - start, out.past_key_values.state.position

    ours, _ = checkpoint.load(given.checkpoint)
    written, apart = [], 0.0
    with torch.inference_mode():
        logits, state = ours(prompt_1T)
        for step in range(given.new):
            apart = max(apart, float((logits[:, -1] - out.logits[step]).abs().max()))
            token = logits[:, -1:].argmax(-1)
            written.append(int(token))
            logits, state = ours(token, state)
    theirs = out.sequences[0, given.prompt :].tolist()
    again = given.new * given.prompt + given.new * (given.new - 1) // 2
    print(
        f"{type(config).__name__} {type(model).__name__} {type(tokenizer).__name__}, {config.hope['variant']}"
    )
    print(f"calls {len(fed)}, first of {fed[0]} tokens, all others of {max(fed[1:])}; state at {position}")
    print(f"tokens fed {sum(fed)}; without a cache {again}; {seconds:.1f} s")
    print(
        f"equal to our own loop: {theirs == written} ({len(set(written))} different tokens of {given.new}); "
        f"logits at most {apart:.1e} apart"
    )
    print(repr(tokenizer.decode(theirs)))


if __name__ == "__main__":
    main()
