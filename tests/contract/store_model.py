"""What a store should hold, in the plainest words: the yardstick of the random test.

Times are seconds; a project is a dictionary; nothing is shared with the stores' own code.
"""

from typing import Any

Ref = tuple[str, str]


class ModelStore:
    """All projects by (user, project id), and their idempotency keys."""

    def __init__(self) -> None:
        self.projects: dict[Ref, dict[str, Any]] = {}
        self.keys: dict[tuple[str, str], tuple[str, Ref]] = {}
        self._made = 0

    def create(self, ref: Ref, key: str | None, fingerprint: str, now: float) -> str:
        """Return what comes of a creation: new, known, conflict or exists."""
        known = self.keys.get((ref[0], key)) if key else None
        if known:
            return "known" if known[0] == fingerprint else "conflict"
        if ref in self.projects:
            return "exists"
        self._made += 1
        self.projects[ref] = {
            "made": self._made,
            "desired": "inactive",
            "status": "inactive",
            "generation": 1,
            "observed": 0,
            "due": None,
            "deadline": None,
            "attempts": 0,
            "lease": None,
            "claims": 0,
            "woken": False,
            "log": [],
            "last": 0,
            "created": now,
        }
        if key:
            self.keys[ref[0], key] = (fingerprint, ref)
        return "new"

    def want(self, ref: Ref, desired: str, now: float, deadline: float, *, again: bool) -> str:
        """Return what comes of a wish: wanted, missing or deleting."""
        project = self.projects.get(ref)
        if project is None:
            return "missing"
        if project["desired"] == "deleted" and desired != "deleted":
            return "deleting"
        same = project["desired"] == desired
        if project["status"] == "error" if same else not again:
            project["generation"] += 1
            project.update(desired=desired, due=now, deadline=deadline, attempts=0)
        return "wanted"

    def queue(self) -> list[tuple[float, int, Ref]]:
        """Return what can be claimed and when, the longest due first."""
        return sorted(
            (at, project["made"], ref)
            for ref, project in self.projects.items()
            if (at := project["lease"][1] if project["lease"] else project["due"]) is not None
        )

    def claim(self, now: float, lease: float) -> tuple[Ref, int] | None:
        """Return which project is claimed, with the claim's number."""
        due = [place for place in self.queue() if place[0] <= now]
        if not due:
            return None
        # The least busy user first.
        busy = [ref[0] for ref, p in self.projects.items() if p["lease"] and p["lease"][1] > now]
        ref = min(due, key=lambda place: (busy.count(place[2][0]), place))[2]
        project = self.projects[ref]
        project["claims"] += 1
        project.update(lease=(project["claims"], now + lease), woken=False)
        return ref, project["claims"]

    def holds(self, ref: Ref, made: int, number: int) -> bool:
        """Tell whether a claim still counts."""
        project = self.projects.get(ref)
        return bool(
            project
            and project["made"] == made
            and project["lease"]
            and project["lease"][0] == number
        )

    def renew(self, ref: Ref, now: float, lease: float) -> None:
        """Extend the lease of a claim that holds."""
        project = self.projects[ref]
        project["lease"] = (project["lease"][0], now + lease)

    def record(
        self, ref: Ref, seen: int, new: dict[str, Any], now: float, *, release: bool
    ) -> None:
        """Write the outcome of a claim that holds and that had seen generation ``seen``."""
        project = self.projects[ref]
        project.update(status=new["status"], observed=new["observed"], due=new["due"])
        overtaken = project["generation"] != seen
        if not overtaken:
            project.update(attempts=new["attempts"], deadline=new["deadline"])
        if release:
            project["lease"] = None
            if overtaken or project["woken"]:
                project["due"] = now
        numbers = range(project["last"] + 1, project["last"] + new["events"] + 1)
        project["log"] = [*project["log"], *numbers][-500:]
        project["last"] += new["events"]

    def forget(self, ref: Ref) -> None:
        """Remove a project."""
        del self.projects[ref]
        self.keys = {name: kept for name, kept in self.keys.items() if kept[1] != ref}

    def poke(self, ref: Ref, now: float) -> None:
        """Make a project due, if it is there."""
        project = self.projects.get(ref)
        if project:
            due = project["due"]
            project.update(due=now if due is None else min(due, now), woken=True)

    def unsettled(self) -> list[Ref]:
        """Return the projects that may need work."""
        return [
            ref
            for ref, project in self.projects.items()
            if (project["status"], project["desired"]) != ("inactive", "inactive")
            or project["observed"] < project["generation"]
        ]
