"""Muon and M3 on matrices that lie on one process or are shared out by rows.

torch.optim.Muon has the same arithmetic, but on a shared matrix each of its 15 products is a collective; here a matrix
meets on one process, which orthogonalises it and deals it out again, and the matrices take turns over the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hope_train.parallel.distributed import is_shared, whole

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Coefficients of Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon/).
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# Matrices of one shape are orthogonalised side by side, so many elements at a time: larger ones fill a device alone.
SIDE_BY_SIDE = 2**22
RMS = 0.2  # of an update per unit of learning rate, as AdamW's (arXiv 2502.16982)


def newton_schulz(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Of each the nearest orthogonal matrix, roughly: singular values between 0.7 and 1.2; in `precision`."""
    alike: dict[tuple[int, int], list[int]] = {}
    for n, matrix in enumerate(matrices):
        rows, columns = sorted(matrix.shape)
        alike.setdefault((rows, columns), []).append(n)
    results: list[Tensor] = list(matrices)
    for (rows, columns), places in alike.items():
        several = max(1, SIDE_BY_SIDE // (rows * columns))
        for some in (places[i : i + several] for i in range(0, len(places), several)):
            wide = [matrices[n] if matrices[n].size(0) == rows else matrices[n].T for n in some]
            for n, X in zip(some, _quintic(torch.stack([w.to(precision(w)) for w in wide])), strict=True):
                results[n] = X if matrices[n].size(0) == rows else X.T
    return results


def precision(matrix: Tensor) -> torch.dtype:
    """bfloat16 on accelerators. On CPUs float32: most have no bfloat16 products, and emulate them 20 times slower."""
    return torch.float32 if matrix.device.type == "cpu" else torch.bfloat16


def _quintic(X_Nrc: Tensor) -> Tensor:
    """The iteration on N matrices with no more rows r than columns c."""
    a, b, c = QUINTIC
    X: Tensor = X_Nrc / torch.linalg.matrix_norm(X_Nrc, keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X


def orthogonalise(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`newton_schulz` of every whole matrix, laid out as it came."""
    if not matrices or not is_shared(matrices[0]):
        return newton_schulz(matrices)
    return [_meet(matrix, turn) for turn, matrix in enumerate(matrices) if is_shared(matrix)]


def _meet(matrix: DTensor, turn: int) -> Tensor:
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 (see hope_train.parallel.distributed)

    mesh, full = matrix.device_mesh, matrix.full_tensor()
    owner = turn % mesh.size()
    result = newton_schulz([full])[0].to(full.dtype) if mesh.get_local_rank() == owner else full
    return distribute_tensor(result.contiguous(), mesh, matrix.placements, src_data_rank=owner)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with decoupled weight decay.

    Args:
        params: matrices.
        lr: on AdamW's scale.
        weight_decay: per unit of learning rate.
        momentum: Nesterov's.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on every matrix that has a gradient."""
        del closure
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = [self._momentum(p, group["momentum"]) for p in params]
            for p, update in zip(params, orthogonalise(updates), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * (RMS * max(p.shape) ** 0.5))

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None  # noqa: S101
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffer = self.state[p]["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


class M3(torch.optim.Optimizer):
    """Multi-scale momentum Muon (Nested Learning, algorithm 1).

    A fast momentum is orthogonalised at every step, a slow one over the sums of `every` gradients when it is refreshed;
    their directions O1 + share·O2 are divided by the root of the second moment. Departures: moments are means that
    forget (the algorithm's sums grow without bound), and the update is brought to the rms of AdamW's, so that
    learning rates carry over.

    Args:
        params: matrices.
        lr: on AdamW's scale.
        weight_decay: per unit of learning rate.
        momentum: of the fast memory.
        beta2: of the second moment.
        eps: beside its root.
        every: steps between refreshes of the slow memory.
        slow_momentum: what a refresh keeps.
        share: of the slow direction.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float,
        *,
        momentum: float,
        beta2: float,
        eps: float,
        every: int,
        slow_momentum: float,
        share: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._momentum, self._beta2, self._eps = momentum, beta2, eps
        self._every, self._slow_momentum, self._share = every, slow_momentum, share

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on every matrix that has a gradient."""
        del closure
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self._remember(p)
            fast = orthogonalise([self.state[p]["fast"] for p in params])
            due = [p for p in params if self.state[p]["step"] % self._every == 0]
            for p, direction in zip(due, orthogonalise([self.state[p]["slow"] for p in due]), strict=True):
                self.state[p]["direction"] = direction.to(p.dtype)
            for p, direction in zip(params, fast, strict=True):
                state = self.state[p]
                seen = 1 - self._beta2 ** float(state["step"])
                root = (state["square"] / seen).sqrt_().add_(self._eps)
                update = (direction + self._share * state["direction"]) / root
                rms = (whole(update.square().sum()) / p.numel()).sqrt()
                # In double and on the device: a look at every matrix would wait for it.
                update = update * (RMS / rms.double().clamp(min=1e-30)).to(rms.dtype)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"])

    def _remember(self, p: Tensor) -> None:
        state, g = self.state[p], p.grad
        assert g is not None  # noqa: S101
        if not state:
            state.update(
                {name: torch.zeros_like(p) for name in ("fast", "square", "sum", "slow", "direction")}
            )
            state["step"] = torch.zeros(())
        state["step"] += 1
        state["fast"].lerp_(g, 1 - self._momentum)
        state["square"].lerp_(g.square(), 1 - self._beta2)
        state["sum"].add_(g)
        if state["step"] % self._every == 0:
            state["slow"].lerp_(state["sum"] / self._every, 1 - self._slow_momentum)
            state["sum"].zero_()
