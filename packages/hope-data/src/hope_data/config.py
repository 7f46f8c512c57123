"""What a corpus is made of: the settings of a manifest and their defaults."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from hope_data.errors import InputError

KINDS = ("installed-docs", "jsonl", "text", "parquet", "hf")
CONTENTS = ("prose", "code")


@dataclass(frozen=True)
class Limits:
    """Where acquiring stops; 0 means no limit.

    Attributes:
        documents: number of documents.
        bytes: UTF-8 bytes of text; the last document may go over.
    """

    documents: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Installed:
    """Where kind `installed-docs` looks.

    Attributes:
        packages: import names, `a.b` for a part of one, `stdlib`, or `topics` (the interpreter's help texts).
        what: `docs` (docstrings and help texts) or `code` (source without its docstrings).
        skip: folder or file names left out.
        file_bytes: `code` leaves out longer files, which tend to be generated tables.
    """

    packages: list[str] = field(default_factory=list)
    what: str = "docs"
    skip: list[str] = field(
        default_factory=lambda: ["test", "tests", "idle_test", "site-packages", "_vendor"]
    )
    file_bytes: int = 60_000


@dataclass(frozen=True)
class Hub:
    """What kind `hf` loads with the `datasets` library.

    Attributes:
        path: data set on the hub, or a local folder of parquet, JSONL, CSV or text files.
        name: its configuration.
        split: preferred split; where it is absent the first split there is.
        revision: commit or tag that fixes the data.
        streaming: read over the network without downloading everything first.
    """

    path: str = ""
    name: str = ""
    split: str = "train"
    revision: str = ""
    streaming: bool = True


@dataclass(frozen=True)
class FilterConfig:
    """Thresholds of `hope-data filter`; 0 switches a rule off.

    Sources: Rae et al. 2021 (Gopher), table A1, for repetition and words; Raffel et al. 2020 (C4).

    Attributes:
        language: ISO 639-1 code of the language to keep, such as `en`: a document that is surely in another goes. ""
            takes any. Never asked of code.
        min_chars: shortest document.
        max_chars: longest document.
        min_letters: least share of alphabetic characters among those that are not white space.
        max_symbols: most `#` and `…` per word. Here and below, where a script puts no space between words, each of its
            characters counts as a word.
        max_bullets: most lines that begin with a bullet, as a share.
        max_duplicate_lines: most characters in lines that repeat an earlier line, as a share.
        max_top_trigram: most characters in the commonest word trigram, as a share.
        max_word: longest mean word, in characters.
        near_duplicate: least share of equal MinHashes of word trigrams at which a document resembles an earlier
            one and goes. Two texts that differ in 5 % of their words share 0.75.
        passage_lines: lines of a passage; one of twelve words (24 characters of Chinese) or more that an earlier
            document of the corpus has is cut, and a document goes of which less than `min_chars` is left. C4 cuts three
            sentences.
    """

    language: str = ""
    min_chars: int = 200
    max_chars: int = 0
    min_letters: float = 0.5
    max_symbols: float = 0.1
    max_bullets: float = 0.9
    max_duplicate_lines: float = 0.3
    max_top_trigram: float = 0.2
    max_word: float = 15.0
    near_duplicate: float = 0.65
    passage_lines: int = 0

    @classmethod
    def recorded(cls, record: dict[str, Any]) -> Self:
        """Thresholds as a raw corpus's provenance records them.

        Raises:
            InputError: written by another version of this package.
        """
        try:
            config = cls(**record)
        except TypeError as error:
            raise InputError(f"filter {record}: {error}; run `hope-data acquire` again") from None
        default = asdict(cls())
        if wrong := [key for key, value in asdict(config).items() if type(value) is not type(default[key])]:
            raise InputError(f"filter {record}: {wrong[0]} has another type; run `hope-data acquire` again")
        return config


@dataclass(frozen=True)
class Manifest:
    """One corpus.

    Attributes:
        kind: one of KINDS.
        licence: of the text, as its source states it.
        source: where it comes from, for people.
        content: `prose` or `code`; code is filtered more loosely.
        files: paths, folders or glob patterns for `jsonl`, `text` and `parquet`.
        fields: those that hold the text (`jsonl`, `parquet`, `hf`), strings or lists of strings.
        joiner: between fields, and between the strings of a list.
        separator: regular expression: a line it finds ends a document of a text file ("": its end does).
        drop_lines: regular expression: lines it finds are markup and go.
        chunk_bytes: longer texts are cut at paragraph ends into documents of about this size (0: never).
        limits: for scales that `scales` does not name.
        scales: scale to its limits.
        holdout: share of documents for val, and again for test.
        installed: for kind `installed-docs`.
        hub: for kind `hf`.
        filter: thresholds.
    """

    kind: str = "text"
    licence: str = "unknown"
    source: str = ""
    content: str = "prose"
    files: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=lambda: ["text"])
    joiner: str = ""
    separator: str = ""
    drop_lines: str = ""
    chunk_bytes: int = 0
    limits: Limits = field(default_factory=Limits)
    scales: dict[str, dict[str, int]] = field(default_factory=dict)
    holdout: float = 0.04
    installed: Installed = field(default_factory=Installed)
    hub: Hub = field(default_factory=Hub)
    filter: FilterConfig = field(default_factory=FilterConfig)

    def at(self, scale: str) -> Limits:
        """Limits at a scale."""
        return Limits(**self.scales[scale]) if scale in self.scales else self.limits

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# Source code breaks lines and repeats itself as a matter of course.
CODE_FILTER = FilterConfig(
    min_letters=0.25, max_symbols=0.0, max_bullets=0.0, max_duplicate_lines=0.6, max_top_trigram=0.3,
    max_word=60.0,
)  # fmt: skip
