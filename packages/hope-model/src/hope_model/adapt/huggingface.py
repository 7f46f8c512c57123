"""A causal model of transformers as the host of a memory; its key-value cache becomes a value. Needs hope-model[hf].

Letters: B sequences, T tokens, H heads, S cached tokens, d head width, n tokens of one segment, V vocabulary.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from hope_model.adapt.host import Memory
from hope_model.adapt.memory import AttachedState
from hope_model.adapt.ours import OurHost
from hope_model.errors import InputError
from hope_model.hf.cache import Group, HopeCache
from hope_model.ranges import shown
from hope_model.state import repeat, select

# Arguments of a forward pass that a memory handles; a tensor under another name could not be cut into segments.
KNOWN = {
    *("input_ids", "attention_mask", "position_ids", "past_key_values", "labels", "use_cache"),
    *("logits_to_keep", "return_dict", "cache_position"),
}

PADDED = "an attached memory reads every token: give prompts of equal length, without padding"


class Cached(NamedTuple):
    """Keys and values of one attention layer; None where a layer keeps none."""

    k_BHSd: Tensor | None
    v_BHSd: Tensor | None
    seen: int


class AttachedCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """The memory's state, with the model's own inside it, in the place of a key-value cache."""

    is_croppable = False  # what was written cannot be taken back

    def __init__(self, state: AttachedState) -> None:
        super().__init__(layers=[])
        self.state = state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return self.state.position

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences named, each as often as it is named."""
        self.state = select(self.state, indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """What beam search asks for."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times in a row."""
        self.state = repeat(self.state, repeats)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: a write cannot be taken back."""
        if tokens_to_remove:
            raise InputError("an attached memory cannot forget tokens; use no assisted decoding")


class HuggingFaceHost:
    """Any causal language model whose only state is a plain key-value cache."""

    def __init__(self, model: Any) -> None:
        self._model, self._plain = model, model.forward
        self._config = model.config.get_text_config(decoder=True)
        self.layers = int(self._config.num_hidden_layers)
        if model.get_output_embeddings() is None:
            raise InputError(
                f"{type(model).__name__} has no output embeddings: it is no causal language model"
            )
        self._template = self._empty_layers()
        # Where logits are capped to (-c, c) by c tanh(z / c).
        self._cap = getattr(self._config, "final_logit_softcapping", None)
        self._scale = 0.0  # what the head's outputs are multiplied with; seen in the first pass

    def _empty_layers(self) -> list[Any]:
        model = self._model
        if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
            raise InputError(
                f"{type(model).__name__}: a memory needs a decoder whose only state is a key-value cache"
            )
        layers = DynamicCache(config=self._config).layers or [DynamicLayer() for _ in range(self.layers)]
        _check_layers(layers)
        return list(layers)

    @property
    def head(self) -> Tensor:
        weight: Tensor = self._model.get_output_embeddings().weight
        return weight

    def begin(self, batch: int) -> Any:
        del batch
        return tuple(Cached(None, None, 0) for _ in self._template)

    def run(self, tokens_BT: Tensor, inner: Any) -> tuple[Tensor, Any]:
        """Logits and the cache after them, as a value."""
        self._check_training()
        layers = [_filled(layer, old) for layer, old in zip(self._template, inner, strict=True)]
        given: list[Tensor] = []
        seen = None
        if not self._scale:
            head = self._model.get_output_embeddings()
            seen = head.register_forward_hook(lambda _module, _inputs, out: given.append(out))
        try:
            out = self._plain(input_ids=tokens_BT, past_key_values=Cache(layers=layers), use_cache=True)
        finally:
            if seen is not None:
                seen.remove()
        if given:
            self._scale = self._scale_of(given[-1], out.logits)
        return out.logits, tuple(_emptied(layer) for layer in layers)

    def _check_training(self) -> None:
        """A checkpointed layer runs again outside the loop over periods, where it would miss its delta."""
        training = self._model.training and torch.is_grad_enabled()
        if training and any(getattr(m, "gradient_checkpointing", False) for m in self._model.modules()):
            raise InputError("a memory cannot be trained through with gradient checkpointing; switch it off")

    def _scale_of(self, z_BTV: Tensor, logits_BTV: Tensor) -> float:
        """What the model multiplies the head's outputs with: the teach signal is the gradient before that."""
        z, logits = z_BTV.detach().float(), logits_BTV.detach().float()
        bent = z if self._cap is None else self._cap * torch.tanh(z / self._cap)
        divided = getattr(self._config, "logits_scaling", None) or 1.0
        for scale in (1.0, float(getattr(self._config, "logit_scale", None) or 1.0), 1 / float(divided)):
            if torch.allclose(scale * bent, logits, rtol=1e-2, atol=1e-3 * float(logits.abs().max())):
                return scale
        raise InputError(
            f"{type(self._model).__name__} changes what its head gives in a way that is not known; "
            "a memory cannot be attached to it"
        )

    def value_of(self, cache: Any) -> tuple[Any, int]:
        """A cache that the model has filled without a memory, as a value, and the tokens it has seen."""
        _check_layers(cache.layers)
        return tuple(_emptied(layer) for layer in cache.layers), cache.get_seq_length()

    def slope(self, logits_BnV: Tensor) -> Tensor | None:
        """What the head's outputs are multiplied with, times 1 - tanh^2 where logits are capped."""
        if self._cap is None:
            return None if self._scale == 1 else logits_BnV.new_full((1, 1, 1), self._scale)
        bent: Tensor = 1 - (logits_BnV / self._cap).square()
        return self._scale * bent

    def about(self) -> dict[str, Any]:
        keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        sizes = {key: getattr(self._config, key, None) for key in keys}
        return {"architecture": type(self._model).__name__, **sizes}

    def kinds(self) -> dict[str, Any]:
        return {"Cached": Cached}

    def check(self, inner: Any, position: int) -> None:
        layers = [layer for layer in inner if isinstance(layer, Cached)] if isinstance(inner, tuple) else []
        if len(layers) != len(self._template):
            raise InputError(f"inner has {len(layers)} layers of keys and values, not {len(self._template)}")
        B = next((len(layer.k_BHSd) for layer in layers if isinstance(layer.k_BHSd, Tensor)), 0)
        for n, (layer, (k, v, seen)) in enumerate(zip(self._template, layers, strict=True)):
            if k is None and v is None and not seen:
                continue
            window = getattr(layer, "sliding_window", None)
            shape = (B, min(position, window - 1) if window else position)
            for x in (k, v):
                if not isinstance(x, Tensor) or x.dim() != 4 or (x.shape[0], x.shape[2]) != shape:
                    what = list(x.shape) if isinstance(x, Tensor) else shown(x)
                    raise InputError(
                        f"inner[{n}] has {what} after {position} tokens, not [{B}, heads, {shape[1]}, width]"
                    )
                if not x.is_floating_point() or x.device.type != self.head.device.type:
                    raise InputError(
                        f"inner[{n}] is of {x.dtype} on {x.device}; the model is on {self.head.device}"
                    )
            heads = {x.shape[1] for x in (k, v) if isinstance(x, Tensor)}
            if seen != position or len(heads) != 1:
                raise InputError(
                    f"inner[{n}] is of {seen} tokens and {sorted(heads)} heads after {position} tokens"
                )

    def forward(self, memory: Memory) -> Callable[..., Any]:
        """The model's own forward, a period at a time; without writes it is the model's own."""
        plain, host = self._plain, self
        signature = inspect.signature(plain)

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            given |= given.pop("kwargs", {}) | given.pop("_", {})
            cache = given.get("past_key_values")
            if not memory.options.scale and not isinstance(cache, AttachedCache):
                return plain(*args, **kwargs)
            return host.remember(memory, given)

        forward.attached_memory = True  # type: ignore[attr-defined]
        return forward

    def remember(self, memory: Memory, given: dict[str, Any]) -> CausalLMOutputWithPast:
        """Logits, the loss if `labels` are given, and the memory's state as `past_key_values`."""
        tokens, cache, labels = given.get("input_ids"), given.get("past_key_values"), given.get("labels")
        _check_arguments(given)
        if tokens is None:
            raise InputError("an attached memory reads input_ids, not embeddings")
        state = None
        if isinstance(cache, AttachedCache):
            state = cache.state
        elif cache is not None:
            inner, position = self.value_of(cache)
            state = memory.begin(inner, position) if position else None
        logits, state = memory(tokens, state)
        loss = None
        if labels is not None:
            extra = {key: given[key] for key in ("num_items_in_batch",) if key in given}
            size = self._config.vocab_size
            loss = self._model.loss_function(logits=logits, labels=labels, vocab_size=size, **extra)
        keep = given.get("logits_to_keep") or 0
        kept = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
        after = AttachedCache(state) if given.get("use_cache") is not False else None
        return CausalLMOutputWithPast(loss=loss, logits=kept, past_key_values=after)


class ExportedHost(HuggingFaceHost):
    """One of our models behind transformers' interface: its `State` is in the place of keys and values."""

    def __init__(self, model: Any) -> None:
        OurHost(model.model)  # refuses a model that has a continuum memory
        super().__init__(model)
        self._scale = 1.0

    def _empty_layers(self) -> list[Any]:
        return []

    def begin(self, batch: int) -> Any:
        return self._model.model.initial(batch)

    def run(self, tokens_BT: Tensor, inner: Any) -> tuple[Tensor, Any]:
        cache = HopeCache()
        cache.groups, cache.seen = [Group(tuple(range(len(tokens_BT))), 0, inner)], inner.position
        return self._plain(input_ids=tokens_BT, past_key_values=cache).logits, cache.state

    def about(self) -> dict[str, Any]:
        return OurHost(self._model.model).about()

    def check(self, inner: Any, position: int) -> None:
        OurHost(self._model.model).check(inner, position)

    def value_of(self, cache: Any) -> tuple[Any, int]:
        """The state of a batch without padding."""
        if not cache.get_seq_length():
            return None, 0
        if len(cache.groups) > 1 or cache.groups[0].start:
            raise InputError(PADDED)
        return cache.state, cache.get_seq_length()


def host_of(model: Any) -> HuggingFaceHost:
    """The host for a model of transformers, or for one of ours exported to it."""
    return ExportedHost(model) if model.config.model_type == "hope" else HuggingFaceHost(model)


def _check_arguments(given: dict[str, Any]) -> None:
    """Refuse what a memory would get wrong: padding, other positions, arguments it cannot cut into segments."""
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if mask is not None and not (mask.dim() == 2 and bool(mask.all())):
        raise InputError(
            "an attached memory reads every token: give prompts of equal length, without padding"
        )
    if positions is not None and positions.shape[-1] > 1 and not bool((positions.diff(dim=-1) == 1).all()):
        raise InputError("an attached memory reads tokens in order: leave out position_ids")
    for name, value in given.items():
        if (
            name not in KNOWN
            and (isinstance(value, Tensor) or value is True)
            and name != "num_items_in_batch"
        ):
            raise InputError(f"an attached memory does not take {name}; detach it, or leave the argument out")


def _check_layers(layers: list[Any]) -> None:
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise InputError(
                f"the model keeps a {type(layer).__name__}; an attached memory needs a dynamic key-value cache"
            )


def _filled(layer: Any, old: Cached) -> Any:
    """A layer of its own that has seen what `old` has; layers replace their tensors, so these can be shared."""
    own = copy.copy(layer)
    if old.k_BHSd is not None:
        own.lazy_initialization(old.k_BHSd, old.v_BHSd)
        own.keys, own.values = old.k_BHSd, old.v_BHSd
        if hasattr(own, "cumulative_length"):
            own.cumulative_length = old.seen
    return own


def _emptied(layer: Any) -> Cached:
    if not layer.is_initialized:
        return Cached(None, None, 0)
    return Cached(layer.keys, layer.values, layer.get_seq_length())
