"""Adaptation at test time: every method against its definition, and as one interface from tuning to a result file."""

from __future__ import annotations

import copy
import json
import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hope_data.errors import InputError
from hope_data.shards import Split
from hope_data.tokenizer import Tokenizer
from hope_eval import results as schema
from hope_eval.cli import main
from hope_eval.scoring.adaptation import parse, wrap
from hope_eval.scoring.adaptation.dials import (
    ADAPTATIONS,
    Adaptation,
    Dynamic,
    NeuralCache,
    Off,
    UnigramCache,
    Writes,
)
from hope_eval.scoring.load import HFModel, HopeModel, load
from hope_eval.scoring.paired import adapted, flops_per_token
from hope_eval.scoring.scorer import Scorer
from hope_eval.tasks import perplexity
from hope_eval.tasks.base import Context
from hope_eval.tasks.tune import tune
from hope_model import LanguageModel, ModelConfig, checkpoint, counting
from hope_model.adapt import attach_memory

sys.path.insert(0, str(Path(__file__).parent))

B, T, V = 2, 41, 320
Build = Callable[..., Context]
EVERY = [Writes(period=8), NeuralCache(tokens=20), UnigramCache(), Dynamic("sgd", 0.1, 0.01, 8)]


def plain_model(variant: str = "gated_deltanet") -> LanguageModel:
    torch.manual_seed(0)
    values = {"variant": variant, "vocab_size": V, "dim": 32, "layers": 2, "head_dim": 16, "init_std": 0.3}
    values["cms"] = {"smallest": 8, "signal": "layer"}
    return LanguageModel(ModelConfig.from_dict(values)).double().eval()


def hf_model() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=V, initializer_range=0.3, **sizes)
    return transformers.LlamaForCausalLM(config).double().eval()


@pytest.fixture
def tokens() -> Tensor:
    # Few kinds, so that contexts repeat.
    return torch.randint(5, 15, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("host", ["ours", "transformers"])
@pytest.mark.parametrize("dials", EVERY, ids=lambda dials: dials.name)
@torch.no_grad()
def test_any_split_rows_alone_forks_and_the_model_unchanged(
    dials: Adaptation, host: str, tokens: Tensor
) -> None:
    inner = HopeModel(plain_model()) if host == "ours" else HFModel(hf_model())
    before = copy.deepcopy(inner.model.state_dict())
    plain, _ = inner(tokens, None)
    model = wrap(inner, dials)
    whole, _ = model(tokens, None)
    difference = (whole.log_softmax(-1) - plain.log_softmax(-1)).abs().amax((0, 2))
    assert difference[0] < 1e-9  # nothing has been read
    assert difference[-1] > 1e-3
    state, outputs = None, []
    for piece in tokens.split([1, 7, 1, 8, 19, 5], 1):
        logits, state = model(piece, state)
        outputs.append(logits)
    assert (torch.cat(outputs, 1) - whole).abs().max() < 1e-9
    assert (model(tokens[1:], None)[0] - whole[1:]).abs().max() < 1e-9
    _, middle = model(tokens[:, :17], None)
    rows = torch.tensor([1, 1, 0])
    forked, _ = model(tokens[rows, 17:], model.fork(middle, rows))
    assert (forked - whole[rows, 17:]).abs().max() < 1e-9
    at = (torch.tensor([0, 1]), torch.tensor([3, 40]))
    assert torch.equal(model(tokens, None, at)[0], whole[at])
    after = inner.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(inner(tokens, None)[0], plain)


@pytest.mark.parametrize(
    "variant", ["gated_deltanet", "hope", "transformers"]
)  # the second runs its head twice
@pytest.mark.parametrize("dials", [NeuralCache(0.3, 0.05, 12), UnigramCache(0.3, 12)], ids=lambda d: d.name)
@torch.no_grad()
def test_caches_are_the_formula_token_by_token(dials: Any, variant: str, tokens: Tensor) -> None:
    """p = (1 - strength) p_model + strength sum_i 1[x_(i+1) = w] exp(sharpness h_t . h_i) / Z."""
    inner = HFModel(hf_model()) if variant == "transformers" else HopeModel(plain_model(variant))
    logits, hidden, _ = inner.with_hidden(tokens[:1], None)
    assert torch.allclose(inner.head(hidden), logits)
    h, x = hidden[0], tokens[0].tolist()
    found, _ = wrap(inner, dials)(tokens[:1], None)
    for t in range(T):
        p = logits[0, t].softmax(-1)
        pairs = range(max(0, t - 12), t)
        if pairs:
            sharpness = getattr(dials, "sharpness", 0.0)
            weights = [math.exp(sharpness * float(h[t] @ h[i])) for i in pairs]
            p = 0.7 * p
            for i, weight in zip(pairs, weights, strict=True):
                p[x[i + 1]] += 0.3 * weight / sum(weights)
        assert (found[0, t].exp() - p).abs().max() < 1e-9


@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_dynamic_evaluation_is_training_while_reading(rule: str, tokens: Tensor) -> None:
    """Real steps on a copy of the model, segment by segment, as eq. 5 to 8 have them."""
    segment, rate, decay = 8, 0.02, 0.1  # epsilon 0.5
    texts = [torch.randint(5, 15, (26,), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    inner = plain_model()
    found, _ = wrap(HopeModel(inner), Dynamic(rule, rate, decay, segment, 0.5), texts)(tokens[:1], None)
    names = [name for name, _ in inner.named_parameters()]
    squares = {name: 0.0 * p.detach() for name, p in inner.named_parameters()}
    parts = [part for text in texts for part in torch.split(text, segment + 1) if len(part) > 1]
    for part in parts:
        loss = F.cross_entropy(inner(part[None, :-1])[0][0], part[1:])
        for name, g in zip(names, torch.autograd.grad(loss, list(inner.parameters())), strict=True):
            squares[name] += g.square() / len(parts)
    roots = {name: s.sqrt() for name, s in squares.items()}
    mean = torch.cat([r.flatten() for r in roots.values()]).mean()
    learner, state, outputs = copy.deepcopy(inner), None, []
    for start in range(0, T, segment):
        piece = tokens[:1, start : start + segment]
        logits, state = learner(piece, state)
        outputs.append(logits.detach())
        targets = tokens[0, start + 1 : start + 1 + segment]
        if start + segment >= T:
            break
        F.cross_entropy(logits[0], targets).backward()
        state = checkpointed(state)
        with torch.no_grad():
            for (name, p), trained in zip(learner.named_parameters(), inner.parameters(), strict=True):
                pull, step = decay * (trained - p), rate * p.grad
                if rule == "rms":
                    step = step / (roots[name] + 0.5 * mean)
                    pull = (decay * roots[name] / mean).clamp(max=1) * (trained - p)
                p += pull - step
                p.grad = None
    assert (found - torch.cat(outputs, 1)).abs().max() < 1e-9


def checkpointed(state: Any) -> Any:
    from hope_model.state import detach

    return detach(state)


@torch.no_grad()
def test_writes_are_an_attached_memory(tokens: Tensor) -> None:
    inner = plain_model()
    dials = Writes(scale=0.7, period=8, bound=0.2, retention=0.9, clip=0.5, threshold=0.01, matrices="all")
    found, _ = wrap(HopeModel(inner), dials)(tokens, None)
    assert "forward" not in vars(inner)
    memory = attach_memory(
        inner, scale=0.7, periods=8, bound=0.2, retention=0.9, clip=0.5, threshold=0.01, matrices="all"
    )
    expected, _ = memory(tokens)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_off_is_the_model_without_writes(model: LanguageModel, tokens: Tensor) -> None:
    found, _ = wrap(HopeModel(model), Off())(tokens, None)
    silent = model.settings()._replace(teach_scale=0.0, surprise_threshold=0.0, writes=())
    expected, _ = model(tokens, model.initial(B, silent))
    assert torch.equal(found, expected)
    assert not torch.equal(found, model(tokens)[0])


def test_tasks_plain_and_adapted_with_difference_and_cost(context: Build) -> None:
    inner = plain_model().float()
    given = context(limit=12)
    scorer = Scorer(inner, batch_tokens=512)
    settings = perplexity.Settings(tokens=2000)

    def run(scorer: Scorer) -> list[schema.TaskResult]:
        return perplexity.run_all(Context(**{**vars(given), "scorer": scorer}), settings)

    tasks, rows = adapted(scorer, [NeuralCache()], run, run, length=64)
    assert scorer.model.model is inner
    names = ["perplexity", "perplexity_position", "perplexity_target", "perplexity_source"]
    assert [task.task for task in tasks] == names + [f"{name}+neural_cache" for name in names]
    plain, changed = tasks[0], tasks[4]
    assert plain.items_sha256 == changed.items_sha256
    [row] = [r for r in rows if (r.task, r.metric, r.group) == ("perplexity", "bits_per_byte", "all")]
    bits = [task.find("bits_per_byte").value for task in (plain, changed)]
    assert (row.frozen, row.written, row.mode) == (*bits, "neural_cache")
    assert row.difference == pytest.approx(bits[1] - bits[0], abs=1e-9)
    groups = {r.group for r in rows if r.metric == "token_nats"}
    assert {"target=new", "target=trigram seen", "position=0-31", "position=32-63"} <= groups
    own = counting.flops_per_token(inner.config, 64)
    assert changed.settings["plain_flops_per_token"] == round(own)
    assert changed.settings["adapt_flops_per_token"] == 2 * 32 * 32  # half of 64 keys of 32 numbers
    assert changed.settings["adapt_state_bytes"] == 64 * 32 * 4 + 63 * 8
    assert changed.settings["adapt_sharpness"] == 0.1
    assert changed.settings["ms_per_token"] > 0
    assert wrap(HopeModel(inner), Dynamic("sgd")).flops_per_token(own, 64) == 2 * own


def test_operations_of_a_transformers_model_are_counted_by_torch() -> None:
    model = hf_model()
    products = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    assert flops_per_token(HFModel(model), 16) == 2 * products + 4 * 2 * 32 * 16


def test_tuning_reads_validation_text_only_and_finds_the_best(
    context: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = Split.open.__func__  # type: ignore[attr-defined]

    def spy(cls: type[Split], folder: Path, name: str, tokenizer: Tokenizer | None = None) -> Split:
        opened.append(name)
        return original(cls, folder, name, tokenizer)  # type: ignore[no-any-return]

    monkeypatch.setattr(Split, "open", classmethod(spy))
    given = context(scorer=Scorer(plain_model().float(), batch_tokens=512))
    said: list[dict[str, Any]] = []
    tuned = tune(given, UnigramCache(strength=0.01), 400, report=said.append)
    assert set(opened) == {"train", "val"}
    assert tuned.tried == said
    assert {trial["tokens"] for trial in said} == {128, 512, 2048}
    lowest = min(trial["bits_per_byte"] for trial in said)
    assert (tuned.bits_per_byte, tuned.split) == (lowest, "val")
    assert tuned.bits_per_byte < tuned.plain_bits_per_byte
    assert tuned.best["strength"] == 0.3  # an untrained model: counts are better, the more of them
    assert "strength" in tuned.at_edge


def saved(corpora: Path, folder: Path) -> list[str]:
    """A checkpoint, and the options that name it and its text."""
    meta = {"tokenizer_sha256": Tokenizer.load(corpora / "tokenizer").sha256, "corpora": ["left", "right"]}
    checkpoint.save(folder, plain_model().float(), {**meta, "run": "tiny", "length": 64})
    places = ["--checkpoint", folder, "--shards", corpora / "shards", "--tokenizer", corpora / "tokenizer"]
    return [*map(str, places), "--batch-tokens", "512"]


def test_several_adaptations_of_chosen_tasks_share_one_plain_run(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, common = tmp_path / "result.json", saved(corpora, tmp_path / "checkpoint")
    asked = ["--tasks", "perplexity,choice", "--limit", "4", "--adapt-tasks", "perplexity"]
    both = ["--adapt", "unigram_cache", "--adapt", "neural_cache:sharpness=0"]
    assert main(["run", *common, *asked, *both, "--json", str(out)]) == 0
    result = schema.load(out)
    names = ["perplexity", *(f"perplexity_{part}" for part in ("position", "target", "source"))]
    modes = ("", "+unigram_cache", "+neural_cache")
    assert {task.task for task in result.tasks} == {
        "choice",
        *(name + mode for name in names for mode in modes),
    }
    assert {row.task for row in result.memorized} == set(names)
    # Without sharpness every earlier token is alike, which is the unigram cache; strengths differ.
    plain, unigram, neural = (result.task(f"perplexity{mode}").find("bits_per_byte").value for mode in modes)
    assert len({plain, unigram, neural}) == 3
    assert result.task("perplexity").cpu_seconds > 0
    capsys.readouterr()
    assert main(["run", *common, *asked, *both[:2], *both[:2], "--json", str(out)]) == 2
    assert (
        capsys.readouterr().err == "error: --adapt: unigram_cache is there twice; run it into another file\n"
    )


def test_from_tuning_to_a_result_file(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = saved(corpora, tmp_path / "checkpoint")
    tuned = tmp_path / "writes.json"
    start = ["--adapt", "writes:period=16", "--tokens", "300"]
    assert main(["tune", *common, *start, "--json", str(tuned)]) == 0
    record = json.loads(tuned.read_text())
    assert record["adapt"] == "writes"
    assert record["checkpoint"]["run"] == "tiny"
    assert parse(str(tuned)) == Writes(**record["best"])
    capsys.readouterr()
    out = tmp_path / "result.json"
    asked = ["--tasks", "perplexity,perplexity_shuffled", "--limit", "2", "--adapt", str(tuned)]
    assert main(["run", *common, *asked, "--json", str(out)]) == 0
    result = schema.load(out)
    assert {row.mode for row in result.memorized} == {"writes"}
    assert result.task("perplexity_shuffled_target+writes") is not None
    assert "perplexity, adapted (writes) minus plain: bits_per_byte" in capsys.readouterr().out
    page = report_of(out, tmp_path)
    assert "## Zero-shot" not in page
    assert "## Memorisation" not in page
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line[:1] == "|"]
    bits = [result.task(task).find("bits_per_byte").value for task in ("perplexity", "perplexity+writes")]
    [row] = [row for row in rows if row[1:5] == ["result", "perplexity", "writes", "bits_per_byte"]]
    assert row[5:7] == [f"{value:.3f}" for value in bits]
    loss = result.task("perplexity_target+writes").find("token_nats", "target=trigram seen")
    shown = [row[5] for row in rows if row[1] == "result + writes" and len(row) == 7]
    assert schema.value(loss.value, loss.stderr) in shown
    for name in ("cost", "sources", "sources_shuffled"):
        assert f"plots/{name}.png" in page
        assert (tmp_path / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["run", *common, "--adapt", "writes", "--memorize", "--json", str(out)]) == 2
    assert capsys.readouterr().err == "error: --adapt and --memorize exclude each other; give one of them\n"


def report_of(result: Path, folder: Path) -> str:
    page = folder / "page.md"
    assert (
        main(["report", "--results", str(result), "--out", str(page), "--plots", str(folder / "plots")]) == 0
    )
    return page.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "cache",
            "no adaptation is called 'cache'; choose among writes, neural_cache, unigram_cache, dynamic, off",
        ),
        ("writes:scale", "--adapt writes:scale: 'scale' is not DIAL=VALUE"),
        (
            "writes:size=3",
            "writes has no dial 'size'; it has scale, period, bound, retention, clip, threshold, matrices",
        ),
        ("off:scale=3", "off has no dial 'scale'; it has none"),
        ("writes:scale=x", "writes.scale is 'x'; it must be a number"),
        ("writes:scale=nan", "writes.scale is nan; it must be a finite number, between 0 and 1,000"),
        (
            "neural_cache:tokens=1.5",
            "neural_cache.tokens is 1.5; it must be a whole number, between 1 and 1,048,576",
        ),
        ("dynamic:rule=adam", "dynamic.rule is 'adam'; choose one of sgd, rms"),
        ("nowhere.json", "nowhere.json: No such file or directory"),
    ],
)
def test_bad_adaptations_are_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text)
    assert str(error.value) == message


def test_dials_read_as_they_are_written() -> None:
    for kind in ADAPTATIONS.values():
        assert parse(kind().text()) == kind()
    assert parse("writes:scale=1,period=8") == Writes(scale=1.0, period=8)


def test_models_that_cannot_be_adapted_so(model: LanguageModel) -> None:
    with pytest.raises(InputError, match="--adapt writes: hope has a continuum memory in place of its MLPs"):
        wrap(HopeModel(model), Writes())
    with pytest.raises(InputError, match="--adapt dynamic: the rms rule needs training text"):
        wrap(HopeModel(plain_model()), Dynamic())
    with pytest.raises(InputError, match="--adapt off: this model has no memory of its own to switch off"):
        wrap(HopeModel(plain_model("transformer")), Off())
    once = wrap(HopeModel(plain_model()), NeuralCache())
    with pytest.raises(InputError, match="--adapt writes: CachedModel is adapted already"):
        wrap(once, Writes())


def test_the_example_reads_a_folder_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    import hf_models

    words = ["the hill and the tree", "a stone by the sea", "rain on the hill", "trees by the stone"]
    text = " ".join(words[n * n % 4] for n in range(40))
    (tmp_path / "text.txt").write_text(text)
    folder = hf_models.save_model(tmp_path / "llama", "llama", [text], 300, length=64)
    example = Path(__file__).parents[1] / "examples" / "adapt_a_pretrained_model.py"
    plot = tmp_path / "plot.png"
    given = [folder, tmp_path / "text.txt", "--plot", plot]
    monkeypatch.setattr(sys, "argv", [str(example), *map(str, given)])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    loaded = load(folder)
    ids = loaded.tokenizer.encode(text)
    windows = [ids[n : n + 65] for n in range(0, len(ids) - 1, 64)][max(1, len(ids) // 64 // 10) :]
    nats = [-x for x in Scorer(loaded.model).token_logp(windows)]
    bits = float(sum(x.sum() for x in nats)) / sum(map(len, nats)) / math.log(2) * len(ids) / len(text)
    assert said[0].split()[:2] == ["plain", f"{bits:.4f}"]
    assert [line.split("  ")[0].strip() for line in said] == ["plain", "writes", "neural cache"]
    assert min(float(line.split(" bits")[0].split()[-1]) for line in said[1:]) < bits
    assert plot.read_bytes()[:4] == b"\x89PNG"
