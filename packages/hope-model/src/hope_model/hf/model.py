"""`LanguageModel` behind the interface of transformers.

Letters: B sequences, T tokens, D width, V vocabulary.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from hope_model.config import ModelConfig
from hope_model.hf import record
from hope_model.hf.cache import HopeCache
from hope_model.hf.config import HopeConfig
from hope_model.model import LanguageModel
from hope_model.state import State


class HopeForCausalLM(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """Our model; its weights are the parameters of `LanguageModel` under `model.`."""

    config_class = HopeConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys: ClassVar = {"model.head.weight": "model.embed.weight"}
    # A state cannot forget its last tokens, so transformers refuses assisted generation.
    _is_stateful = True

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(ModelConfig.from_dict(config.hope))
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load as transformers does, after comparing the folder's files with their recorded hashes.

        Raises:
            InputError: a file is missing or was changed.
        """
        record.check(Path(str(pretrained_model_name_or_path)))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[no-any-return]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, and record the hashes of what was written."""
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        written = [*folder.glob("*.safetensors*"), *folder.glob("*config.json")]
        record.add(folder, [path.name for path in written if not path.name.startswith("tokenizer")])

    def _init_weights(self, module: Any) -> None:
        """Nothing: `LanguageModel` draws its own weights."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.model.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.model.head = new_embeddings

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resize as transformers does; every id of the new vocabulary counts as the tokenizer's."""
        before = self.config.vocab_size
        embed: nn.Embedding = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        size = embed.num_embeddings
        if size != before:
            self.model.config = dataclasses.replace(self.model.config, vocab_size=size)
            self.config.hope["vocab_size"] = self.config.vocab_size = self.config.tokenizer_size = size
        if not mean_resizing and size > before:
            for part in (self.model.embed, self.model.head):
                nn.init.normal_(part.weight.data[before:], std=self.model.config.init_std)
        return embed

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: HopeCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, the loss if `labels` are given, and the state as `past_key_values`.

        Outside training, ids that the tokenizer does not have get no probability.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], or of all columns so far. What it masks on the left is not read. A batch that
                is padded on the right leaves no state.
            past_key_values: what an earlier call returned; changes in place.
            labels: [B, T], of the tokens themselves; -100 is left out.
            use_cache: False returns no state.
            logits_to_keep: of the last so many columns (0: all), or of these columns.
            output_hidden_states: return the embeddings and every block's output, the last one normed.
            kwargs: of the loss, `num_items_in_batch` above all.

        Raises:
            ValueError: what a recurrent model cannot do: see the message.
        """
        _refuse_unusable(input_ids, past_key_values, attention_mask, kwargs)
        assert input_ids is not None  # noqa: S101
        self.model.check_tokens(input_ids)
        cache = HopeCache() if past_key_values is None else past_key_values
        ends = cache.begin(input_ids, attention_mask)
        if ends and use_cache:
            raise ValueError("HOPE's state would read the padding: pad prompts on the left, not on the right")
        want_hidden = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        logits_BTV, *hidden = cache.read(input_ids, partial(self._run, want_hidden=want_hidden))
        if not self.training and self.config.tokenizer_size < self.config.vocab_size:
            ids = torch.arange(self.config.vocab_size, device=logits_BTV.device)
            logits_BTV = logits_BTV.masked_fill(ids >= self.config.tokenizer_size, -torch.inf)
        loss = None
        if labels is not None:
            given, labels = labels, cache.without_first(labels)
            if kwargs.get("num_items_in_batch") is not None and labels is not given:
                # Trainer has counted the tokens after padding, too, which are no targets.
                kept, counted = ((x[:, 1:] != -100).sum().clamp(min=1) for x in (labels, given))
                kwargs["num_items_in_batch"] = kwargs["num_items_in_batch"] * kept / counted
            loss = self.loss_function(
                logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV[:, columns],
            past_key_values=None if use_cache is False or ends else cache,
            hidden_states=tuple(hidden) or None,
        )

    def _run(
        self, tokens_BT: Tensor, state: State | None, *, want_hidden: bool
    ) -> tuple[list[Tensor], State]:
        """Logits, then hidden states if they are wanted, and the state after the tokens."""
        if not want_hidden:
            logits_BTV, state = self.model(tokens_BT, state)
            return [logits_BTV], state
        segments: list[tuple[Tensor, ...]] = []
        logits_BTV, state = self.model(tokens_BT, state, segments)
        *blocks, last = (torch.cat(outputs, 1) for outputs in zip(*segments, strict=True))
        return [logits_BTV, self.model.embed(tokens_BT), *blocks, self.model.norm(last)], state

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: HopeCache | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The tokens that the state has not seen."""
        if is_first_iteration and attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("HOPE reads every token: pad prompts on the left, not on the right")
        if past_key_values is not None and not is_first_iteration:
            attention_mask = None  # all ones by now; looking would wait for the device at every token
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs


def _refuse_unusable(
    input_ids: Tensor | None, cache: Any, attention_mask: Tensor | None, options: dict[str, Any]
) -> None:
    """Raise ValueError for what a model without positions and attention cannot use, and drop what it need not."""
    if input_ids is None or options.pop("inputs_embeds", None) is not None:
        raise ValueError("HOPE learns from the ids that it reads: give input_ids, not inputs_embeds")
    if cache is not None and not isinstance(cache, HopeCache):
        raise ValueError(f"past_key_values is a {type(cache).__name__}; give what an earlier call returned")
    if options.pop("output_attentions", False):
        raise ValueError("HOPE has no attention weights to return: leave out output_attentions")
    position_ids = options.pop("position_ids", None)
    if position_ids is not None:
        jumps = position_ids.diff(dim=-1) != 1
        if attention_mask is not None:
            jumps = jumps & attention_mask[:, -jumps.shape[1] :].bool()
        if bool(jumps.any()):
            raise ValueError("HOPE reads tokens in their order: position_ids must count up by one")
