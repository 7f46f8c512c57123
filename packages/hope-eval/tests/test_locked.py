"""Documents that are locked away: never scored before, half of the rest, and scored alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hope_data.errors import InputError
from hope_data.tokenizer import Tokenizer
from hope_eval.cli import main
from hope_eval.tasks import perplexity
from hope_eval.tasks.base import Context
from hope_eval.tasks.locked import Locked, unused


def hashes(context: Context, settings: perplexity.Settings) -> set[str]:
    return {
        perplexity.digest(context.split(domain), number)
        for domain in context.domains
        for number, _ in perplexity.chosen(context, domain, settings)
    }


def test_half_of_what_is_never_scored_is_locked_and_scored_alone(context: Callable[..., Context]) -> None:
    few, all_of_it = perplexity.Settings(tokens=400, length=64), perplexity.Settings(tokens=10**6, length=64)
    whole = context()
    locked = unused(whole, few)
    rest = hashes(whole, all_of_it) - hashes(whole, few)
    by_domain = [
        len({perplexity.digest(split, n) for n in range(split.n_documents)} & rest)
        for split in map(whole.split, whole.domains)
    ]
    assert len(locked.documents) == sum(count // 2 for count in by_domain) > 4
    assert locked.documents < rest
    alone = replace(whole, documents=locked.documents)
    assert hashes(alone, all_of_it) == locked.documents
    assert len(perplexity.run(alone, all_of_it).items.weight) == len(locked.documents)


def test_lock_and_documents_as_typed(
    corpora: Path, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [
        "--checkpoint",
        checkpoint_folder,
        "--shards",
        corpora / "shards",
        "--tokenizer",
        corpora / "tokenizer",
    ]
    common = list(map(str, places))
    listed = tmp_path / "locked.json"
    assert main(["lock", *common, "--json", str(listed)]) == 0
    assert capsys.readouterr().out.startswith("0 test documents locked"), "so little text is scored whole"
    assert main(["lock", *common, "--json", str(listed)]) == 2
    assert "is there already; a list is chosen once" in capsys.readouterr().err
    tokenizer = Tokenizer.load(corpora / "tokenizer").sha256
    one = Locked(tokenizer, frozenset([_first(corpora)]))
    listed.write_bytes(one.dumps())
    run = ["run", *common, "--json", str(tmp_path / "out.json"), "--documents", str(listed)]
    assert main([*run, "--tasks", "perplexity"]) == 0
    task = json.loads((tmp_path / "out.json").read_text())["tasks"][0]
    assert len(task["items"]["weight"]) == 1
    capsys.readouterr()
    assert main(run) == 2
    assert (
        "--documents: 'choice' takes no list; give --tasks perplexity,perplexity_shuffled"
        in capsys.readouterr().err
    )
    listed.write_bytes(replace(one, tokenizer_sha256="0" * 64).dumps())
    assert main([*run, "--tasks", "perplexity"]) == 2
    assert "lists documents as another tokenizer cuts them" in capsys.readouterr().err


def _first(corpora: Path) -> str:
    from hope_data.shards import Split

    return perplexity.digest(Split.open(corpora / "shards" / "left", "test"), 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"tokenizer_sha256": 1, "documents": []}',
        '{"tokenizer_sha256": "", "documents": [1]}',
    ],
)
def test_what_is_no_list_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json: not written by hope-eval lock"):
        Locked.read(tmp_path / "x.json")
