"""Kernels at shapes and settings that nobody thought of: the numbers of torch, and no address without a check.

HOPE_FUZZ_EXAMPLES=1000 tries more. `-m long` compiles the kernels for AddressSanitizer, which ends a process at the
first access beyond a tensor, and repeats these tests and those of damaged states (HOPE_FUZZ_SANITIZE=1 does that).
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hope_model import AttentionConfig, CMSConfig, LanguageModel, MemoryConfig, ModelConfig
from hope_model.ops.deep_memory.native_span import SELF_MODIFYING, TITANS
from hope_model.ops.gated_delta.native import KERNEL as GATED_DELTA
from hope_model.ops.native import build
from hope_model.ops.native.convolution import KERNEL as CONVOLUTION
from hope_model.ops.native.function import FLAGS, Kernel
from hope_model.ops.native.heads import GATED_NORM, SPLIT_HEADS

if os.environ.get("HOPE_FUZZ_SANITIZE") == "1":
    build.FLAGS = (*build.FLAGS, "-fsanitize=address", "-fno-omit-frame-pointer")

pytestmark = pytest.mark.skipif(build.kernels("gated_delta") is None, reason="no C++ compiler")
KERNELS = {k.name: k for k in (SELF_MODIFYING, TITANS, GATED_DELTA, CONVOLUTION, SPLIT_HEADS, GATED_NORM)}
FUZZ = settings(
    max_examples=int(os.environ.get("HOPE_FUZZ_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
width = st.sampled_from([1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64])
small = st.integers(1, 5)


@st.composite
def configurations(draw: Any) -> ModelConfig:
    variant = draw(
        st.sampled_from(
            ["gated_deltanet", "titans", "self_modifying_titans", "hope", "hope_deltanet", "titans_mag"]
        )
    )
    d = draw(st.integers(1, 18))
    d *= 2 if variant == "titans_mag" else 1
    memory = MemoryConfig(
        chunk=draw(st.integers(1, 9)),
        hidden=draw(st.integers(0, 20)),
        activation=draw(st.sampled_from(["leaky_relu", "relu"])),
        self_modify=draw(st.booleans()),
        decay_to=draw(st.sampled_from(["initial", "zero"])),
        erase_hidden=draw(st.sampled_from([False, False, True])),
        persistent=draw(st.integers(0, 3)),
    )
    period = draw(small)
    cms = CMSConfig(
        periods=[period, period * draw(small)],
        teach_scale=0.3,
        delta_rule=draw(st.booleans()),
        wiring=draw(st.sampled_from(["sequential", "nested", "independent"])),
    )
    return ModelConfig(
        variant=variant,
        vocab_size=11,
        dim=d * draw(st.integers(1, 3)),
        head_dim=d,
        layers=1,
        conv=draw(st.integers(1, 10)),
        attention=AttentionConfig(window=draw(st.integers(1, 9))),
        memory=memory,
        cms=cms,
    )


def results(model: LanguageModel, tokens: Tensor, lengths: list[int], chunk: int) -> list[Tensor]:
    """Logits of pieces, and every gradient."""
    model.zero_grad()
    state = model.initial(len(tokens), model.settings()._replace(chunk=chunk))
    outputs = []
    for piece in torch.split(tokens, lengths, 1):
        logits, state = model(piece, state)
        outputs.append(logits)
    whole = torch.cat(outputs, 1)
    torch.autograd.backward(whole.logsumexp(-1).square().mean())
    return [whole.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@FUZZ
@given(
    configurations(),
    st.integers(1, 3),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.integers(0, 6),
)
def test_models_of_any_shape_are_those_of_torch(
    config: ModelConfig, batch: int, lengths: list[int], chunk: int
) -> None:
    torch.manual_seed(0)
    model, tokens = LanguageModel(config).double(), torch.randint(11, (batch, sum(lengths)))
    native = results(model, tokens, lengths, chunk)
    with build.without_kernels():
        in_torch = results(model, tokens, lengths, chunk)
    assert len(native) == len(in_torch)
    for x, y in zip(native, in_torch, strict=True):
        assert (x - y).abs().max() <= 1e-8 * (1 + y.abs().max())


@st.composite
def calls(draw: Any) -> tuple[Kernel, dict[str, Any], dict[str, Tensor | None]]:
    """A kernel, sizes and inputs of the declared shapes."""
    kernel = KERNELS[draw(st.sampled_from(sorted(KERNELS)))]
    sizes: dict[str, Any] = {name: draw(width if name in "dmKVD" else small) for name in kernel.sizes}
    sizes |= dict.fromkeys(kernel.numbers, 0.1)
    sizes["N"] = draw(small) * sizes.get("H", 1)
    if "C" in sizes:
        sizes["C"] = draw(width)
        sizes["T"] = sizes["C"] * draw(small)
    if "own" in sizes:
        sizes["R"] = draw(st.integers(4, 6))
        sizes["own"] = draw(st.integers(0, 1))
        sizes["F"] = sizes["R"] if sizes["own"] else draw(st.integers(4, 6))
    if "half" in sizes:
        sizes["half"] = draw(st.integers(0, 1))
    if "parts" in sizes:
        sizes["parts"] = draw(st.integers(1, 3))
        sizes["unit"] = draw(st.integers(0, sizes["parts"]))
        sizes |= {"second": sizes["N"] * (sizes["parts"] > 1), "third": sizes["N"] * (sizes["parts"] > 2)}
    torch.manual_seed(0)
    halves = [torch.bfloat16] if kernel.tokens else []
    dtype = draw(st.sampled_from([torch.float32, torch.float64, *halves]))
    states = torch.float32 if dtype == torch.bfloat16 else dtype
    inputs: dict[str, Tensor | None] = {
        name: -torch.rand(kernel.shape(name, sizes), dtype=dtype if name in kernel.tokens else states)
        for name in kernel.inputs
    }
    for x in inputs.values():
        assert x is not None
        x.requires_grad_()
    if sizes.get("own"):
        inputs |= {"F2": None, "F1": None}
    return kernel, sizes, inputs


def equal(x: Tensor, y: Tensor) -> bool:
    """The same numbers; the inputs are so wild that some are none."""
    return torch.equal(x.nan_to_num(12345), y.nan_to_num(12345))


@FUZZ
@given(calls())
def test_declared_shapes_are_all_that_a_kernel_touches(
    call: tuple[Kernel, dict[str, Any], dict[str, Tensor | None]],
) -> None:
    """AddressSanitizer sees accesses beyond; here, what was not written would be a rest of another tensor."""
    kernel, sizes, inputs = call
    given_inputs = [x for x in inputs.values() if x is not None]
    runs = []
    for fill in (7.0, -3.0):
        # Memory that the allocator gives again, full of another number each time.
        del [torch.full((4096,), fill, dtype=given_inputs[0].dtype) for _ in range(64)][:]
        outputs = kernel(sizes, **inputs)
        total = torch.stack(
            [
                x.double().sum()
                for name, x in zip(kernel.outputs, outputs, strict=True)
                if name not in kernel.seen
            ]
        )
        runs.append([*outputs, *torch.autograd.grad(total.sum(), given_inputs)])
    assert all(equal(x, y) for x, y in zip(*runs, strict=True))


@FUZZ
@given(calls(), st.data())
def test_what_does_not_fit_is_refused(
    call: tuple[Kernel, dict[str, Any], dict[str, Tensor | None]], data: Any
) -> None:
    kernel, sizes, inputs = call
    name = data.draw(st.sampled_from([name for name, x in inputs.items() if x is not None]))
    x = inputs[name]
    assert x is not None
    n = data.draw(st.integers(0, x.dim() - 1))
    cut = torch.zeros_like(x)
    cut.untyped_storage().resize_(0)  # as sharded weights are between uses
    wrong: list[Any] = [
        torch.cat((x, x.narrow(n, 0, 1)), n),
        x.narrow(n, 0, x.shape[n] - 1),
        x[None],
        x.flatten() if x.dim() > 1 else x[:0],
        x.to(torch.float16),
        x.to("meta"),
        cut,
    ]
    if len(inputs) > 1:
        wrong.append(x.to(torch.float32 if x.dtype == torch.float64 else torch.float64))
    for other in wrong if kernel.inputs[name].optional else [*wrong, None]:
        with pytest.raises((TypeError, ValueError), match=kernel.name):
            kernel(sizes, **inputs | {name: other})
    for size in kernel.sizes:
        for number in (-1, 2**31)[: 1 if size in FLAGS else 2]:
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                kernel(sizes | {size: number}, **inputs)
    # Any layout is taken, and copied.
    turned = x.detach().transpose(0, -1).contiguous().transpose(0, -1)
    same = zip(kernel(sizes, **inputs), kernel(sizes, **inputs | {name: turned}), strict=True)
    assert all(equal(a, b) for a, b in same)


UNCHECKED = """
from hope_model.ops.native import build
build.FLAGS = (*build.FLAGS, "-fsanitize=address", "-fno-omit-frame-pointer")
import torch
from hope_model.ops.native.convolution import KERNEL
KERNEL.check = lambda *_: None
sizes = {"N": 2, "T": 50, "D": 4, "J": 3}
KERNEL(sizes, x=torch.randn(2, 5, 4), tail=torch.randn(2, 2, 4), weight=torch.randn(1, 3, 4))
"""


@pytest.mark.long
def test_under_address_sanitizer(tmp_path: Path) -> None:
    library = subprocess.run(
        [build.find_compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("the compiler has no AddressSanitizer")
    here = Path(__file__).parent
    environment = os.environ | {
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "XDG_CACHE_HOME": str(tmp_path),
        "HOPE_FUZZ_SANITIZE": "1",
        "HOPE_FUZZ_EXAMPLES": os.environ.get("HOPE_FUZZ_EXAMPLES", "40"),
    }
    # Without the check, the sanitizer ends the process: it does see what kernels read.
    wrong = subprocess.run(
        [sys.executable, "-c", UNCHECKED], env=environment, capture_output=True, text=True, check=False
    )
    assert "heap-buffer-overflow" in wrong.stderr
    files = ["test_kernel_fuzz.py", "test_state.py", "test_native_edges.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long"]
    done = subprocess.run(
        [*command, *(str(here / file) for file in files)],
        env=environment, capture_output=True, text=True, check=False, cwd=here.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "AddressSanitizer" not in done.stdout + done.stderr
    assert list(tmp_path.rglob("*.so"))  # they were compiled anew, with the sanitizer
