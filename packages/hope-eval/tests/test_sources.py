"""Where a loss comes from: classes of targets and positions by hand, the sums they add up to, the shuffled control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from hope_eval.tasks import perplexity
from hope_eval.tasks.base import Context
from hope_eval.tasks.sources import classes, positions

Build = Callable[..., Context]
END = 1


def test_classes_by_hand() -> None:
    #                       a      b      c      a       b              c                 b       END    b
    window = np.array([END, 5, 6, 7, 5, 6, 7, 6, END, 6])
    assert classes(window) == [
        *("new", "new", "new", "seen", "bigram seen", "trigram seen"),
        *("seen", "new", "seen"),
    ]


def test_a_trigram_that_begins_with_the_first_token_counts() -> None:
    """The end-of-text token before a window is context: it precedes tokens, but is no earlier target."""
    window = np.array([END, 5, 6, END, 5, 6])
    assert classes(window) == ["new", "new", "new", "bigram seen", "trigram seen"]


def test_positions_double() -> None:
    made = positions(np.zeros(1 + 130, np.int64))
    assert Counter(made) == {"0-31": 32, "32-63": 32, "64-127": 64, "128-255": 2}
    assert list(dict.fromkeys(made)) == ["0-31", "32-63", "64-127", "128-255"]


def test_groups_add_up_to_the_whole(context: Build) -> None:
    whole, position, target, source = perplexity.run_all(
        context(), perplexity.Settings(tokens=3000, length=48)
    )
    bits = sum(whole.items.scores["bits_per_byte"])
    for part in (position, target):
        nats = sum(part.items.scores["token_nats"])
        assert nats / np.log(2) == pytest.approx(bits, rel=1e-6)
        assert sum(part.items.weight) == whole.tokens
        assert set(part.items.cluster) == set(whole.items.cluster)
    # Bits per byte by source are of the same bits and bytes, whole.
    assert sum(source.items.scores["bits_per_byte"]) == pytest.approx(bits, rel=1e-6)
    assert sum(source.items.weight) == sum(whole.items.weight)
    assert set(source.items.labels["source"]) == {"new", "repeated"}
    assert set(target.items.labels["target"]) == {"new", "seen", "bigram seen", "trigram seen"}


def test_shuffled_control_moves_blocks_between_documents(context: Build) -> None:
    settings = perplexity.Settings(tokens=3000, length=48, shuffle=16)
    plain = perplexity._pieces(context(), "left", perplexity.Settings(tokens=3000, length=48))
    shuffled = perplexity._pieces(context(), "left", settings)
    again = perplexity._pieces(context(), "left", settings)

    def blocks(pieces: list[perplexity.Piece]) -> list[tuple[int, ...]]:
        windows = [window[1:] for piece in pieces for window in piece.windows]
        return [tuple(w[n : n + 16].tolist()) for w in windows for n in range(0, len(w), 16)]

    before, after = blocks(plain), blocks(shuffled)
    assert after == blocks(again)
    assert Counter(before) == Counter(after)
    moved = [a != b for a, b in zip(before, after, strict=True) if len(a) == 16]
    assert sum(moved) > 0.9 * len(moved)
    assert all(a == b for a, b in zip(before, after, strict=True) if len(a) < 16)
    result = perplexity.run(context(), settings)
    assert result.task == "perplexity_shuffled"
    assert result.settings["shuffle"] == 16
