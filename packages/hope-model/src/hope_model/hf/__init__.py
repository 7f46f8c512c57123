"""The bridge to transformers: `AutoConfig`, `AutoModelForCausalLM`, `AutoTokenizer` and `generate` for our checkpoints.

    import hope_model.hf as bridge                           # registers the model type "hope"
    bridge.export("runs/hope/checkpoint", "data/tokenizer", "hope-hf")
    model = AutoModelForCausalLM.from_pretrained("hope-hf")

An exported folder holds what transformers reads (config.json with a `model_type`, safetensors, the tokenizer) and
the hash of every file; no code lies in it and none is loaded from it. The cache that `generate` carries is our
`State`. Needs hope-model[hf].
"""

import transformers

from hope_model.hf.cache import HopeCache
from hope_model.hf.config import HopeConfig
from hope_model.hf.export import export, from_checkpoint
from hope_model.hf.model import HopeForCausalLM
from hope_model.hf.record import RECORD, check
from hope_model.hf.tokenizer import HopeTokenizer

__all__ = [
    "RECORD",
    "HopeCache",
    "HopeConfig",
    "HopeForCausalLM",
    "HopeTokenizer",
    "check",
    "export",
    "from_checkpoint",
    "register",
]


def register() -> None:
    """Make the model type known to the Auto classes; done when this module is imported."""
    transformers.AutoConfig.register("hope", HopeConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(HopeConfig, HopeForCausalLM, exist_ok=True)
    transformers.AutoTokenizer.register(HopeConfig, slow_tokenizer_class=HopeTokenizer, exist_ok=True)


register()
