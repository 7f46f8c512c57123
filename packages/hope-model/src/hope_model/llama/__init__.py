"""Models of the Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM) as checkpoints of ours, and back.

    from hope_model import checkpoint, llama
    llama.convert("SmolLM2-135M", "smollm")              # also: hope-model convert
    model, meta = checkpoint.load("smollm")
    llama.export("smollm", "SmolLM2-again")              # also: hope-model export

Only JSON and safetensors are read: no code, no pickle; transformers is not needed.
"""

from hope_model.llama.convert import convert, export

__all__ = ["convert", "export"]
