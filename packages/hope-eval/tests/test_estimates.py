import numpy as np
import pytest

from hope_eval.results.statistics import combined, crossed, paired, ratio


def test_trials_of_separate_documents_give_the_textbook_error() -> None:
    hits = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 0], float)
    found = ratio(hits, np.ones(10), range(10))
    assert found.value == 0.4
    assert found.stderr == pytest.approx(hits.std(ddof=1) / np.sqrt(10))
    assert (found.n, found.clusters) == (10, 10)


def test_ratio_by_hand() -> None:
    # 6 bits over 4 bytes = 1.5; residuals 4 - 1.5 * 2 = 1 and 2 - 1.5 * 2 = -1; sqrt(2/1 * 2) / 4 = 0.5.
    found = ratio([4.0, 2.0], [2.0, 2.0], [0, 1])
    assert (found.value, found.stderr) == (1.5, 0.5)


def test_copies_of_a_document_add_no_certainty() -> None:
    scores, weights = [4.0, 2.0, 5.0], [2.0, 2.0, 3.0]
    once = ratio(scores, weights, [0, 1, 2])
    twice = ratio(scores * 2, weights * 2, [0, 1, 2] * 2)
    assert twice.stderr == pytest.approx(once.stderr)
    assert ratio(scores * 2, weights * 2, range(6)).stderr < once.stderr  # type: ignore[operator]


def test_one_document_has_no_error() -> None:
    assert ratio([1.0, 2.0], [1.0, 1.0], [5, 5]).stderr is None


def test_paired_difference_finds_what_separate_errors_hide() -> None:
    rng = np.random.default_rng(0)
    documents, sizes = rng.normal(3, 0.5, 200), rng.integers(50, 500, 200)
    a = documents * sizes
    b = (documents + 0.02 + rng.normal(0, 0.02, 200)) * sizes
    found = paired(a, b, sizes, range(200))
    assert found.value == pytest.approx((a.sum() - b.sum()) / sizes.sum())
    assert found.high is not None
    assert found.high < 0
    assert ratio(a, sizes, range(200)).stderr > 0.02  # type: ignore[operator]
    # The bootstrap interval agrees with the linearised error.
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.stderr, rel=0.1)  # type: ignore[operator]


def test_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        a, b = rng.normal(0, 1, (2, 60))
        found = paired(a, b, np.ones(60), range(60), resamples=500)
        covered += found.low <= 0 <= found.high
    # 200 draws of a 95 % interval: 190 expected, standard deviation 3.1.
    assert 178 <= covered <= 199


def test_equal_scores_are_no_difference() -> None:
    found = paired([1.0, 2.0] * 5, [1.0, 2.0] * 5, [1.0] * 10, range(10))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("documents", "interval"), [(9, None), (10, (1.0, 1.0))])
def test_fewer_than_ten_documents_have_no_interval(
    documents: int, interval: tuple[float, float] | None
) -> None:
    # Two items of each document: 18 items are still nine documents.
    found = paired(
        [2.0] * 2 * documents, [1.0] * 2 * documents, [1.0] * 2 * documents, [*range(documents)] * 2
    )
    assert (found.value, found.n, found.clusters) == (1.0, 2 * documents, documents)
    assert ((found.low, found.high) if interval else found.low) == interval


def test_an_interval_over_seeds_and_documents_by_hand() -> None:
    # Seeds 1, 2, 3: variance of their mean 1 / 3, Student's factor with 2 degrees of freedom 4.303; documents: 0.
    mean = combined([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], 100)
    assert (mean.value, mean.seeds) == (2.0, 3)
    assert mean.stderr == pytest.approx(3**-0.5)
    assert mean.high == pytest.approx(2 + 4.302653 * 3**-0.5, abs=1e-5)
    # Seeds agree: documents alone, 1.984 with 99 degrees of freedom.
    assert combined([2.0, 2.0], [0.1, 0.1], 100).low == pytest.approx(2 - 1.984217 * 0.1, abs=1e-5)
    assert combined([1.0, 2.0], [0.1, 0.1], 9).low is None
    assert combined([1.0, 2.0], [0.1, None], 100).stderr is None


def test_one_seed_is_a_ratio_with_students_interval() -> None:
    scores, weights = [4.0, 2.0, 5.0, 1.0] * 5, [2.0, 2.0, 3.0, 1.0] * 5
    one, plain = crossed([scores], weights, range(20)), ratio(scores, weights, range(20))
    assert (one.value, one.stderr, one.n, one.clusters) == (plain.value, plain.stderr, 20, 20)


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.2])  # of seeds; documents have 0.2
def test_an_interval_over_seeds_and_documents_covers(spread: float) -> None:
    rng, covered = np.random.default_rng(2), 0
    for _ in range(400):
        scores_SD = rng.normal(0, spread, (3, 1)) + rng.normal(0, 0.2, (1, 60)) + rng.normal(0, 0.1, (3, 60))
        found = crossed(scores_SD, np.ones(60), range(60))
        covered += found.low <= 0 <= found.high
    assert covered >= 370  # 380 expected of a 95 % interval, standard deviation 4.4
