"""The loop. It knows a network from tokens to losses, and nothing of what is inside."""

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn

from hope_data.loader import Batch
from hope_data.tasks.loader import TaskBatch
from hope_model import LanguageModel, adapt
from hope_model import state as model_state
from hope_model.observe import Observations, observe
from hope_train import schedule
from hope_train.checkpoint.state import Progress
from hope_train.config import TrainConfig
from hope_train.data import Data
from hope_train.documents import apart
from hope_train.optim import Optimizer
from hope_train.parallel import distributed
from hope_train.parallel.distributed import World
from hope_train.tracking import Display, Sink
from hope_train.validation.task import TaskValidation
from hope_train.validation.text import Validation


class DivergedError(RuntimeError):
    """The loss is no longer a number; the weights are still those of the step before."""


@dataclass
class Run:
    """What the loop works with.

    Attributes:
        config: of the run.
        model: the language model.
        network: the model with its loss, as this process runs it.
        memory: attached to the model, or None.
        optimizer: of its parameters.
        data: batches and validation windows.
        validation: scores the windows, or a task's sequences.
        world: the processes.
        precision: `fp32` or `bf16`.
        peak: floating-point operations per second of all devices, 0 where unknown.
        flops: operations of one token, forward and backward where there is one.
    """

    config: TrainConfig
    model: LanguageModel
    network: nn.Module
    memory: adapt.AttachedMemory | None
    optimizer: Optimizer
    data: Data
    validation: Validation | TaskValidation
    world: World
    precision: str
    peak: float
    flops: float

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of a forward pass."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def validate(self) -> dict[str, float]:
        """Held-out numbers of the text or the task."""
        if isinstance(self.validation, TaskValidation):
            return self.validation.measure(self.scores, self.world)
        return self.validation.measure(self.losses, self.world)

    def scores(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Nats of every target, and whether it was the likeliest token."""
        with self.autocast():
            scores_2BT: Tensor = self.network(inputs_BT, targets_BT, hits=True)[0]
        distributed.at_rest(self.network)
        return scores_2BT[0], scores_2BT[1]

    def losses(self, tokens: Tensor) -> Tensor:
        """Nats of every target: `[B, T + 1]` to `[B, T]`."""
        with self.autocast():
            losses_BT: Tensor = self.network(tokens[:, :-1], tokens[:, 1:])[0]
        distributed.at_rest(self.network)
        return losses_BT


class Stop:
    """Turns SIGTERM, SIGINT and SIGHUP into a flag; a second signal has its usual effect."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested = False
        self._say = say
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Under nohup a lost terminal shall stop nothing.
        kinds = [kind for kind in self.SIGNALS if kind != signal.SIGHUP or not _ignored(kind)]
        self._before = {kind: signal.signal(kind, self._handle) for kind in kinds}
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


def _ignored(kind: signal.Signals) -> bool:
    return signal.getsignal(kind) is signal.SIG_IGN


def fit(
    run: Run,
    progress: Progress,
    *,
    sinks: Sequence[Sink],
    display: Display,
    save: Callable[[], None],
    stop: Stop,
    until: int | None = None,
) -> dict[str, float]:
    """Train until the last step, until step `until`, or until asked to stop; `progress` says how far it came.

    Returns:
        The last validation's numbers; after the last step there always is one.

    Raises:
        DivergedError: a loss or gradient that is not finite, before it can touch the weights.
    """
    config = run.config
    tokens_per_step = config.batch_size * config.length
    earlier, start = progress.seconds, time.perf_counter()
    cost = time.process_time if run.world.device.type == "cpu" else time.perf_counter
    busy, tokens_before, measured, stopping = 0.0, progress.tokens, dict[str, float](), stop.requested
    end = min(config.steps, until or config.steps)
    while progress.step < end and not stopping:
        tick, spent = time.perf_counter(), cost()
        batch = next(run.data.loader)
        validate = progress.step + 1 == config.steps or _due(config.eval_every, progress.step + 1)
        report = validate or _due(config.log.every, progress.step + 1)
        mean, inner = forward_backward(run, batch, progress.step, measure=report)
        # One sum serves both: processes agree on the loss, and to stop after the same step.
        agreed = run.world.total(torch.stack((mean / run.world.size, mean.new_full((), stop.requested))))
        norm = run.optimizer.clip().to(agreed)
        loss, stops, norm = torch.stack((*agreed, norm)).tolist()  # the one wait for a device in a step
        step = update(run, progress.step, loss, norm, batch, measure=report)
        stopping = stops > 0
        progress.step += 1
        progress.tokens += tokens_per_step
        progress.losses.append(loss)
        busy += time.perf_counter() - tick
        progress.step_seconds += cost() - spent
        speed = (progress.tokens - tokens_before) / busy
        if report:
            row = {
                "step": progress.step,
                "tokens": progress.tokens,
                "loss": math.fsum(progress.losses) / len(progress.losses),
                **step,
                **inner,
                "tokens_per_s": speed,
            }
            if run.peak:
                row["mfu"] = speed * run.flops / run.peak
            if validate:
                measured = run.validate()
                row.update(measured)
            for sink in sinks:
                sink.log(row)
            busy, tokens_before, progress.losses = 0.0, progress.tokens, []
        progress.seconds = earlier + time.perf_counter() - start
        if _due(config.checkpoint_every, progress.step) and progress.step < end and not stopping:
            save()
        display.update(progress.step, loss, speed, (config.steps - progress.step) * tokens_per_step / speed)
    return measured


def forward_backward(
    run: Run, batch: Batch | TaskBatch, step: int = 0, *, measure: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Add the gradient of the mean loss, over targets, of this process's part of a batch.

    Args:
        run: what the loop works with.
        batch: this process's sequences.
        step: steps done so far.
        measure: also look into the memories.

    Returns:
        The mean loss in nats per token, on the device; if wanted, what the memories hold after the last part of the
        batch (`hope_model.state.metrics`), and their gates' means (`hope_model.observe`; not where compiled).
    """
    config = run.config
    cut = config.length // schedule.context(config, step)
    settings = schedule.memory(config, (run.memory or run.model).settings(), step, run.model.levels)
    columns: list[npt.NDArray[Any]] = [batch.inputs, batch.targets]
    if config.data.reset and isinstance(batch, Batch):
        assert batch.segments is not None  # noqa: S101 (the loader gives them; without, nothing would be reset)
        columns.append(batch.segments[:, 1:])
    on_device = (_moved(torch.from_numpy(column), run.world.device) for column in columns)
    parts = list(zip(*(column.chunk(config.accumulate) for column in on_device), strict=True))
    # Stays on the device: a look at every part would wait for it.
    total, inner = torch.zeros((), dtype=torch.float64, device=run.world.device), dict[str, float]()
    for number, part in enumerate(parts):
        inputs_BT, targets_BT, *documents = (column.reshape(len(column) * cut, -1) for column in part)
        n_targets = inputs_BT.numel()
        if documents:
            inputs_BT, targets_BT = apart(inputs_BT, targets_BT, *documents)
        last = number + 1 == len(parts)
        looking = observe() if measure and last and not config.compile else nullcontext(Observations())
        with distributed.accumulating(run.network, last=last):
            with run.autocast(), looking as seen:
                losses_BT, state = run.network(inputs_BT, targets_BT, settings)
            if measure and last:
                look = adapt.metrics if run.memory else model_state.metrics
                inner = look(state) | seen.means()
                inner |= schedule.logged(config.teach, settings, config.model.cms.lr)
            # A state's views keep whole activations; the backward pass needs the room.
            del state
            loss = losses_BT.mean() * (losses_BT.numel() / n_targets) / len(parts) / batch.share
            distributed.backward(run.network, loss)
        total += loss.detach()
    return total, inner


def _moved(column: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory, so that nobody waits for what the device still has to do."""
    return column.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else column.to(device)


def update(
    run: Run, step: int, loss: float, norm: float, batch: Batch | TaskBatch, *, measure: bool
) -> dict[str, float]:
    """Look, and take one optimiser step.

    Args:
        run: what the loop works with.
        step: steps done so far.
        loss: of all processes.
        norm: of the gradient before it was clipped.
        batch: for the message.
        measure: also root mean squares of gradient and update by optimiser.

    Returns:
        `lr`, `grad_norm` and, if wanted, `grad_rms_<optimiser>` (after) and `update_rms_<optimiser>`.

    Raises:
        DivergedError: loss or gradient is not finite.
    """
    config, optimizer = run.config, run.optimizer
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergedError(_what_happened(run, step, loss, norm, batch))
    factor = schedule.factor(config.schedule, step, config.steps)
    row = {"lr": config.optim.lr * factor, "grad_norm": norm}
    before: dict[str, Tensor] = {}
    if measure:
        row |= _rms(run, "grad_rms", optimizer.gradients())
        before = {name: part.clone() for name, part in optimizer.weights().items()}
    optimizer.step(factor, schedule.exceptions(config, step))
    if measure:
        moved = {name: part - before[name] for name, part in optimizer.weights().items()}
        row |= _rms(run, "update_rms", moved)
    return row


def _rms(run: Run, name: str, values: Mapping[str, Tensor]) -> dict[str, float]:
    squares = run.optimizer.squares(values)
    if run.optimizer.sharded:
        squares = run.world.sum(squares)
    counts = run.optimizer.counts()
    return {
        f"{name}_{kind}": math.sqrt(square / counts[kind])
        for kind, square in zip(counts, squares, strict=True)
    }


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def _what_happened(run: Run, step: int, loss: float, norm: float, batch: Batch | TaskBatch) -> str:
    loader = run.data.loader
    names = sorted({loader.corpora[number] for number in batch.corpus.tolist()})
    size = run.config.batch_size
    return (
        f"loss is {loss} and gradient norm {norm} at step {step + 1} (samples {step * size} to "
        f"{(step + 1) * size - 1} of the stream, from {', '.join(names)}); lower optim.lr or optim.matrix_lr"
    )
