"""Every evaluator on one checkpoint at small sizes: the commands that make its pack."""

import argparse
from dataclasses import dataclass

from hope_eval.zeroshot.mirror import FILES


@dataclass(frozen=True)
class Sizes:
    """How much is asked; standard errors at these sizes stand beside every result.

    Attributes:
        rows: of each zero-shot task.
        articles: of WikiText.
        lengths: of needle prompts; four times the training length of smoke is what its attention allows.
        questions: of each bAbI file.
        book_tokens: of each book.
        learned: tokens of each domain of a stream.
        held_out: tokens measured of each domain.
        groups: of classes that come one after another.
        shots: examples learned of each class.
        memorized: items asked with memories frozen and written.
    """

    rows: int = 100
    articles: int = 4
    lengths: str = "512,2k"
    questions: int = 30
    book_tokens: int = 2048
    learned: int = 2000
    held_out: int = 400
    groups: int = 2
    shots: int = 2
    memorized: int = 100


def pieces(given: argparse.Namespace, sizes: Sizes, *, bounded: bool, writes: bool) -> list[list[str]]:
    """Arguments of `hope-eval`, one list a command; evaluators without data are left out.

    Args:
        given: what `hope-eval suite` was told.
        sizes: how much is asked.
        bounded: whether the state stays as large as it is; full attention can only be trained on streams.
        writes: whether the model has memories to write at test time.
    """
    model = ["--checkpoint", str(given.checkpoint), "--tokenizer", str(given.tokenizer)]
    model += ["--json", str(given.json), "--add"]
    shards = ["--shards", str(given.shards)]
    text = ["--text", *map(str, given.text)]
    learn = ["--learn", "memorize" if bounded else "train"]
    stream = ["--tokens", str(sizes.learned), "--held-out", str(sizes.held_out)]
    made = [["run", *model, *shards]]
    if given.mirror:
        mirror = ["--mirror", str(given.mirror)]
        rows = ",".join(task for task in FILES if task != "wikitext")
        made.append(["zeroshot", *model, *mirror, "--tasks", rows, "--limit", str(sizes.rows)])
        made.append(["zeroshot", *model, *mirror, "--tasks", "wikitext", "--limit", str(sizes.articles)])
    needles = "niah_single_1,niah_multikey_2"
    if given.text:
        needles = "niah_single_1,niah_single_2,niah_single_3,niah_multikey_1,niah_multivalue,niah_multiquery"
    asked = ["--tasks", needles, "--lengths", sizes.lengths, "--depths", "0,0.5,1", "--repeats", "1"]
    made.append(["needle", *model, *asked, *(text if given.text else [])])
    if given.babi:
        made.append(["babi", *model, "--data", *map(str, given.babi), "--limit", str(sizes.questions)])
    if given.text:
        made.append(["books", *model, *text, "--max-tokens", str(sizes.book_tokens)])
    made.append(["continual", *model, *shards, *learn, *stream])
    if given.clinc150:
        classes = ["--classes", "clinc150", "--data", str(given.clinc150), "--limit", str(sizes.groups)]
        made.append(["continual", *model, *classes, *learn, "--shots", str(sizes.shots)])
    if writes:
        made.append(
            ["run", *model, *shards, "--tasks", "choice", "--limit", str(sizes.memorized), "--memorize"]
        )
    return made
