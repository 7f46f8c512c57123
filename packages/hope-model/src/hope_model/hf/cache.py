"""Our states in the place of a key-value cache, and how a batch that is padded on the left is read.

A recurrent state must not read padding. Sequences that begin at the same column form a group with a state of its
own; a batch without padding is one group.

Letters: B sequences, T tokens, X any further dimensions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from hope_model.state import State, select


class Group(NamedTuple):
    """Sequences that begin at one column, and their state; None before their first token."""

    rows: tuple[int, ...]
    start: int
    state: State | None


class HopeCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """The states of a batch; like caches of transformers it changes in place.

    Attributes:
        groups: every sequence is in one of them; empty before the first call.
        seen: columns read, padding included.
    """

    is_compileable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.groups: list[Group] = []
        self.seen = 0

    @property
    def state(self) -> State:
        """The state of a batch whose sequences all begin at one column."""
        [group] = self.groups
        if group.state is None:
            raise ValueError("the cache has seen no token")
        return group.state

    def begin(self, tokens_BT: Tensor, mask: Tensor | None) -> bool:
        """Form groups by the mask before the first call.

        Args:
            tokens_BT: the next columns.
            mask: attention mask of these or of all columns.

        Returns:
            Whether a sequence ends before the last column.

        Raises:
            ValueError: a mask with gaps, of another shape, or of tokens after the prompt.
        """
        B, T = tokens_BT.shape
        if mask is not None and (mask.dim() != 2 or mask.shape[0] != B or mask.shape[1] < T):
            raise ValueError(f"attention_mask has shape {list(mask.shape)}, not {[B, T]}")
        if mask is None or bool(mask[:, -T:].all()):
            self.groups = self.groups or [Group(tuple(range(B)), 0, None)]
            return False
        if self.groups:
            raise ValueError("HOPE reads every token after the prompt: attention_mask must be 1 there")
        mask_BT, columns = mask[:, -T:].bool().cpu(), torch.arange(T)
        starts, lengths = mask_BT.int().argmax(1), mask_BT.sum(1)
        ends = starts + lengths
        if not bool(lengths.all()) or not torch.equal(
            mask_BT, (columns >= starts[:, None]) & (columns < ends[:, None])
        ):
            raise ValueError(
                "HOPE reads every token: attention_mask must be 1 on one stretch of each sequence"
            )
        rows: dict[int, list[int]] = {}
        for row, start in enumerate(starts.tolist()):
            rows.setdefault(start, []).append(row)
        self.groups = [Group(tuple(members), start, None) for start, members in rows.items()]
        return bool((ends < T).any())

    def read(
        self, tokens_BT: Tensor, model: Callable[[Tensor, State | None], tuple[list[Tensor], State]]
    ) -> list[Tensor]:
        """Run every group over its own tokens.

        Args:
            tokens_BT: the next columns.
            model: from tokens and a state to tensors [B, T, X] and the next state.

        Returns:
            The model's tensors of all sequences in order, zero in columns of padding.
        """
        parts, groups = [], []
        for rows, start, state in self.groups:
            padding = min(max(0, start - self.seen), tokens_BT.shape[1])
            own = tokens_BT if len(self.groups) == 1 else tokens_BT[list(rows)]
            outputs, state = model(own[:, padding:], state)
            if padding:
                outputs = [F.pad(x, (0, 0, padding, 0)) for x in outputs]
            parts.append(outputs)
            groups.append(Group(rows, start, state))
        self.groups, self.seen = groups, self.seen + tokens_BT.shape[1]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([row for group in groups for row in group.rows]).argsort().to(tokens_BT.device)
        return [torch.cat(same)[order] for same in zip(*parts, strict=True)]

    def without_first(self, labels_BT: Tensor) -> Tensor:
        """Labels without those of padding on the left and of the token after it, which nothing predicts."""
        if all(start == 0 for _, start, _ in self.groups):
            return labels_BT
        labels_BT = labels_BT.clone()
        for rows, start, _ in self.groups:
            labels_BT[list(rows), : max(0, start + 1 - self.seen + labels_BT.shape[1])] = -100
        return labels_BT

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen."""
        del layer_idx
        return self.seen

    def reset(self) -> None:
        self.groups, self.seen = [], 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a state cannot forget its last tokens."""
        raise ValueError(
            f"HOPE's state cannot forget its last {tokens_to_remove} tokens; run the prompt again"
        )

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences named, each as often as it is named."""
        if len(self.groups) == 1:  # the indices need not leave the device
            [(_, start, state)] = self.groups
            chosen = None if state is None else select(state, indices)
            self.groups = [Group(tuple(range(len(indices))), start, chosen)]
            return
        groups, wanted = [], indices.tolist()
        for rows, start, state in self.groups:
            places = [place for place, row in enumerate(wanted) if row in rows]
            if places:
                own = torch.tensor([rows.index(wanted[place]) for place in places], device=indices.device)
                chosen = None if state is None else select(state, own)
                groups.append(Group(tuple(places), start, chosen))
        self.groups = groups

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """What beam search asks for."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times in a row."""
        count = sum(len(group.rows) for group in self.groups)
        self.batch_select_indices(torch.arange(count).repeat_interleave(repeats))
