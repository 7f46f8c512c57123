"""Files and options that do not fit are one line that names them; nothing is written, nothing is a traceback."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hope_data.errors import InputError
from hope_eval import files
from hope_eval.cli import main
from hope_eval.tasks import babi, class_data
from hope_eval.tasks.texts import load_texts


@pytest.fixture
def given(checkpoint_folder: Path, corpora: Path, tmp_path: Path) -> list[str]:
    """What every evaluator is given."""
    return ["--checkpoint", str(checkpoint_folder), "--json", str(tmp_path / "out" / "x.json")]


NUMBERS = ["-1", "0", "99999999999999999999", "1e3", "nan", "inf", "x", "", "\u00b2", "\x1b[2J"]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("run", "--limit"),
        ("run", "--length"),
        ("run", "--batch-tokens"),
        ("run", "--memorize-steps"),
        ("needle", "--repeats"),
        ("needle", "--lengths"),
        ("babi", "--limit"),
        ("books", "--max-tokens"),
        ("continual", "--tokens"),
        ("continual", "--held-out"),
        ("continual", "--shots"),
        ("continual", "--questions"),
        ("zeroshot", "--limit"),
        ("zeroshot", "--max-length"),
        ("task", "--lengths"),
        ("task", "--count"),
        ("bench", "--threads"),
    ],
)
def test_a_count_is_positive(
    command: str, option: str, given: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    needed = {
        "run": ["--shards", "s", "--tokenizer", "t"],
        "babi": ["--data", "d"],
        "books": ["--text", "t"],
        "continual": ["--text", "t"],
    }
    all_of = ["--mirror", "m"] if command == "bench" else given
    for value in NUMBERS:
        refused([command, *all_of, *needed.get(command, []), f"{option}={value}"], option, capsys)
    assert not (tmp_path / "out").exists()


def refused(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert message in said
    return said


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--seed", "-1"], "argument --seed: '-1' is no whole number from 0 to"),
        (["--seed", "9223372036854775808"], "argument --seed: "),
        (["--lengths", ","], "argument --lengths: no length is given; write 512, 8k or 1M"),
        (["--depths", ","], "argument --depths: no depth is given; write 0,0.5,1"),
        (["--depths", "0,nan"], "argument --depths: 'nan': a depth is a share from 0 to 1"),
        (
            ["--memorize-threshold", "nan"],
            "argument --memorize-threshold: 'nan' is no number from 0 to 1000000",
        ),
        (["--memorize-scale", "-1"], "argument --memorize-scale: "),
        (["--memorize-scale", "inf"], "argument --memorize-scale: 'inf'"),
        (["--memorize-paths", ","], "--memorize-paths: names none"),
        (["--device", "abacus"], "argument --device: 'abacus' is no device of this machine"),
        (["--device", "meta"], "argument --device: 'meta' is no device of this machine"),
        (["--nonsense\x1b[2J"], r"unrecognized arguments: --nonsense\x1b[2J; see hope-eval --help"),
    ],
)
def test_options_that_cannot_be(
    extra: list[str], message: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["needle", *given, *extra], message, capsys)


def test_a_bomb_in_a_text_is_named_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bomb.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"bang\n" * 200_000)
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr(files, "LONGEST_TEXT", 32 << 20)
    refused(
        ["books", *given, "--text", str(path)],
        "unpacks to over 300 times its size (a decompression bomb?)",
        capsys,
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"a book\n" * 1000, mtime=0)[:-20], "compressed file is cut off or damaged"),
        (b"no gzip at all", "compressed file is cut off or damaged"),
        (gzip.compress(b"a\nb\xff\n", mtime=0), "line 2: not UTF-8"),
        (gzip.compress(b" \n", mtime=0), "holds no text; leave it out"),
    ],
)
def test_a_damaged_book_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "book.txt.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"book\.txt\.gz.*{message}"):
        load_texts([path])


def test_two_books_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "book.txt").write_text("text\n")
    with pytest.raises(InputError, match=r"b/book\.txt: another text is called book, too"):
        load_texts([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 John went home.\n2 Where is John?\n", "line 2: a question without its answer"),
        ("1 John went home.\n2 Where is John? \t \t1\n", "line 2: a question without its answer"),
        ("1 John went home.\n3 Where is John?\thome\t1\n", "line 2: does not begin with the number 2, or 1"),
        ("1 John went home.\n\n", "line 2: does not begin with the number 2"),
        ("0 John went home.\n", "line 1: does not begin with the number 1"),
        ("1 John\thome\n", "line 1: a question without its answer"),
        ("1 John went home.\n", "holds no question"),
    ],
)
def test_stories_that_are_not_babis(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "qa1.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        babi.read(path)
    assert str(error.value).startswith(str(path))


def test_a_question_may_leave_out_its_supporting_facts(tmp_path: Path) -> None:
    path = tmp_path / "qa1.txt"
    path.write_text("1 John went home.\n2 Where is John?\thome\n")
    assert babi.read(path) == [babi.Question(("John went home.",), "Where is John?", "home")]


def test_stories_of_one_task_are_not_mixed(
    tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = [str(tmp_path / name) for name in ("qa1_a.txt", "qa1_b.txt")]
    refused(["babi", *given, "--data", *data], "--data: several files make the task babi_qa1", capsys)


CLINC = {
    "domains.json": {"banking": ["pay_bill"]},
    "data_full.json": {"train": [["pay it", "pay_bill"]], "test": [["pay", "pay_bill"]]},
}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("domains.json", "[" * 100_000, r"domains\.json: its JSON is nested too deeply"),
        ("domains.json", "{torn", r"domains\.json: not JSON"),
        ("domains.json", "[1]", r"domains\.json: holds no JSON object"),
        ("domains.json", '{"banking": 3}', r"domains\.json: 'banking' is no list of intents"),
        ("domains.json", '{"banking": ["fly"]}', "no text of class 'fly' in one of the splits"),
        ("data_full.json", '{"train": 3}', r"data_full\.json: holds no list 'train'"),
        (
            "data_full.json",
            '{"train": [["a", "pay_bill"], ["b", 3]], "test": []}',
            r"data_full\.json, train, row 2: is no pair of a text and an intent",
        ),
    ],
)
def test_intents_that_do_not_fit(tmp_path: Path, file: str, content: str, message: str) -> None:
    for name, value in CLINC.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert len(class_data.load("clinc150", tmp_path, 1, 1)) == 1
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message):
        class_data.load("clinc150", tmp_path, 1, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3,title,text", r"train\.csv, row 2: class '3' is no number from 1 to 2"),
        ("0,title,text", r"train\.csv, row 2: class '0' is no number"),
        ("-1,title,text", r"train\.csv, row 2: class '-1' is no number"),
        ("1,title", r"train\.csv, row 2: 2 fields, not 3"),
        ('1,title,"' + "x" * 200_000 + '"', r"train\.csv: is no table \(field larger"),
    ],
)
def test_classes_that_do_not_fit(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text("Company\nArtist\n")
    good = "1,a,b\n2,c,d\n"
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(good)
    assert class_data.load("dbpedia", tmp_path, 1, 1)[0].labels == ["Company", "Artist"]
    (tmp_path / "train.csv").write_text(f"1,a,b\n{row}\n2,c,d\n")
    with pytest.raises(InputError, match=message):
        class_data.load("dbpedia", tmp_path, 1, 1)


def test_a_domain_without_text_is_named(
    given: list[str], corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("one line only")
    given += ["--tokenizer", str(corpora / "tokenizer")]
    texts = [str(tmp_path / f"{name}.txt") for name in ("a", "b")]
    refused(["continual", *given, "--text", *texts], "a: too short for a domain", capsys)
    shards = ["--shards", str(corpora / "shards"), "--corpora", "left,up"]
    refused(["continual", *given, *shards], "no shards of corpus up; there are left, right", capsys)
