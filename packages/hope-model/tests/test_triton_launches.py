"""How many kernels a call of a deep memory starts: operators counted on tensors without memory, no Triton needed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hope_model import LanguageModel, ModelConfig
from hope_model.ops.native import build
from hope_model.ops.triton import launch


class Launches(TorchDispatchMode):
    """Operators that a device would run: those that make or change a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made_only = func.overloadpacket.__name__ in {
            "empty",
            "new_empty",
            "empty_like",
            "detach",
            "promote_types",
        }
        if func.namespace != "prim" and not made_only and not func.is_view:
            self.names.append(func.name())
        return func(*args, **kwargs or {})


@pytest.fixture(params=["1", "0"])
def triton(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Pretend that Triton is installed, and interprets: kernels are named and not run."""
    monkeypatch.setattr(launch, "installed", lambda: True)
    monkeypatch.setattr(launch, "interpreted", lambda: True)
    monkeypatch.setenv(launch.SWITCH, request.param)
    monkeypatch.setenv(build.SWITCH, "0")
    with FakeTensorMode():
        yield request.param == "1"


@pytest.mark.parametrize(("variant", "most"), [("titans", 300), ("self_modifying_titans", 300)])
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_launches_of_a_layer_do_not_grow_with_its_chunks(variant: str, most: int, *, triton: bool) -> None:
    counts = []
    for chunks in (2, 3):
        model = LanguageModel(ModelConfig(variant=variant, vocab_size=64, dim=128, layers=1, head_dim=64))
        with Launches() as launches:
            logits, _ = model(torch.zeros(2, chunks * 32, dtype=torch.int64))
            logits.sum().backward()
        counts.append(len(launches.names))
        assert launches.names.count("hope_model::triton") == 2 * triton
    assert (counts[0] == counts[1]) == triton
    assert (max(counts) < most) == triton, counts
