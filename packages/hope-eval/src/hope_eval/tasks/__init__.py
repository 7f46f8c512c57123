"""The tasks by name: each makes its items from the held-out text, scores them, and returns a typed result."""

from collections.abc import Callable

from hope_eval.results import TaskResult
from hope_eval.tasks import choice, passkey, perplexity
from hope_eval.tasks.base import Context

TASKS: dict[str, Callable[[Context], TaskResult]] = {
    perplexity.NAME: lambda context: perplexity.run(context, perplexity.Settings()),
    choice.NAME: lambda context: choice.run(context, choice.Settings()),
    passkey.NAME: lambda context: passkey.run(context, passkey.Settings()),
}
