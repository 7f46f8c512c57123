"""The model card of a release, in the format of Hugging Face: front matter, then Markdown; every figure from a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hope_data.errors import InputError
from hope_eval.escape import markdown, yaml
from hope_eval.files import read_json
from hope_eval.report.suites import MODES
from hope_eval.report.tables import table
from hope_eval.results import METRICS, Metric, Results, value
from hope_eval.results.names import NAME

LIMITS = """\
- A research artefact of a small scale: it has seen {tokens} tokens. It does not answer questions, and what it writes is
  neither true nor safe to act on.
- One training seed ({seed}). The standard errors say how well the items measure these weights, not how much another
  seed would change them.
- Memories are written while text is read: two users must never share a state, or one reads what the other wrote."""
USE = """\
```python
from hope_model import checkpoint

model, about = checkpoint.load("{run}")
logits, state = model(tokens)        # int64 [batch, time]; hand `state` on to continue
```

```sh
sha256sum -c SHA256SUMS              # in this folder
hope-eval package --verify .         # the same, then loads it and scores sample.json
hope-eval zeroshot --checkpoint . --mirror DIR --json zero.json
```"""


def corpora(names: Sequence[str], provenance: Path | None) -> list[tuple[str, str, str]]:
    """Name, licence and source of every training corpus; `unknown` where nothing tells."""
    rows = []
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(
                f"meta.json: corpora: {str(name)[:80]!r} is no name of a corpus; save the checkpoint again"
            )
        path = provenance / name / "provenance.json" if provenance else None
        record = read_json(path, "run `hope-data acquire` again") if path and path.is_file() else {}
        manifest, packages = record.get("manifest"), record.get("packages")
        own = manifest if isinstance(manifest, dict) else {}
        parts = packages if isinstance(packages, dict) else {}
        parts = {part: about for part, about in parts.items() if isinstance(about, dict)}
        licences = [own.get("licence", ""), *(about.get("licence", "") for about in parts.values())]
        source = own.get("source") or ", ".join(
            f"{n} {about.get('version', '')}" for n, about in parts.items()
        )
        licence = "; ".join(dict.fromkeys(str(x) for x in licences if x))
        rows.append((name, licence or "unknown", str(source) or "unknown"))
    return rows


def page(pack: Results, meta: Mapping[str, Any], sources: Sequence[tuple[str, str, str]]) -> str:
    """The card.

    Args:
        pack: all results of these weights.
        meta: the checkpoint's sidecar.
        sources: of `corpora`.
    """
    about, tool = pack.checkpoint, pack.evaluator
    tokens = "an unknown number of" if about.tokens is None else f"{about.tokens:,}"
    size = [
        ["variant", about.variant],
        ["parameters", f"{about.parameters:,}"],
        ["tokens seen", tokens],
        ["steps", str(about.step)],
        ["training length", str(meta.get("length", "unknown"))],
        ["seed", str(about.seed)],
        ["precision", str(meta.get("precision", "unknown"))],
        ["code", about.revision],
        ["weights, SHA-256", about.sha256],
        ["tokenizer, SHA-256", about.tokenizer_sha256],
    ]
    measured = (
        f"Measured by hope-eval {markdown(tool.hope_eval)} ({markdown(tool.revision)}), torch {markdown(tool.torch)}, "
        f"on {markdown(tool.device)}."
    )
    parts = [
        _front(about.run, about.variant, [name for name, *_ in sources]),
        f"# {markdown(about.run)}",
        f"A {markdown(about.variant)} language model of the HOPE lab, an open reproduction of *Nested Learning*.",
        table(["", "value"], size),
        "## Use",
        USE.format(run=about.run),
        "## Results",
        f"{measured} ± is one standard error; all items and groups: `results/`, `report.md`, `report.html`.",
        table(["task", "metric", "value", "chance", "n", "seed", "version"], _rows(pack)),
        *_memorised(pack),
        "## Training data",
        table(["corpus", "licence", "source"], [list(row) for row in sources]),
        "## Limits",
        LIMITS.format(tokens=tokens, seed=about.seed),
    ]
    return "\n\n".join(parts) + "\n"


def _front(run: str, variant: str, names: Sequence[str]) -> str:
    # Weights made of other people's text: what their licences ask is the reader's to judge, see the table.
    lines = ["license: other", "license_name: see-training-data", "library_name: hope-model", "language: en"]
    lines += ["pipeline_tag: text-generation", f"model_name: {yaml(run)}"]
    lines += [f"tags: [nested-learning, {yaml(variant.replace('_', '-'))}]"]
    lines += [f"corpora: [{', '.join(map(yaml, names))}]"]
    return "\n".join(["---", *lines, "---"])


def _rows(pack: Results) -> list[list[str]]:
    return [
        [task.task, METRICS[m.name].title, *_numbers(m), str(task.seed), str(task.version)]
        for task in pack.tasks
        for m in task.metrics
        if m.group == "all"
    ]


def _numbers(m: Metric) -> list[str]:
    return [value(m.value, m.stderr), "" if m.chance is None else f"{m.chance:.3g}", f"{m.n:,}"]


def _memorised(pack: Results) -> list[str]:
    rows = [
        [row.task, row.mode, METRICS[row.metric].title, value(row.difference, row.stderr), f"{row.n:,}"]
        for row in pack.memorized
        if row.group == "all" and row.mode in MODES
    ]
    if not rows:
        return []
    header = ["task", "mode", "metric", "memories written minus frozen", "n"]
    return ["### Memorisation at test time", table(header, rows)]
