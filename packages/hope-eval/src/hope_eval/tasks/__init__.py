"""The tasks by name: each makes its items from the held-out text, scores them, and returns typed results."""

from collections.abc import Callable

from hope_eval.results import TaskResult
from hope_eval.tasks import choice, passkey, perplexity
from hope_eval.tasks.base import Context

TASKS: dict[str, Callable[[Context], list[TaskResult]]] = {
    perplexity.NAME: lambda context: perplexity.run_all(context, perplexity.Settings()),
    choice.NAME: lambda context: [choice.run(context, choice.Settings())],
    passkey.NAME: lambda context: [passkey.run(context, passkey.Settings())],
    perplexity.SHUFFLED: lambda context: perplexity.run_all(
        context, perplexity.Settings(shuffle=perplexity.SHUFFLE)
    ),
}
USUAL = (perplexity.NAME, choice.NAME, passkey.NAME)
