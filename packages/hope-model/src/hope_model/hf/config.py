"""Configuration that transformers reads."""

from typing import Any

import transformers

from hope_model.config import ModelConfig


class HopeConfig(transformers.PretrainedConfig):  # type: ignore[misc]  # transformers is not typed
    """Configuration for transformers.

    Args:
        hope: `ModelConfig.to_dict()`, the one home of every value.
        trained: what the checkpoint's meta.json says of its training: run, seed, length, tokenizer and so on.
        tokenizer_size: number of ids that the tokenizer has; the rows of a larger vocabulary are padding.
    """

    model_type = "hope"

    def __init__(
        self,
        hope: dict[str, Any] | None = None,
        trained: dict[str, Any] | None = None,
        tokenizer_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.hope, self.trained = ModelConfig.from_dict(hope or {}).to_dict(), dict(trained or {})
        self.vocab_size = self.hope["vocab_size"]
        self.tokenizer_size = self.vocab_size if tokenizer_size is None else tokenizer_size
        self.hidden_size, self.num_hidden_layers = self.hope["dim"], self.hope["layers"]
        kwargs.setdefault("tie_word_embeddings", self.hope["tied_embedding"])
        kwargs.setdefault("eos_token_id", 1)
        # Documents begin after the end of the one before, so `generate()` without a prompt begins there too.
        kwargs.setdefault("bos_token_id", kwargs["eos_token_id"])
        kwargs.setdefault("architectures", ["HopeForCausalLM"])
        super().__init__(**kwargs)
