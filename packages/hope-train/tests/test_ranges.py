"""Every number of every configuration: a run, or one line that names the key, the value and what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hope_model.errors import InputError
from hope_train import config as configuration
from hope_train.cli import main
from hope_train.compose import Params
from hope_train.config import GroupConfig, ScheduleConfig, TrainConfig
from hope_train.loop import DivergedError
from hope_train.run import train
from hope_train.values import strict

ROOT = Path(__file__).parents[3]
WRONG = (-1, 0, 10**30, 1e308, float("nan"), float("inf"), "many", 0.5, True, None, [1], 10**400)
Key = tuple[str | int, ...]


def numbers(values: Any, path: Key = ()) -> Iterator[Key]:
    """The place of every number in nested values."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from numbers(value, (*path, key))
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield path


def changed(values: Any, path: Key, value: Any) -> Any:
    copied = copy.deepcopy(values)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copied


def assert_names(message: str, path: Key, value: Any) -> None:
    names = [str(key) for key in path if not isinstance(key, int)]
    assert all(name in message for name in names[-2:]), (path, value, message)
    assert "\n" not in message
    assert any(word in message for word in ("must be", "could not be", "cannot be", "allowed", "Incompatible",
        "mapping", "multiple", "takes", "too large", "even one", "at least")), (path, value, message)  # fmt: skip


@pytest.fixture(scope="module")
def filled(tiny: TrainConfig) -> dict[str, Any]:
    """A run in which every list and mapping of numbers has an entry."""
    run = dataclasses.replace(
        tiny,
        steps=1,
        lengths={0: 16},
        memory_chunks=[8],
        data=dataclasses.replace(tiny.data, weights={"left": 1.0, "right": 2.0}, eval_lengths=[16]),
        model=dataclasses.replace(tiny.model, cms=dataclasses.replace(tiny.model.cms, periods=[16, 32])),
        optim=dataclasses.replace(tiny.optim, groups=[GroupConfig("*norm*", 0.5, ScheduleConfig())]),
        teach=dataclasses.replace(tiny.teach, begin=[0.1], lr=[ScheduleConfig()]),
    )
    return dataclasses.asdict(run)


def test_every_number_of_a_run_is_taken_or_named(filled: dict[str, Any], tmp_path: Path) -> None:
    keys = list(numbers(filled))
    assert len(keys) > 60
    taken: list[tuple[Key, Any]] = []
    for path in keys:
        for value in WRONG:
            try:
                strict(TrainConfig, changed(filled, path, value), "run")
                taken.append((path, value))
            except InputError as error:
                assert_names(str(error).removeprefix("run: "), path, value)
    assert {type(value) for _, value in taken} == {int, float}
    for path, value in taken[:: len(taken) // 8]:  # what is taken runs, as a sample
        config = strict(TrainConfig, changed(filled, path, value), "")
        with suppress(InputError, DivergedError):
            assert train(config, tmp_path / "out", fresh_on_mismatch=True) in (0, 75), (path, value)


PARAMS = {"scale": "tiny", "teach_scale": 0.1, "seeds": [0], "coverage_loss": 0.02, "runs": ["hope"],
    "corpora": ["code"], "evaluation": "conf/evaluation"}  # fmt: skip


def test_every_number_of_params_is_taken_or_named() -> None:
    for path in numbers(PARAMS):
        for value in WRONG:
            try:
                strict(Params, changed(PARAMS, path, value), "it")
            except InputError as error:
                assert_names(str(error), path, value)
            else:
                assert value in (-1, 0, 0.5, 10**30, 1e308), (path, value)


NAMES = "; a name has at most 100 letters, digits, '_', '-' and '.', and does not begin with '-' or '.'"
MESSAGES = {
    "seed: 9223372036854775808": "seed is 9223372036854775808; it must be between 0 and 9,223,372,036,854,775,807",
    "optim: {beta1: 1}": "optim.beta1 is 1.0; it must be between 0 and 0.999999",
    "optim: {eps: 0}": "optim.eps is 0.0; it must be between 1e-30 and 1",
    "optim: {weight_decay: -1}": "optim.weight_decay is -1.0; it must be between 0 and 1e+06",
    "optim: {lr: .nan}": "optim.lr is nan; it must be a finite number, between 0 and 1e+30",
    "schedule: {warmup: 1.5}": "schedule.warmup is 1.5; it must be between 0 and 1",
    "teach: {begin: [2]}": "teach.begin[0] is 2.0; it must be between 0 and 1",
    "log: {wandb: maybe}": "log.wandb is 'maybe'; choose one of offline, online, disabled",
    "batch_size: 16777216": "'batch_size' 16777216 x 'length' 512 tokens a step; at most 1,073,741,824 are allowed",
    "data: {weights: {a: 0}}": "data.weights['a'] is 0.0; it must be above 0 and at most 1e+12",
    "data: {corpora: 1}": "data.corpora is 1; it must be a list",
    "data: {corpora: [1]}": "data.corpora[0] is 1; it must be text",
    "data: {corpora: [../a]}": "data.corpora is '../a'" + NAMES,
    "run: ../../esc": "run is '..'" + NAMES,
    "lengths: {0: 100}": "'lengths' {0: 100}: 'length' 512 cannot be cut into it",
    "compile: true": "'compile': hope rewrites its memories in place, which torch.compile cannot trace; leave it false",
    "steps: &a [*a]": "more than 10,000 entries, its aliases written out; shorten it",
    "date: 2026-13-45": "not YAML: month must be in 1..12",
    "x: " + "[" * 5000: "lists or mappings are nested too deeply",
}


@pytest.mark.parametrize("text", MESSAGES, ids=range(len(MESSAGES)))
def test_messages(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {"run": "run: a", text.split(":", maxsplit=1)[0]: text}
    (tmp_path / "run.yaml").write_text("\n".join(lines.values()))
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'run.yaml'}: {MESSAGES[text]}\n"
    assert not (tmp_path / "out").exists()


def test_bombs_are_refused_within_a_second(tmp_path: Path) -> None:
    lists = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lists += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    bombs = {
        "\n".join(lists): "more than 10,000 entries",
        "a: [" + "1, " * 10**6 + "1]": "larger than 100,000 bytes",
        "run: a\nmodel: {layers: 10000000}": "model.layers is 10000000",
        "run: a\nmodel: {cms: {levels: 100000}}": "model.cms.levels is 100000",
    }
    for text, words in bombs.items():
        (tmp_path / "run.yaml").write_text(text)
        begin = time.process_time()
        with pytest.raises(InputError, match=words):
            configuration.load(tmp_path / "run.yaml")
        assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runs", ["x$(touch F)"]),
        ("corpora", ["code", "a;b"]),
        ("scale", "../tiny"),
        ("evaluation", "conf/$(id)"),
        ("evaluation", "-x"),
        ("coverage_loss", "0.02; touch F"),
        ("teach_scale", "nan"),
        ("seeds", [2**63]),
        ("seeds", []),
        ("seeds", [1, 1]),
        ("runs", "hope"),
        ("more", 1),
    ],
)
def test_params_that_a_shell_or_a_path_could_mistake_are_named(
    key: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps(PARAMS | {key: value}))
    for command in (["compose", "--print", "runs"], ["compose"], ["plan"]):
        assert main([*command, "--params", str(file), "--conf", str(ROOT / "conf")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {file}: ")
        assert key in error
        assert error.count("\n") == 1
