"""bAbI (arXiv 1502.05698), alone or with its facts scattered over other text as in BABILong (arXiv 2406.10149).

    <eos> John travelled to the hallway. ... other text ... Mary journeyed to the bathroom. ... other text ...
    Question: Where is John?
    Answer: hallway

Two measures of the same prompt: the answer picked by likelihood per token among all answers of the file, and greedy
generation that begins with it. Length 0 is the story alone; otherwise prompt and answer have exactly that length.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hope_data.errors import InputError
from hope_eval.files import read_text
from hope_eval.results import Items, TaskResult
from hope_eval.results.names import as_name
from hope_eval.scoring.load import Loaded
from hope_eval.scoring.memorize import Memorize, refuse_oracle
from hope_eval.scoring.scorer import Scorer, Tokens
from hope_eval.scoring.tokenizers import TextTokenizer
from hope_eval.tasks.base import Stopwatch
from hope_eval.tasks.texts import TextTask, haystack

VERSION = 1
LINE = re.compile(r"([0-9]{1,9}) (.*)")
QUESTION = re.compile(r"(.*\?) *[\t|] *([^\t|]*[^\t| ]) *(?:[\t|].*)?")


@dataclass(frozen=True)
class Question:
    """A question after the facts of its story so far."""

    facts: tuple[str, ...]
    question: str
    answer: str


def read(path: Path) -> list[Question]:
    """Questions of a file in bAbI's format.

    Raises:
        InputError: a line without its number, a question without its answer, or no question at all (file and line
            named).
    """
    questions: list[Question] = []
    facts: list[str] = []
    before = 0
    for number, text in enumerate(read_text(path).splitlines(), 1):
        line = LINE.fullmatch(text.strip())
        if not line or int(line[1]) not in (1, before + 1):
            raise InputError(
                f"{path}, line {number}: does not begin with the number {before + 1}, or 1 for a new story; bAbI's "
                "files number the lines of every story"
            )
        before = int(line[1])
        if before == 1:
            facts = []
        asked = QUESTION.fullmatch(line[2])
        if asked:
            questions.append(Question(tuple(facts), asked[1].strip(), asked[2].strip()))
        elif re.search(r"[\t|]|\?\s*$", line[2]):
            raise InputError(
                f"{path}, line {number}: a question without its answer; bAbI's have question?, tab, answer, tab, facts"
            )
        else:
            facts.append(line[2])
    if not questions:
        raise InputError(f"{path}: holds no question; name a qa*.txt of bAbI")
    return questions


def prompt(tokenizer: TextTokenizer, asked: Question, length: int, text: Tokens, start: int) -> Tokens:
    """The prompt for one question; facts stand evenly spread over `length` tokens, in order.

    Raises:
        InputError: the length has no room for the story.
    """
    end = np.array(tokenizer.encode(f"\nQuestion: {asked.question}\nAnswer:", special=False), np.int64)
    begin = np.array(tokenizer.encode("") or [tokenizer.eos_id], np.int64)
    parts = [np.array(tokenizer.encode(fact + "\n", special=False), np.int64) for fact in asked.facts]
    if not length:
        return np.concatenate([begin, *parts, end])
    room = len(tokenizer.encode(" " + asked.answer, special=False))
    size = length - room - len(begin) - len(end) - sum(map(len, parts))
    if size < 0:
        raise InputError(f"babi: length {length} is too short; this story alone takes {length - size} tokens")
    hay = np.resize(np.roll(text, -start), size)
    cuts = [round(size * (n + 1) / (len(parts) + 1)) for n in range(len(parts))]
    pieces, at = [begin], 0
    for part, cut in zip(parts, cuts, strict=True):
        pieces += [hay[at:cut], part]
        at = cut
    return np.concatenate([*pieces, hay[at:], end])


def task_name(path: Path) -> str:
    """What a file's task is called, such as `babi_qa1`."""
    return f"babi_{as_name(path.stem.split('_')[0])}"


@dataclass(frozen=True)
class Babi(TextTask):
    """Questions of several files.

    Attributes:
        data: files of bAbI.
        lengths: tokens of prompt and answer; 0: the story alone.
        text: files that facts are scattered over.
        limit: questions of each file.
        seed: of what is drawn.
    """

    data: Sequence[Path]
    lengths: list[int]
    text: Sequence[Path] = ()
    limit: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unreadable texts, and two files of one task."""
        super().__post_init__()
        tasks = [task_name(path) for path in self.data]
        if len(set(tasks)) < len(tasks):
            task = max(tasks, key=tasks.count)
            raise InputError(f"--data: several files make the task {task}; give one of them")

    def refuse(self, memorize: Memorize) -> None:
        refuse_oracle(memorize, "babi: an oracle is not defined here")

    def run(self, loaded: Loaded, scorer: Scorer) -> list[TaskResult]:
        tokenizer = loaded.tokenizer
        text = haystack(tokenizer, self.texts)
        return [run(scorer, tokenizer, path, self.lengths, text, self.limit, self.seed) for path in self.data]


def run(
    scorer: Scorer,
    tokenizer: TextTokenizer,
    path: Path,
    lengths: list[int],
    text: Tokens,
    limit: int,
    seed: int = 0,
) -> TaskResult:
    """Ask questions of one file at every length.

    Raises:
        InputError: an unfit file, lengths without text, or more than the model allows.
    """
    allowed = scorer.model.max_length
    if any(lengths) and not len(text):
        raise InputError("babi: lengths above 0 hide the facts in text; name files with --text")
    if allowed is not None and max(lengths) > allowed:
        raise InputError(f"babi: {max(lengths)} tokens, but attention of this model allows {allowed}")
    questions = read(path)
    answers = sorted({asked.answer for asked in questions})
    labels = [tokenizer.encode(" " + answer, special=False) for answer in answers]
    rng = np.random.default_rng(seed)
    chosen = [questions[n] for n in sorted(rng.permutation(len(questions))[:limit].tolist())]
    name = task_name(path)
    stories = (
        sum(len(fact) for asked in chosen for fact in asked.facts) // 3
    )  # about three characters a token
    planned = sum((length * len(chosen)) or stories for length in lengths)
    watch = Stopwatch(scorer, name, planned)
    picked, written, identity = [], [], []
    for length in lengths:
        for asked in chosen:
            tokens_T = prompt(tokenizer, asked, length, text, int(rng.integers(max(1, len(text)))))
            identity.append([tokens_T.tolist(), asked.answer])
            fork = scorer.prefill(tokens_T[None])
            picked.append(float(answers[int(scorer.labels(fork, labels).argmax())] == asked.answer))
            steps = len(tokenizer.encode(" " + asked.answer, special=False))
            text_written = tokenizer.decode(scorer.greedy(fork, steps)[0].tolist())
            written.append(float(text_written.strip() == asked.answer))
    items = Items(
        {"length": [str(length) for length in lengths for _ in chosen]},
        [n for _ in lengths for n in range(len(chosen))],
        [1.0] * len(picked),
        {"label_accuracy": picked, "exact_match": written},
    )
    return watch.finish(
        task=name,
        version=VERSION,
        settings={"lengths": lengths, "answers": len(answers)},
        seed=seed,
        items=items,
        identity=[name, VERSION, identity],
        chance={"label_accuracy": 1 / len(answers)},
    )
