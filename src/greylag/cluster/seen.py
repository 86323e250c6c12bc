"""What is observed of a local environment, as the domain takes it."""

from greylag.cluster import launch
from greylag.cluster.health import Health
from greylag.cluster.record import Record
from greylag.cluster.steps import AGENT_READY, API_ANSWERS, PROCESS_STARTED
from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import Observation, Observed

_FAILED_HINT = "`greylag logs` shows what it says; activate the project to start it again."
_BAD_SETTINGS = 2
_TERMINAL_EXITS = frozenset({launch.NOT_FOUND, _BAD_SETTINGS})
_SILENT = ErrorInfo(
    "agent_unreachable",
    "The agent's API does not answer in time.",
    "It may be busy; `greylag logs` shows what it says.",
)


def starting() -> Observation:
    """The process runs and does not listen yet."""
    return Observation(Observed.STARTING, steps=(PROCESS_STARTED,))


def ready(url: str) -> Observation:
    """The agent at ``url`` says that it is ready."""
    steps = (PROCESS_STARTED, API_ANSWERS, AGENT_READY)
    return Observation(Observed.READY, endpoint=url, steps=steps)


def not_ready(answer: Health, *, was_ready: bool) -> Observation:
    """The process listens and its agent is not ready.

    One that was ready and now is late may only be busy: nothing is known of it.
    """
    if answer.answered:
        error = ErrorInfo("agent_not_ready", answer.words, _FAILED_HINT)
        return Observation(Observed.STARTING, error=error, steps=(PROCESS_STARTED, API_ANSWERS))
    if answer.late and was_ready:
        return Observation(Observed.UNKNOWN, error=_SILENT)
    error_if_late = _SILENT if answer.late else None
    return Observation(Observed.STARTING, error=error_if_late, steps=(PROCESS_STARTED,))


def failed(record: Record, last_words: str) -> Observation:
    """The process that should run has ended; ``last_words`` are the end of its log."""
    code = record.exit_code
    how = "" if code is None else f" ({_exit(code)})"
    words = f" Its last words: {last_words}" if last_words else ""
    error = ErrorInfo(
        "environment_failed", f"The environment's process has ended{how}.{words}", _FAILED_HINT
    )
    return Observation(Observed.FAILED, error=error, terminal=code in _TERMINAL_EXITS)


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
