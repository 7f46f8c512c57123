"""Text in, text out: the commands generate, chat and recall on an untrained model."""

import io
import math
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'hope-model[hf]'")

from hope_model.cli import main
from hope_model.conversation import Conversation, Sampling, sample
from hope_model.text_commands import FACT, FILLER, QUESTION

TEXT = "the green hill and the red stone, ünder 12 trees 🙂"
GREEDY = Sampling(temperature=0.0)


def _open(exported: Path, tokenizer: Path, *, memory: bool = True) -> Conversation:
    return Conversation(exported.parent / "checkpoint", tokenizer, memory=memory)


def test_greedy_text_equals_running_everything_again(exported: Path, tokenizer: Path) -> None:
    talk = _open(exported, tokenizer)
    talk.read(TEXT)
    parts = list(talk.write(24, GREEDY))
    row = [talk.tokenizer.eos_token_id, *talk.encode(TEXT)]
    prompt = len(row)
    with torch.no_grad():
        for _ in range(24):
            row.append(int(talk.model(torch.tensor([row]))[0][0, -1].argmax()))
            if row[-1] == talk.tokenizer.eos_token_id:
                row.pop()
                break
    assert "".join(parts) == talk.decode(row[prompt:])
    assert talk.state is not None
    assert talk.state.position >= len(row)


def test_characters_of_several_bytes_come_whole(
    exported: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = _open(exported, tokenizer)
    ids = iter(talk.encode("ü🙂"))  # bytes one by one
    monkeypatch.setattr("hope_model.conversation.sample", lambda *_: next(ids))
    assert [part for part in talk.write(6, GREEDY) if part] == ["ü", "🙂"]


def test_bits_are_those_of_the_whole_text_and_change_nothing(exported: Path, tokenizer: Path) -> None:
    talk = _open(exported, tokenizer)
    talk.read("the green hill")
    before, logits = talk.state, talk._logits_V
    got = talk.bits(" and the red stone")
    row = [talk.tokenizer.eos_token_id, *talk.encode("the green hill"), *talk.encode(" and the red stone")]
    with torch.no_grad():
        logp = talk.model(torch.tensor([row]))[0][0].double().log_softmax(-1)
    start = 1 + len(talk.encode("the green hill"))
    wanted = -sum(float(logp[n - 1, row[n]]) for n in range(start, len(row))) / math.log(2)
    assert got == pytest.approx(wanted, abs=1e-4)
    assert talk.state is before
    assert talk._logits_V is logits


def test_memory_off_writes_nothing(exported: Path, tokenizer: Path) -> None:
    talk = _open(exported, tokenizer, memory=False)
    talk.read(TEXT * 3)
    assert all(level.norm == 0 for level in talk.memory())
    on = _open(exported, tokenizer)
    on.read(TEXT * 3)
    norms = {level.name: level.norm for level in on.memory()}
    kinds = {"hope": {"mixer", "cms.0", "cms.1"}, "titans": {"mixer"}, "transformer": set()}
    assert norms.keys() == kinds[on.model.config.variant]
    assert all(norm > 0 for norm in norms.values())


def test_nucleus_and_temperature() -> None:
    logits, generator = torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), torch.Generator().manual_seed(0)
    draws = [sample(logits, Sampling(1.0, 0.7, 0), generator) for _ in range(2000)]
    assert set(draws) == {0, 1}  # 0.5 alone is below 0.7
    assert draws.count(0) / 2000 == pytest.approx(0.625, abs=0.04)
    assert {sample(logits, Sampling(1.0, 0.01, 0), generator) for _ in range(50)} == {0}
    assert sample(logits, GREEDY, generator) == 0


def test_chat_keeps_saves_and_loads_its_stream(
    exported: Path,
    tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["chat", str(exported.parent / "checkpoint"), "--tokenizer", str(tokenizer)]
    command += ["--tokens", "5", "--temperature", "0"]

    def chat(*lines: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(command) == 0
        return capsys.readouterr().out.split("\n")

    whole = chat("the green", "the red", "stone")
    path = tmp_path / "stream.safetensors"
    first = chat("the green", "the red", f"/save {path}", "/reset", "/nonsense", "/load nowhere")
    again = chat(f"/load {path}", "stone")
    assert first[:-1] + again == whole
    assert chat("stone") != again or exported.parent.name.startswith("transformer")


def test_generate_prints_the_prompt_and_what_memories_hold(
    exported: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "generate",
        str(exported.parent / "checkpoint"),
        "the hill\x1b[2J",
        "--tokenizer",
        str(tokenizer),
    ]
    assert main([*command, "--tokens", "4", "--show-memory"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("the hill[2J")
    assert "memory" in err.splitlines()[0]
    assert main([*command, "--tokens", "4"]) == 0
    assert capsys.readouterr().out == out  # the seed decides


def test_recall_reports_every_condition(
    exported: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recall", str(exported.parent / "checkpoint"), "--tokenizer", str(tokenizer)]
    assert main([*command, "--distance", "9", "--trials", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    attention = Conversation(exported.parent / "checkpoint", tokenizer).model.config.variant == "transformer"
    written = ["told, memories written", "told, none written", "never told"]
    assert lines.pop().startswith("No better than a guess: this model keeps none.")  # untrained
    assert [line[:24].rstrip() for line in lines[5:]] == (["told", "never told"] if attention else written)
    talk = _open(exported, tokenizer)
    assert talk.memory_kinds() is not attention
    filler = talk.decode(talk.encode(FILLER * 9)[:9])
    draw, bits = random.Random(0), []
    for _ in range(2):
        number = draw.randrange(10_000, 100_000)
        talk.reset()
        talk.read(FACT.format(number=number) + filler + QUESTION)
        bits.append(talk.bits(f" {number}"))
    costs = float(lines[5].partition("costs ")[2].split()[0])
    assert costs == pytest.approx(sum(bits) / 2, abs=0.006)


def test_recall_calls_nothing_a_guess_that_costs_less(
    exported: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "bits", lambda *_: 16.0)  # a guess costs 16.5
    command = ["recall", str(exported.parent / "checkpoint"), "--tokenizer", str(tokenizer)]
    assert main([*command, "--distance", "9", "--trials", "2"]) == 0
    assert "No better" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "0"], "--tokens 0: give a whole number from 1 to 10,000,000"),
        (["--temperature", "nan"], "--temperature nan: give a number from 0 (likeliest token) to 100"),
        (["--top-p", "0"], "--top-p 0.0: give a share above 0, at most 1 (every token)"),
        (["--seed", "-1"], "--seed -1: give a whole number from 0 to 2^63 - 1"),
        (
            ["--tokenizer", "nowhere"],
            "nowhere: holds no tokenizer; name the folder of the one it was trained with",
        ),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], message: str, exported: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(exported.parent / "checkpoint"), "x", "--tokenizer", str(tokenizer)]
    assert main([*command, *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_another_tokenizer_is_refused(
    exported: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((tokenizer / "tokenizer.model").read_bytes() + b"\0")
    command = ["generate", str(exported.parent / "checkpoint"), "x", "--tokenizer", str(tmp_path)]
    assert main(command) == 2
    assert "not the tokenizer of" in capsys.readouterr().err
