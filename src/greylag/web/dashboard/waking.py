"""How a project wakes, step by step, as its page shows it: read from its activation log."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, Event, Project, Status

_BEGINS = frozenset({"starting", "ended_unasked"})
_END = "active"
_CLONE = "git_"
_STAGES = (
    ("Prepared", frozenset({*_BEGINS, "namespace_ready", "quota_checked", "volume_kept"})),
    ("Started", frozenset({"process_started"})),
    ("API", frozenset({"api_answers", "address_assigned"})),
    ("Agent", frozenset({"agent_ready"})),
    ("Clone", frozenset({"git_done", "git_failed"})),
    ("Ready", frozenset({_END})),
)
_ROUND_SECONDS = 10


@dataclass(frozen=True, slots=True)
class WakeStep:
    """One step: ``done``, ``now`` (under way), ``failed``, or ``ahead``; ``words`` say how long it
    took, or that it is under way or failed.
    """

    name: str
    state: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Waking:
    """What a page shows of it.

    Attributes:
        steps: none when an environment that runs, or is being stopped, has an ``error``.
        doing: the newest of what it does within a step.
        usual: how long it has taken this project before, empty when that is not known.
        error: why it failed, or what keeps it.
        woke: how long it has taken, once it is awake.
    """

    steps: tuple[WakeStep, ...] = ()
    doing: str = ""
    usual: str = ""
    error: ErrorInfo | None = None
    woke: str = ""


def waking(project: Project, events: Sequence[Event], *, watched: bool = False) -> Waking | None:
    """Return how a project wakes, given its newest events; ``None`` when there is nothing to tell.

    One that is awake is told of only where its waking was ``watched``.
    """
    awake = project.status is Status.ACTIVE and project.settled
    wanted = project.desired is Desired.ACTIVE
    if not wanted or (awake and (project.error is not None or not watched)):
        return Waking(error=project.error) if project.error is not None else None
    failed = project.status is Status.ERROR
    if not (awake or failed or not project.settled):
        return None
    now = _since_begin(project, events)
    return Waking(
        steps=_steps(now, failed=failed),
        doing="" if failed or awake else _doing(now),
        usual="" if failed or awake else _usual(events[: len(events) - len(now)]),
        error=project.error,
        woke=_told((now[-1].at - now[0].at).total_seconds()) if awake and now else "",
    )


def _since_begin(project: Project, events: Sequence[Event]) -> Sequence[Event]:
    """Return the events of the present attempt, up to its end."""
    at = next((n for n in reversed(range(len(events))) if events[n].code in _BEGINS), None)
    # What came before the newest wish was of another one.
    if at is None or (not project.settled and events[-1].generation < project.generation):
        return ()
    end = next((n for n in range(at, len(events)) if events[n].code == _END), len(events) - 1)
    return events[at : end + 1]


def _steps(now: Sequence[Event], *, failed: bool) -> tuple[WakeStep, ...]:
    cloning = any(event.code.startswith(_CLONE) for event in now)
    stages = [one for one in _STAGES if one[0] != "Clone" or cloning]
    reached = [max((e.at for e in now if e.code in codes), default=None) for _, codes in stages]
    last = max((n for n, at in enumerate(reached) if at is not None), default=-1)
    steps = []
    before = now[0].at if now else None
    for number, ((name, _), at) in enumerate(zip(stages, reached, strict=True)):
        if number <= last:
            took = (at - before).total_seconds() if at is not None and before is not None else None
            steps.append(WakeStep(name, "done", "" if took is None else _told(max(0.0, took))))
            before = at or before
        elif number == last + 1:
            steps.append(WakeStep(name, *(("failed", "failed") if failed else ("now", ""))))
        else:
            steps.append(WakeStep(name, "ahead"))
    return tuple(steps)


def _doing(now: Sequence[Event]) -> str:
    """Return what was told last, if it is no step that is shown anyway."""
    known = {code for _, codes in _STAGES for code in codes}
    return now[-1].message if now and now[-1].code not in known else ""


def _usual(events: Sequence[Event]) -> str:
    took = []
    began = None
    for event in events:
        if event.code in _BEGINS:
            began = event.at
        elif event.code == _END and began is not None:
            took.append((event.at - began).total_seconds())
            began = None
    return _told(median(took)) if took else ""


def _told(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < _ROUND_SECONDS else f"{seconds:.0f} s"
