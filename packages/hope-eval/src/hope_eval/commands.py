"""The table of commands: names, texts and options; `cli` holds what they do."""

from pathlib import Path

from hope_eval.arguments import (
    Command,
    Group,
    Option,
    depths,
    device,
    fraction,
    lengths,
    names,
    option,
    positive,
    relative_length,
    seed,
    story_lengths,
    switch,
)

EXAMPLES = """examples:
  hope-eval run --checkpoint runs/hope/checkpoint --shards data/shards --tokenizer data/tokenizer \\
      --json reports/results/hope.json --metrics reports/metrics/eval_hope.json
  hope-eval zeroshot --checkpoint runs/hope/checkpoint --tasks piqa,boolq --mirror DIR --json zeroshot.json
  hope-eval compare reports/results/hope.json reports/results/transformer.json
  hope-eval report --results reports/results --logs runs --out reports/results.md --plots reports/plots
"""
ADAPTATIONS = "writes, neural_cache, unigram_cache, dynamic, off"


def _path(flag: str, text: str, metavar: str = "DIR", *, required: bool = False) -> Option:
    return option(flag, text, Path, metavar, required=required)


def _paths(flag: str, text: str, metavar: str = "PATH", *, required: bool = False) -> Option:
    return option(flag, text, Path, metavar, nargs="+", default=[], required=required)


def _seed(text: str) -> Option:
    return option("--seed", f"{text}; default: %(default)s", seed, "S", default=0)


def _batch_tokens(default: int, text: str = "per forward pass; default: %(default)s") -> Option:
    return option("--batch-tokens", text, positive, "N", default=default)


JSON = _path("--json", "the whole result, item by item", "FILE", required=True)
ADD = switch("--add", "keep other tasks of FILE, which must be of the same weights")
DEVICE = option("--device", "default: %(default)s", device, default="cpu")
TOKENIZER = _path("--tokenizer", "default: found by the hash that the checkpoint names")
MODEL = (
    _path("--checkpoint", "ours, or a folder of transformers", required=True),
    TOKENIZER,
    JSON,
    ADD,
    DEVICE,
    _batch_tokens(1024),
)
MEMORIZE = Group(
    (
        switch("--memorize", "run both; the other options imply it"),
        option("--memorize-steps", "read each context N times", positive, "N"),
        option("--memorize-paths", "of titans, cms.0, cms.1 ...; default: all", names, "A,B"),
        option("--memorize-threshold", "smaller teach signals write nothing", fraction, "X"),
        option("--memorize-scale", "strength of the CMS writes", fraction, "X"),
        switch("--memorize-carry", "carry the state from item to item"),
        switch("--memorize-oracle", "read correct answers too: an upper bound, no result"),
    ),
    "memorisation at test time",
    "each task twice, memories frozen and written, with the paired difference in the same file",
)
ADAPT = option(
    "--adapt",
    "each task plain and adapted at test time, with the paired difference: "
    f"{ADAPTATIONS}; or a file of `tune`",
    metavar="NAME[:DIAL=VALUE,...]",
)

RUN = Command(
    "run",
    "evaluate one checkpoint",
    "Evaluate one checkpoint on the test split of its corpora. The same seed, limit and length give every checkpoint "
    "the same items, so that results can be compared in pairs.",
    (
        _path("--checkpoint", "ours, or a folder of transformers", required=True),
        _path("--shards", "folder with a folder per corpus", required=True),
        TOKENIZER,
        JSON,
        ADD,
        _path("--metrics", "a few numbers, flat, for `dvc metrics`", "FILE"),
        option("--tasks", "default: %(default)s", names, "A,B", default="perplexity,choice,passkey"),
        option("--domains", "corpora; default: those it was trained on", names, "A,B", default=""),
        option("--limit", "fewer items, for a quick look", positive, "N"),
        option("--length", "window; default: as in training", positive, "T", default=0),
        _seed("of the items"),
        DEVICE,
        _batch_tokens(4096),
        MEMORIZE,
        ADAPT,
    ),
)
ZEROSHOT = Command(
    "zeroshot",
    "PIQA, HellaSwag, ... with lm-eval's own task definitions",
    "Score a checkpoint, ours or of transformers, on tasks of lm-eval: prompts and metrics are lm-eval's, rows come "
    "from the hub or from a local mirror. Needs hope-eval[lm-eval].",
    (
        *MODEL,
        option("--tasks", "default: the whole suite", names, "A,B", default=""),
        _path("--mirror", "folder with the rows; nothing is downloaded"),
        option("--limit", "the first N rows of each task", positive, "N"),
        option("--max-length", "default: as in training", positive, "T", default=0),
        MEMORIZE,
        ADAPT,
    ),
)
NEEDLE = Command(
    "needle",
    "values hidden in long texts, by length and depth (RULER's kinds)",
    "Ask for values hidden in a haystack, prompts of exactly the given token lengths; greedy generation is searched "
    "for them. Peak memory after each length stands in the notes.",
    (
        *MODEL,
        option("--tasks", "see the README; default: %(default)s", names, "A,B", default="niah_single_1"),
        option("--lengths", "tokens, as 512,8k,1M", lengths, "A,B", default=[1024, 2048]),
        option("--depths", "default: %(default)s", depths, "A,B", default="0,0.25,0.5,0.75,1"),
        option("--repeats", "prompts per length and depth", positive, "N", default=4),
        _paths("--text", "haystacks: .txt or folders"),
        _seed("of the prompts"),
        MEMORIZE,
        ADAPT,
    ),
)
BOOKS = Command(
    "books",
    "loss by position over whole texts",
    "Read each text once from its beginning, state carried: nats per token by position, bits per byte of the whole. "
    "Header and footer of Project Gutenberg are cut.",
    (
        *MODEL,
        _paths("--text", ".txt[.gz], or folders", required=True),
        option("--max-tokens", "of each text; default: all", positive, "T", default=0),
        MEMORIZE,
        ADAPT,
    ),
)
BABI = Command(
    "babi",
    "bAbI's stories, alone or scattered over other text (BABILong)",
    "Pick the answer among all of the file's, and write it greedily; length 0 is the story alone.",
    (
        *MODEL,
        _paths("--data", "qa*.txt of bAbI", "FILE", required=True),
        option("--lengths", "tokens, as 0,4k", story_lengths, "A,B", default=[0]),
        _paths("--text", "what facts are hidden in"),
        option("--limit", "questions; default: %(default)s", positive, "N", default=100),
        _seed("of what is drawn"),
        MEMORIZE,
        ADAPT,
    ),
)
CONTINUAL = Command(
    "continual",
    "forgetting and transfer over a stream of domains or of new classes",
    "Learn domains one after another, by memorising at test time or by training, and measure all of them after each: "
    "R[i][j], average forgetting, backward and forward transfer.",
    (
        *MODEL,
        Group(
            (
                option("--text", "a domain per file: its last tenth is held out", Path, "PATH", nargs="+"),
                _path("--shards", "a domain per corpus: train split learned, test measured"),
                option("--classes", "clinc150, banking77 or dbpedia, with --data", metavar="KIND"),
            )
        ),
        _path("--data", "folder of the labelled texts"),
        option("--corpora", "of --shards, in this order; default: all", names, "A,B", default=""),
        option(
            "--learn",
            "memorize (state), cms (the CMS's part of the state), train (weights, on a copy), replay or ewc (training "
            "that remembers), or each: all that the model can, memories frozen too",
            default="memorize",
        ),
        option("--lr", "of AdamW; default: %(default)s", fraction, default=1e-4),
        option("--penalty", "of ewc; default: %(default)s", fraction, default=1e6),
        option("--tokens", "learned of each domain", positive, "N", default=20_000),
        option("--held-out", "measured of each domain", positive, "N", default=5_000),
        option("--shots", "examples learned of each class", positive, "N", default=5),
        option("--questions", "asked of each class", positive, "N", default=1),
        option("--limit", "the first N domains or groups", positive, "N"),
        _seed("of what is drawn"),
        MEMORIZE,
        ADAPT,
    ),
)
BENCH = Command(
    "bench",
    "zero-shot examples/s against lm-eval's own hf model",
    "The same weights, rows and threads in one run; log-likelihoods are compared too.",
    (
        _path("--mirror", "folder with the rows", required=True),
        _path("--checkpoint", "of transformers; default: a random Llama"),
        option("--tasks", "", names, "A,B", default="piqa,arc_easy,boolq,hellaswag,lambada_openai"),
        option("--limit", "rows of each; default: %(default)s", positive, "N", default=40),
        option("--threads", "default: %(default)s", positive, "N", default=1),
        _path("--json", "the rows as JSON", "FILE"),
    ),
)
TASK = Command(
    "task",
    "accuracy by length on the synthetic task a checkpoint was trained on",
    "Fresh sequences of each length, the same for every checkpoint of a task; standard errors are over sequences. "
    "Task and training length come from the checkpoint.",
    (
        _path("--checkpoint", "", required=True),
        option(
            "--lengths",
            "tokens, or 2x for twice the training length; default: 1x 2x 4x 8x",
            relative_length,
            "T",
            nargs="+",
            default=["1x", "2x", "4x", "8x"],
        ),
        option("--count", "sequences per length; default: %(default)s", positive, "N", default=256),
        _seed("of the sequences"),
        JSON,
        ADD,
        DEVICE,
        _batch_tokens(4096, "default: %(default)s"),
        MEMORIZE,
        ADAPT,
    ),
    "example:\n  hope-eval task --checkpoint runs/parity/checkpoint --lengths 1x 2x 8x --json parity.json",
)
TUNE = Command(
    "tune",
    "choose the dials of an adaptation at test time on validation text",
    "Measure bits per byte of the validation split for one dial after another and write every trial. "
    "The file is what `hope-eval run --adapt FILE` takes. The test split is never read.",
    (
        option("--adapt", f"where to begin: {ADAPTATIONS}", metavar="NAME[:DIAL=VALUE,...]", required=True),
        _path("--checkpoint", "one of ours", required=True),
        _path("--shards", "a folder per corpus", required=True),
        TOKENIZER,
        _path("--json", "every trial and the best", "FILE", required=True),
        option("--domains", "default: those it was trained on", names, "A,B", default=""),
        option("--tokens", "of each trial; default: %(default)s", positive, "N", default=16_384),
        option("--dials", "tune these alone; default: all that have a grid", names, "A,B", default=()),
        option("--length", "window; default: as in training", positive, "T", default=0),
        _seed("of the text"),
        DEVICE,
        _batch_tokens(4096, "default: %(default)s"),
    ),
    "example:\n  hope-eval tune --adapt writes --checkpoint runs/gated_deltanet/checkpoint \\\n"
    "      --shards data/shards --tokenizer data/tokenizer --json writes.json",
)
SURPRISE = Command(
    "surprise",
    "a page of a text coloured by loss, with test-time writes and without",
    "Read a text twice, with test-time writes and without, and write a page that colours every token by its bits. For "
    "HOPE and Titans, the model's own memories; with --adapt, any model and a memory attached.",
    (
        option("checkpoint", "ours, or a folder of transformers", Path),
        option("text", "UTF-8 text, .gz and .zst too", Path),
        option("--html", "default: %(default)s", Path, "FILE", default=Path("surprise.html")),
        _path("--tokenizer", "default: beside the checkpoint"),
        option("--adapt", "e.g. writes, neural_cache", metavar="NAME[:DIAL=VALUE,...]", default=""),
        option("--tokens", "of the text; default: %(default)s", positive, "N", default=2048),
        DEVICE,
    ),
    "example:\n  hope-eval surprise runs/hope/checkpoint README.md --html surprise.html",
)
SUITE = Command(
    "suite",
    "all evaluators in one go, small: the pack of a checkpoint",
    "Run every evaluator whose data is given, at sizes that a smoke model answers within minutes, into one file. Each "
    "command is printed before it runs, to be repeated at other sizes. After an interruption the same command "
    "resumes: what was measured waits in a hidden folder beside the file.",
    (
        _path("--checkpoint", "one of ours", required=True),
        _path("--tokenizer", "its tokenizer", required=True),
        _path("--shards", "a folder per corpus", required=True),
        _path("--mirror", "rows of the zero-shot tasks"),
        _paths("--text", "books: haystacks too"),
        _paths("--babi", "qa*.txt of bAbI", "FILE"),
        _path("--clinc150", "data_full.json and domains.json"),
        _path("--json", "the pack", "FILE", required=True),
    ),
)
COMPARE = Command(
    "compare",
    "paired differences between two results",
    "A minus B over the same items; 95 % intervals from a paired bootstrap over documents, none below ten. They hold "
    "for these weights: which method is better takes several training seeds.",
    (
        option("a", kind=Path, metavar="A.json"),
        option("b", kind=Path, metavar="B.json"),
        _path("--json", "the same as JSON", "FILE"),
    ),
)
REPORT = Command(
    "report",
    "a page and pictures from results and training logs",
    "Write a Markdown page and PNG plots. Every figure comes from the files given.",
    (
        _paths("--results", "JSON files of `run`, or folders of RUN.json or RUN/SEED.json", required=True),
        _paths("--logs", "log.jsonl files, or folders with RUN/log.jsonl"),
        option(
            "--runs",
            "which, the first against the others; default: all by name",
            metavar="RUN",
            nargs="+",
            default=[],
        ),
        _path("--out", "Markdown page", "FILE", required=True),
        _path("--plots", "folder for the pictures", required=True),
        _path("--html", "the same as one self-contained page that sorts", "FILE"),
        _path("--changes", "what differs from the defaults, a line each: the page's head", "FILE"),
        _path("--curves", "loss of every seed as CSV, for `dvc plots`", "FILE"),
        _path("--metrics", "the differences, for `dvc metrics`", "FILE"),
    ),
)
PACKAGE = Command(
    "package",
    "a release of a checkpoint: weights, tokenizer, results, report, model card, sums",
    "Write one folder that loads and scores wherever it is copied, or check one.",
    (
        Group(
            (
                _path("--checkpoint", "one of ours"),
                _path("--verify", "a bundle: check sums, load it, score its sample"),
            )
        ),
        _paths("--results", "packs of these weights, files of `run` or `suite`"),
        _paths("--logs", "log.jsonl, for the report's curves"),
        _path("--tokenizer", "default: found by its hash"),
        option(
            "--provenance",
            "with CORPUS/provenance.json, for licences; default: %(default)s",
            Path,
            "DIR",
            default=Path("data/raw"),
        ),
        _path("--out", "the bundle"),
    ),
    "examples:\n  hope-eval package --checkpoint runs/hope/checkpoint --results reports/results/hope.json "
    "--out releases/hope\n  hope-eval package --verify releases/hope",
)
STAGE2 = Command(
    "stage2",
    "packs against each other and against the paper's rows, as a page",
    "Write a Markdown page: tasks of the paper's table, chance, cost, and what the numbers say.",
    (
        _paths("--packs", "results of `suite`; the first is compared with the others", required=True),
        option(
            "--training",
            "train_RUN.json; default: %(default)s",
            Path,
            "DIR",
            default=Path("reports/metrics"),
        ),
        _path("--out", "Markdown page", "FILE", required=True),
    ),
)
COMMANDS = (
    *(RUN, ZEROSHOT, NEEDLE, BOOKS, BABI, CONTINUAL, BENCH, TASK, TUNE),
    *(SURPRISE, SUITE, COMPARE, REPORT, PACKAGE, STAGE2),
)
