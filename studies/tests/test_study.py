"""The definition of a study: every number has its range, names are plain."""

from __future__ import annotations

from typing import Any

import pytest
from suites import ROOT
from test_ranges import WRONG, assert_names, changed, numbers

from hope_model.errors import InputError
from hope_study import study
from hope_study.study import Study
from hope_train.compose import load_params
from hope_train.values import strict

STUDY: dict[str, Any] = {"question": "?", "scale": "suite", "order": 1, "rates": [0.3, 1, 3], "seeds": [0, 1, 2],
    "widen": 1, "tolerance": 0.1, "stream": {"tokens": 5, "held_out": 5, "lr": 0.1}}  # fmt: skip


def test_every_number_of_a_study_is_taken_or_named() -> None:
    for path in numbers(STUDY):
        for value in WRONG:
            try:
                strict(Study, changed(STUDY, path, value), "it")
            except InputError as error:
                assert_names(str(error), path, value)
            else:
                assert value in (-1, 0, 0.5, 10**30, 1e308), (path, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"../x": {}}}, "arms is '../x'; a name has at most 100 letters"),
        ({"stream": {"domains": ["$(touch x)"]}}, "stream.domains is"),
        ({"lengths": ["0x"]}, "lengths is '0x'; it must be a number of tokens, or such as 2x"),
    ],
)
def test_names_and_lengths_are_plain(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        strict(Study, STUDY | changes, "it")
    assert message in str(caught.value)


def test_keys_added_later_leave_the_records_valid() -> None:
    """A key that configurations get belongs into `ADDED`; else every training of the repository would be done again."""
    parity = study.load(ROOT / "conf", ["parity"])["parity"]
    arms = study.arms("parity", parity, ROOT / "conf", load_params(ROOT / "params.yaml").corpora)
    digests = {
        arm.name: arm.training(1.0, 0).sha256[:16] for arm in arms if arm.name in ("hope", "transformer")
    }
    assert digests == {"hope": "ffe33fe7e78b96db", "transformer": "1fc2d8e08a37e4c1"}
