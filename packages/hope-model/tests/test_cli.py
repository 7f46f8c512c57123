"""The command line: a bench runs, and every wrong argument is one line before anything is measured."""

import json
import os
from pathlib import Path

import pytest
import torch

from hope_model import ModelConfig, console
from hope_model.bench_settings import choices
from hope_model.blocks import compile_refusal
from hope_model.cli import main
from hope_model.config import VARIANTS
from hope_model.counting import training_flops_per_token
from hope_model.files import write_atomic
from hope_model.precision import pick_precision

TINY = [
    "--dim",
    "8",
    "--head-dim",
    "4",
    "--layers",
    "1",
    "--vocab-size",
    "16",
    "--batch-size",
    "1",
    "--repeats",
    "1",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "0"], "--length is 0; it must be between 1 and 16,777,216"),
        (["--batch-size", "0"], "--batch-size is 0; it must be between 1 and 1,048,576"),
        (["--batch-size", "-4"], "--batch-size is -4; it must be between 1 and 1,048,576"),
        (["--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["--threads", "0"], "--threads is 0; it must be between 1 and 1,024"),
        (["--precision", "int8"], "--precision is 'int8'; choose one of auto, fp32, bf16"),
        (["--seed", "-1"], "--seed is -1; it must be between 0 and 9,223,372,036,854,775,807"),
        (["--seed", str(2**63)], f"--seed is {2**63}; it must be between 0 and 9,223,372,036,854,775,807"),
        (["--dim", "0"], "model.dim is 0; it must be between 1 and 1,048,576"),
        (["--dim", "100"], "model.dim 100 is not a multiple of model.head_dim 64"),
        (["--layers", "10000000"], "model.layers is 10000000; it must be between 1 and 4,096"),
        (
            ["--vocab-size", str(10**12)],
            f"model.vocab_size is {10**12}; it must be between 1 and 2,147,483,647",
        ),
        (
            ["--head-dim", "3", "--dim", "9"],
            "model.head_dim is 3; rotary positions of transformer need an even one",
        ),
        (["--variants", "gpt"], f"--variants gpt: choose of {', '.join(choices())}"),
        (["--device", "tpu"], "--device 'tpu': choose cpu, cuda or one of several as cuda:1"),
        (["decode", "--positions", "1,,2"], "--positions '1,,2': give whole numbers such as 1024,32768"),
        (["decode", "--positions", "-1"], "--positions '-1': give whole numbers such as 1024,32768"),
        (
            ["decode", "--variants", "transformer"],
            "--variants transformer: their states grow with every token; name others",
        ),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("arguments", [["--length", "many"], ["--length", "9" * 5000], ["race"], []])
def test_what_is_no_argument_at_all_ends_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments] if arguments else [])
    assert ended.value.code == 2


def test_a_bench_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    assert (
        main(["bench", *TINY, "--length", "4", "--variants", "transformer,titans", "--json", str(out)]) == 0
    )
    rows = json.loads(out.read_text())
    assert [row["variant"] for row in rows] == ["transformer", "titans"]
    assert rows[0]["precision"] == pick_precision("auto", torch.device("cpu"))
    assert rows[0]["threads"] == torch.get_num_threads()
    rate = (
        rows[0]["tokens_per_s"] * training_flops_per_token(ModelConfig("transformer", 16, 8, 1, 4), 4) / 1e9
    )
    assert rows[0]["gflops_per_s"] == pytest.approx(rate, abs=1e-3)
    assert capfd.readouterr().err == ""  # not even from the profiler
    assert main(["bench", "decode", *TINY, "--positions", "0,3", "--variants", "titans"]) == 0


def test_variants_that_cannot_be_compiled_say_why() -> None:
    """Tried with torch 2.13: self-modifying memories raise, a continuum memory takes minutes a segment."""
    refused = {variant for variant in VARIANTS if compile_refusal(ModelConfig(variant=variant))}
    assert refused == {"hope", "hope_paper", "hope_attention", "hope_deltanet", "self_modifying_titans"}


def test_arguments_that_do_not_parse_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--dim", "\x1b[31mwide"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --dim: invalid int value: '\\x1b[31mwide'; see hope-model bench --help\n"
    )


def test_a_device_is_written_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(tmp_path / "pipe", b"rows")
    assert os.read(reader, 10) == b"rows"
    assert (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_ctrl_c_while_torch_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.__import__", interrupt)
    status = console.main()
    monkeypatch.undo()
    assert status == 130
    assert capsys.readouterr().err == "interrupted\n"
