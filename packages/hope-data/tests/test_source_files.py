"""Which files a manifest means: all that lies there is taken, or counted and said."""

import json
import os
from pathlib import Path

import pytest

from hope_data import documents
from hope_data.cli import main
from hope_data.errors import InputError
from hope_data.source_files import find


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or f"Text of {path.name}.\n")
    return path


def names(*patterns: object, kind: str = "text") -> list[str]:
    return [name for _, name in find([str(pattern) for pattern in patterns], kind).files]


def test_suffixes_in_either_case_and_linked_folders_are_taken_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a person's own folder is: capitals, links, a cycle, other files, one that is empty."""
    books = tmp_path / "books"
    for i in range(20):
        write(books / f"a{i}.TXT")
        write(books / f"b{i}.txt")
    write(tmp_path / "elsewhere" / "c.Md")
    (books / "more").symlink_to(tmp_path / "elsewhere")
    (books / "deep").mkdir()
    (books / "deep" / "round").symlink_to(books)
    (books / "copy.txt").symlink_to(books / "b0.txt")
    (books / "gone.txt").symlink_to(tmp_path / "nowhere")
    (books / "round.txt").symlink_to("round.txt")
    os.mkfifo(books / "pipe.txt")
    (books / "empty.txt").touch()
    for name in ("cover.pdf", "x.PDF", "notes", "strange.s~x"):
        write(books / name)
    write(tmp_path / "m.yaml", f"files: ['{books}']\nlicence: mine\n")
    assert main(["acquire", "--manifest", str(tmp_path / "m.yaml"), "--out", str(tmp_path / "o")]) == 0
    record = documents.provenance(tmp_path / "o")
    assert record["documents"] == 41
    assert record["skipped"] == {
        "another suffix": 2,
        "broken link": 2,
        "link to a folder that is read already": 1,
        "no regular file": 1,
        "no text in it": 1,
        "same file by another name": 1,
        "suffix .pdf": 2,
    }
    assert capsys.readouterr().out.splitlines()[1] == (
        "m: files left out: another suffix 2, broken link 2, link to a folder that is read already 1, no regular "
        "file 1, no text in it 1, same file by another name 1, suffix .pdf 2"
    )
    assert "more/c.Md" in record["sources"]
    assert "b0.txt" in record["sources"]  # and not its link


def test_what_is_left_out_is_known_after_an_interruption_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hope_data import acquire
    from hope_data.errors import Unfinished

    for i in range(6):
        write(tmp_path / "in" / f"{i}.txt", f"{i}\n" * 100 if i % 2 else " ")
    write(tmp_path / "in" / "x.pdf")
    manifest = write(tmp_path / "m.yaml", f"files: ['{tmp_path / 'in'}']\n")
    monkeypatch.setattr(acquire, "PART_BYTES", 150)
    whole = acquire.acquire(manifest, "", tmp_path / "whole")
    assert whole["skipped"] == {"no text in it": 3, "suffix .pdf": 1}
    seal, ends = acquire.Work.seal, [True, False]

    def stop(self: object, step: str, i: int, part: dict[str, object]) -> None:
        seal(self, step, i, part)  # type: ignore[arg-type]
        if part["last"] == ends[-1]:
            raise Unfinished("enough")

    while ends:
        with monkeypatch.context() as patch:
            patch.setattr(acquire.Work, "seal", stop)
            with pytest.raises(Unfinished):
                acquire.acquire(manifest, "", tmp_path / "o")
        ends.pop()
        assert acquire.acquire(manifest, "", tmp_path / "o") == whole


def test_names_with_the_characters_of_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a [v1].txt")
    write(tmp_path / "a v.txt")  # what the pattern would mean
    write(tmp_path / "b [x]" / "c*.txt")
    write(tmp_path / "b [x]" / "d.txt")
    write(tmp_path / "b x" / "no.txt")
    assert names(tmp_path / "a [v1].txt") == ["a [v1].txt"]
    assert names(tmp_path / "b [x]") == ["c*.txt", "d.txt"]
    assert names(tmp_path / "b [x]" / "*.txt") == ["c*.txt", "d.txt"]
    assert names(tmp_path / "b [x]" / "c*.txt") == ["c*.txt"]
    assert names(tmp_path / "b [x]" / "[d].txt") == ["d.txt"]
    monkeypatch.chdir(tmp_path)
    assert names("b [x]/d.txt", "./a v.txt") == ["d.txt", "a v.txt"]


def test_home_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "books" / "a.txt")
    write(tmp_path / "$HOME" / "b.txt")
    assert names("~/books") == names("~/books/*.txt") == names("~/books/a.txt") == ["a.txt"]
    assert names("$HOME") == ["b.txt"]  # a folder of that name, and no variable
    with pytest.raises(
        InputError, match=r"^\$NO/books: no such file .*; an environment variable is written \$\{oc"
    ):
        names("$NO/books")
    with pytest.raises(InputError, match=r"^~nobody-here/x: "):
        names("~nobody-here/x")


def test_equal_names_in_different_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("one/books", "two/books", "three"):
        write(tmp_path / folder / "x.txt", f"{folder}\n" * 50)
    write(tmp_path / "three" / "y.txt")
    folders = [tmp_path / "one" / "books", tmp_path / "two" / "books", tmp_path / "three"]
    assert names(*folders) == ["one/books/x.txt", "two/books/x.txt", "three/x.txt", "y.txt"]
    assert names(tmp_path / "one" / "books" / "x.txt", tmp_path / "three" / "*.txt") == [
        "books/x.txt",
        "three/x.txt",
        "y.txt",
    ]
    write(tmp_path / "m.yaml", f"files: {json.dumps([str(folder) for folder in folders])}\n")
    assert main(["acquire", "--manifest", str(tmp_path / "m.yaml"), "--out", str(tmp_path / "o")]) == 0
    assert list(documents.provenance(tmp_path / "o")["sources"]) == [
        "one/books/x.txt",
        "three/x.txt",
        "two/books/x.txt",
        "y.txt",
    ]
    ids = [document.id for document in documents.read(tmp_path / "o")]
    assert len(set(ids)) == len(ids) == 4


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    write(tmp_path / os.fsdecode(b"caf\xe9.txt"), "text\n")
    assert names(tmp_path) == ["caf\\xe9.txt"]


def test_nothing_to_take_says_what_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.pdf")
    for pattern, message in (
        ("nowhere.txt", f"no such file or folder (looked for {tmp_path / 'nowhere.txt'})"),
        ("*.txt", f"no text file matches (looked for {tmp_path / '*.txt'})"),
        ("in", "no text file here among 1 files (it has none that ends in .txt .txt.gz .txt.zst .md"),
    ):
        with pytest.raises(InputError) as error:
            names(tmp_path / pattern)
        assert str(error.value).startswith(f"{tmp_path / pattern}: {message}")
    if os.geteuid():
        (tmp_path / "in").chmod(0)
        with pytest.raises(InputError, match="Permission denied"):
            names(tmp_path / "in")


def test_a_pattern_says_which_folders_it_does_not_enter(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "sub" / "b.txt")
    assert find([f"{tmp_path}/*"], "text").skipped == {"folder that a pattern without ** matches": 1}
    assert names(f"{tmp_path}/**") == ["a.txt", "b.txt"]
    (tmp_path / "sub" / "round").symlink_to(tmp_path)
    assert names(f"{tmp_path}/**") == ["a.txt", "b.txt"]  # and not forty times
