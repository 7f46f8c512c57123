"""The loop. It knows a model from tokens to logits, and nothing of what is inside."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from hope_data.loader import Batch
from hope_model import LanguageModel
from hope_model import state as model_state
from hope_train import schedule
from hope_train.config import TrainConfig
from hope_train.data import Data
from hope_train.optim import Optimizer
from hope_train.state import Progress
from hope_train.tracking import Display, Sink
from hope_train.validate import Validation, token_losses


class DivergedError(RuntimeError):
    """The loss is no longer a number; the weights are still those of the step before."""


@dataclass
class Run:
    """What the loop works with.

    Attributes:
        config: of the run.
        model: holds the weights.
        forward: the same model, compiled if wanted.
        optimizer: of its parameters.
        data: batches and validation windows.
        validation: scores the windows.
        device: where the model is.
        precision: `fp32` or `bf16`.
    """

    config: TrainConfig
    model: LanguageModel
    forward: Callable[..., Any]
    optimizer: Optimizer
    data: Data
    validation: Validation
    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def losses(self, tokens: Tensor) -> Tensor:
        """Nats of every target: `[B, T + 1]` to `[B, T]`."""
        with self.autocast():
            logits_BTV, _ = self.forward(tokens[:, :-1])
        return token_losses(logits_BTV, tokens[:, 1:])


class Stop:
    """Turns SIGTERM and SIGINT into a flag; a second signal has its usual effect."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self._say = say
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {kind: signal.signal(kind, self._handle) for kind in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        self._restore()
        self._say(f"{signal.Signals(number).name}: saving after this step")


def fit(
    run: Run,
    progress: Progress,
    *,
    sinks: Sequence[Sink],
    display: Display,
    save: Callable[[], None],
    stop: Stop,
) -> dict[str, float]:
    """Train until the last step or until asked to stop; `progress` says how far it came.

    Returns:
        The last validation's numbers; after the last step there always is one.

    Raises:
        DivergedError: a loss or gradient that is not finite, before it can touch the weights.
    """
    config = run.config
    tokens_per_step = config.batch_size * config.length
    earlier, start = progress.seconds, time.perf_counter()
    busy, tokens_before, measured = 0.0, progress.tokens, dict[str, float]()
    while progress.step < config.steps and not stop.requested:
        tick = time.perf_counter()
        batch = next(run.data.loader)
        loss, state = forward_backward(run, batch)
        norm = run.optimizer.clip().item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(_what_happened(run, progress.step, loss, norm, batch))
        factor = schedule.factor(config.schedule, progress.step, config.steps)
        run.optimizer.step(factor)
        progress.step += 1
        progress.tokens += tokens_per_step
        progress.losses.append(loss)
        busy += time.perf_counter() - tick
        speed = (progress.tokens - tokens_before) / busy

        validate = progress.step == config.steps or _due(config.eval_every, progress.step)
        if validate or _due(config.log.every, progress.step):
            row = {
                "step": progress.step,
                "tokens": progress.tokens,
                "loss": math.fsum(progress.losses) / len(progress.losses),
                "lr": config.optim.lr * factor,
                "grad_norm": norm,
                "tokens_per_s": speed,
                **model_state.metrics(state),
            }
            if validate:
                measured = run.validation.measure(run.losses, run.device)
                row.update(measured)
            for sink in sinks:
                sink.log(row)
            busy, tokens_before, progress.losses = 0.0, progress.tokens, []
        progress.seconds = earlier + time.perf_counter() - start
        if _due(config.checkpoint_every, progress.step) and progress.step < config.steps:
            save()
        display.update(progress.step, loss, speed, (config.steps - progress.step) * tokens_per_step / speed)
    return measured


def forward_backward(run: Run, batch: Batch) -> tuple[float, Any]:
    """Add the gradient of a batch's mean loss.

    Returns:
        The mean loss in nats per token, and the model's state after the last part of the batch.
    """
    tokens = torch.from_numpy(batch.tokens).to(run.device)
    total, state = 0.0, None
    for part in tokens.chunk(run.config.accumulate):
        with run.autocast():
            logits_BTV, state = run.forward(part[:, :-1])
        loss = token_losses(logits_BTV, part[:, 1:]).mean() / run.config.accumulate
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, state


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def _what_happened(run: Run, step: int, loss: float, norm: float, batch: Batch) -> str:
    names = sorted({run.data.loader.corpora[number] for number in batch.corpus.tolist()})
    return (
        f"loss is {loss} and gradient norm {norm} at step {step + 1} (batch from {', '.join(names)}); "
        f"lower optim.lr or optim.matrix_lr"
    )
