"""What lm-eval asks of a model, answered for any tokenisation, options and arguments; numbers from the bare model."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

if any(importlib.util.find_spec(name) is None for name in ("lm_eval", "transformers")):
    pytest.skip("lm-eval is not installed: pip install 'hope-eval[lm-eval]'", allow_module_level=True)

from lm_eval.api.instance import Instance

from hope_data.errors import InputError
from hope_data.tokenizer import Tokenizer
from hope_eval.lm_eval_bridge.model import HopeLM
from hope_model import LanguageModel
from hope_model.errors import InputError as ModelInputError

sys.path.insert(0, str(Path(__file__).parent))
import hf_models

CONTEXT = "The value is N"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer has Never, None, Nobody and ' a'."""
    texts = ["The value is Never None Nobody a ab", "cat sat on a mat"] * 60
    return hf_models.save_model(tmp_path_factory.mktemp("merging"), "llama", texts, vocab=330)


def nats(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Log-likelihood and whether it is greedy, by the bare model."""
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
    wanted = torch.tensor(continuation)
    greedy = bool((logits.argmax(-1) == wanted).all())
    return -float(F.cross_entropy(logits.float(), wanted, reduction="sum")), greedy


def ask(lm: Any, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    answers: list[tuple[float, bool]] = lm.loglikelihood(requests, disable_tqdm=True)
    return answers


def test_a_continuation_that_merges_with_its_context_is_scored_by_itself(folder: Path) -> None:
    """`Never` is one token: what a cut at the context's length leaves of it is nothing, and that is no score."""
    lm = HopeLM(folder)
    model, text = lm.loaded.model.model, lm.loaded.tokenizer.inner  # type: ignore[union-attr]
    assert [len(text.encode(CONTEXT + end)) for end in ("", "ever", "one", "obody")] == [4, 4, 4, 4]
    choices = ("ever", "one", "obody", "ever None", "xyz")
    answers = ask(lm, *((CONTEXT, choice) for choice in choices))
    for choice, (logp, greedy) in zip(choices, answers, strict=True):
        expected = nats(model, text.encode(CONTEXT), text.encode(choice))
        assert logp == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]
        assert logp < -0.5
    # A pass of nothing but such rows, and rows whose neighbours do not merge.
    assert ask(lm, (CONTEXT, "ever")) == [pytest.approx(answers[0], abs=1e-4)]
    theirs = ask(hf_models.hf_lm(folder), (CONTEXT, "xyz"))
    assert answers[4] == pytest.approx(theirs[0], abs=1e-4)


def test_edges_of_contexts_and_continuations(folder: Path) -> None:
    """Prefixes of one another, one space, no context, white space only, a text of the begin token alone."""
    lm = HopeLM(folder)
    model, text = lm.loaded.model.model, lm.loaded.tokenizer.inner  # type: ignore[union-attr]
    end = text.eos_token
    pairs = [
        ("cat", " a"), ("cat", " ab"), ("cat", " "), ("cat ", "a"), ("cat\n", "a"), ("", "cat"), (" ", "cat"),
        ("", end), ("", f"{end}cat"), (f"{end}cat", " a"), ("", " "),
    ]  # fmt: skip
    expected = [
        ("cat", " a"), ("cat", " ab"), ("cat", " "), ("cat", " a"), ("cat", "\na"), (end, "cat"), (end, " cat"),
        (end, end), (end, "cat"), (f"{end}cat", " a"), (end, " "),
    ]  # fmt: skip
    answers = ask(lm, *pairs)
    for answer, (context, continuation) in zip(answers, expected, strict=True):
        wanted = nats(model, text.encode(context), text.encode(continuation))
        assert answer == pytest.approx(wanted, abs=1e-4)
        assert answer[0] < 0
    sane = [
        pair for pair in pairs if pair not in (("", end), (" ", "cat"))
    ]  # of those two theirs makes an error
    for pair, theirs in zip(sane, ask(hf_models.hf_lm(folder), *sane), strict=True):
        assert answers[pairs.index(pair)] == pytest.approx(theirs, abs=1e-4)
    with pytest.raises(InputError, match=r"the continuation '' of \.\.\.'cat' has no token"):
        ask(lm, ("cat", " a"), ("cat", ""))


def test_our_tokenizer_scores_what_merges_too(checkpoint_folder: Path, model: LanguageModel) -> None:
    tokenizer = Tokenizer.load(checkpoint_folder.parents[2] / "tokenizer")
    lm = HopeLM(checkpoint_folder, tokenizer=checkpoint_folder.parents[2] / "tokenizer")
    eos, pieces = tokenizer.eos_id, [tokenizer.decode([n]) for n in range(3, tokenizer.vocab_size)]
    context, end = next(
        (f"a{piece[:cut]}", piece[cut:])
        for piece in pieces
        for cut in range(2, len(piece))
        if len(tokenizer.encode(f"a{piece[:cut]}")) == len(tokenizer.encode(f"a{piece}"))
    )
    ids = [eos, *tokenizer.encode(context)], tokenizer.encode(end)
    [(logp, _), (alone, _)] = ask(lm, (context, end), ("", end))
    with torch.no_grad():
        logits = model(torch.tensor([ids[0] + ids[1]]))[0][0, len(ids[0]) - 1 : -1]
    wanted = torch.tensor(ids[1])
    assert logp == pytest.approx(-float(F.cross_entropy(logits, wanted, reduction="sum")), abs=1e-4)
    assert alone < 0


def write(lm: Any, *requests: tuple[str, dict[str, Any]]) -> list[str]:
    made: list[str] = lm.generate_until(
        [Instance("generate_until", {}, request, n) for n, request in enumerate(requests)], disable_tqdm=True
    )
    return made


PROMPTS = ("The value is", "cat sat", "a")


def tokens(lm: HopeLM, text: str) -> int:
    return len(lm.tok_encode(text, add_special_tokens=False))


@pytest.mark.parametrize("key", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_every_name_of_the_length_limit_counts(folder: Path, key: str) -> None:
    lm = HopeLM(folder)
    model, text = lm.loaded.model.model, lm.loaded.tokenizer.inner  # type: ignore[union-attr]
    for steps in (4, 1, 0):
        made = write(lm, *((prompt, {key: steps, "until": []}) for prompt in PROMPTS))
        for prompt, written in zip(PROMPTS, made, strict=True):
            ids = text.encode(prompt)
            for _ in range(steps):
                with torch.no_grad():
                    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert written == text.decode(ids[len(ids) - steps :], skip_special_tokens=True)
    assert write(lm, ("cat", {key: 4, "max_gen_toks": 2})) == write(lm, ("cat", {"max_gen_toks": 2}))


def test_a_temperature_samples_whatever_the_batch(folder: Path) -> None:
    def drawn(batch: int, seed: int, **options: Any) -> list[str]:
        torch.manual_seed(seed)
        return write(
            HopeLM(folder, batch_size=batch),
            *((prompt, {"max_gen_toks": 12, **options}) for prompt in PROMPTS),
        )

    greedy = drawn(3, 0, do_sample=False)
    assert drawn(3, 0, do_sample=False, temperature=0.8) == greedy
    assert drawn(3, 0, temperature=0.0) == greedy
    assert drawn(3, 0, temperature=0.8, top_k=1) == greedy
    assert drawn(3, 0, temperature=0.8, top_p=1e-6) == greedy
    sampled = drawn(3, 0, temperature=0.8)
    assert all(a != b for a, b in zip(sampled, greedy, strict=True))
    assert drawn(1, 0, temperature=0.8) == drawn(2, 0, temperature=0.8) == sampled
    assert drawn(3, 1, temperature=0.8) != sampled
    assert drawn(3, 0, do_sample=True, temperature=1.0) == drawn(3, 0, do_sample=True)


def test_draws_have_the_models_probabilities(folder: Path) -> None:
    """A thousand draws of one token, against the softmax at a temperature of 1.5 over the three likeliest."""
    torch.manual_seed(0)
    lm = HopeLM(folder)
    made = write(lm, *[("cat sat", {"max_gen_toks": 1, "temperature": 1.5, "top_k": 3})] * 1000)
    with torch.no_grad():
        logits = lm.loaded.model.model(torch.tensor([lm.tok_encode("cat sat")])).logits[0, -1]  # type: ignore[union-attr]
    top = logits.topk(3)
    for p, token in zip((top.values / 1.5).softmax(-1).tolist(), top.indices.tolist(), strict=True):
        share = made.count(lm.loaded.tokenizer.decode([token])) / 1000
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 1000) ** 0.5)


def test_stop_texts_may_be_one_or_many(folder: Path) -> None:
    lm, options = HopeLM(folder), {"max_gen_toks": 12}
    [whole] = write(lm, ("cat sat", {**options, "until": None}))
    first, second = whole[3:5], whole[6:8]
    for until, end in ((first, first), ([second, first], first), ((second,), second), ([], ""), ("", "")):
        [cut] = write(lm, ("cat sat", {**options, "until": until}))
        assert cut == (whole[: whole.index(end)] if end else whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gen_toks": -1}, "max_gen_toks is -1; it must be 0 or more"),
        ({"max_gen_toks": "many"}, "invalid literal"),
        ({"num_beams": 4}, "num_beams is 4; it must be 1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty is not built; leave it out: until"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0; it must be at least 1e-30"),
        ({"do_sample": True, "temperature": 1e-300}, "temperature is 1e-300; it must be at least 1e-30"),
        ({"do_sample": "no"}, "do_sample is 'no'; it must be true or false"),
        ({"max_gen_toks": float("inf")}, "cannot convert float infinity"),
        ({"temperature": 0.8, "top_k": float("inf")}, "cannot convert float infinity"),
        ("until", "generation_kwargs is 'until'; it must be a mapping"),
        ({"temperature": 0.8, "top_p": 3}, "top_p is 3.0; it must be above 0 and at most 1"),
        ({"until": [3]}, "until must be a text or a list of texts"),
        ({"max_gen_toks": 10**6}, "leaves no room in a max_length of 512"),
    ],
)
def test_unfit_generation_options_are_one_line(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        write(HopeLM(folder), ("cat", options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "rows", "budget"),
    [
        ("batch_size=auto", None, 1024),
        ("batch_size=auto:4", None, 1024),
        ("batch_size=auto,max_batch_size=3", 3, 1024),
        ("batch_size=auto:2.5,batch_tokens=99", None, 99),
        ("batch_size=5,max_batch_size=3", 5, 2**62),
        ("batch_size='7'", 7, 2**62),
        ("dtype=float32,trust_remote_code=False,device=cpu,max_length=64", None, 1024),
    ],
)
def test_arguments_of_lm_eval_are_taken(folder: Path, arguments: str, rows: int | None, budget: int) -> None:
    lm = HopeLM.create_from_arg_string(f"pretrained={folder},{arguments}")
    assert (lm.scorer.batch_size, lm.scorer.batch_tokens) == (rows, budget)
    assert lm.max_length == (64 if "max_length" in arguments else 512)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretained=x", "pretrained is missing"),
        (
            "pretrained=x,parallelize=True",
            "unknown model argument 'parallelize'; known: pretrained, tokenizer",
        ),
        ("pretrained=x,trust_remote_code=True", "trust_remote_code: no code of a model runs here"),
        (
            "pretrained=x,batch_size=auto:x",
            "batch_size is 'auto:x'; it must be auto, auto:N or a whole number",
        ),
        ("pretrained=x,batch_size=0", "batch_size is 0"),
        ("pretrained=x,device=cpu:1000", "device is 'cpu:1000'; here is cpu"),
        ("pretrained=x,max_length=-5", "max_length is -5; it must be a whole number of at least 0"),
        ("pretrained=x,dtype=int8", "dtype is 'int8'; it must be auto or one of float32"),
        ("pretrained=x,device=gpu", "device is 'gpu'; it must be cpu, cuda"),
        ("pretrained=x,share=maybe", "share is 'maybe'; it must be True or False"),
        ("pretrained=nowhere", "nowhere/config.json is missing; is nowhere a checkpoint folder"),
    ],
)
def test_unfit_arguments_are_one_line(arguments: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        HopeLM.create_from_arg_string(arguments, {"device": "cpu"} if "device" not in arguments else {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("x is y; mend it"), "error: x is y; mend it\n"),
        (ModelInputError("z"), "error: z\n"),
        (
            ConnectionError("Couldn't reach\n'baber/piqa'"),
            "error: --tasks: a data set is not to be had (Couldn't reach ",
        ),
        (PermissionError("results"), None),
        (RuntimeError("a fault of ours"), None),
    ],
)
def test_the_command_lm_eval_says_what_is_wrong_in_one_line(
    error: Exception, line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what a user can mend; any other exception stays as it is."""
    from lm_eval._cli import HarnessCLI

    import hope_eval.lm_eval_bridge.plugin  # noqa: F401

    def run(_: argparse.Namespace) -> None:
        raise error

    with pytest.raises(SystemExit if line else type(error)) as caught:
        HarnessCLI.execute(HarnessCLI.__new__(HarnessCLI), argparse.Namespace(func=run))
    said = capsys.readouterr().err
    assert said.startswith(line or "")
    assert said.count("\n") == (line is not None)
    assert not line or caught.value.code == 2  # type: ignore[attr-defined]
