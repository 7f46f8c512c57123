"""The scorer against the model called one sequence at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hope_data.errors import InputError
from hope_eval.scoring import scorer as lm
from hope_eval.scoring.scorer import Scorer
from hope_model import LanguageModel


def alone(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """Log-probability of every token after the first."""
    row = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        logits, _ = model(row[:, :-1])
    return F.log_softmax(logits, -1)[0].gather(1, row[0, 1:, None])[:, 0].double().numpy()


@pytest.fixture
def rows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, 320, size) for size in (40, 7, 65, 2, 40, 33, 64)]


@pytest.mark.parametrize("batch_tokens", [1, 128, 100_000])
def test_token_logp_is_the_models_in_any_batch(
    model: LanguageModel, rows: list[np.ndarray], batch_tokens: int
) -> None:
    scorer = Scorer(model, batch_tokens=batch_tokens)
    for found, row in zip(scorer.token_logp(rows), rows, strict=True):
        np.testing.assert_allclose(found, alone(model, row), rtol=0, atol=2e-5)


def test_forked_candidates_equal_whole_sequences(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    prompts, candidates = rng.integers(2, 320, (3, 40)), rng.integers(2, 320, (3, 4, 9))
    # Fed in pieces, so that a carried state is part of the test.
    monkeypatch.setattr(lm, "PIECE", 24)
    scorer = Scorer(model)
    found = scorer.candidates(scorer.prefill(prompts), candidates)
    for b in range(3):
        for k in range(4):
            whole = alone(model, np.concatenate((prompts[b], candidates[b, k])))
            assert found[b, k] == pytest.approx(whole[39:].sum(), abs=1e-4)
    assert scorer.tokens == 3 * 40 + 3 * 4 * 8


def test_single_token_candidates_need_no_further_pass(model: LanguageModel) -> None:
    scorer = Scorer(model)
    prompts = np.random.default_rng(2).integers(2, 320, (2, 20))
    found = scorer.candidates(scorer.prefill(prompts), np.array([[[5], [6]], [[7], [8]]]))
    assert found[1, 0] == pytest.approx(alone(model, np.append(prompts[1], 7))[-1], abs=1e-5)
    assert scorer.tokens == 40


def test_greedy_equals_running_everything_again(model: LanguageModel) -> None:
    prompts = np.random.default_rng(3).integers(2, 320, (2, 20))
    scorer = Scorer(model)
    made = scorer.greedy(scorer.prefill(prompts), 5)
    for b in range(2):
        row = list(prompts[b])
        for _ in range(5):
            with torch.no_grad():
                row.append(int(model(torch.tensor([row]))[0][0, -1].argmax()))
        assert made[b].tolist() == row[20:]


def test_a_broken_model_is_an_error_not_a_score(model: LanguageModel, rows: list[np.ndarray]) -> None:
    broken = LanguageModel(model.config)
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        Scorer(broken).token_logp(rows)
