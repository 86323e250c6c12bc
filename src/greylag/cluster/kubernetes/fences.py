"""Claims on environments: the Deployment carries the newest one, and each write compares it.

A write under an older claim is refused here, and one that was overtaken in between is refused by
the API server, for it names the resourceVersion that it was decided on.
"""

from collections import OrderedDict
from typing import Any

from greylag.cluster.kubernetes.board import Object
from greylag.cluster.kubernetes.identity import (
    CLAIM_ANNOTATION,
    RECORD_ANNOTATION,
    REMOVING_ANNOTATION,
)
from greylag.domain.errors import LeaseLostError
from greylag.domain.project import Fence, Project, ProjectRef

_REMEMBERED = 10_000


class Fences:
    """The newest claims of environments that this process deleted, as they carry them no more."""

    def __init__(self) -> None:
        self._deleted: OrderedDict[ProjectRef, Fence] = OrderedDict()

    def check(self, project: Project, deployment: Object | None) -> None:
        """Raise ``LeaseLostError`` when the environment has seen a newer claim than this one."""
        newest = fence_of(deployment) or self._deleted.get(project.ref)
        fence = project.fence
        if newest and newest.record_id == fence.record_id and newest.number > fence.number:
            raise LeaseLostError("Another worker has taken this project over.")

    def deleted(self, project: Project) -> None:
        """Remember the claim under which an environment was deleted."""
        self._deleted[project.ref] = project.fence
        self._deleted.move_to_end(project.ref)
        if len(self._deleted) > _REMEMBERED:
            self._deleted.popitem(last=False)


def fence_of(deployment: Object | None) -> Fence | None:
    """Return the newest claim that a Deployment has seen."""
    annotations = {} if deployment is None else deployment["metadata"].get("annotations") or {}
    record, number = annotations.get(RECORD_ANNOTATION), annotations.get(CLAIM_ANNOTATION, "")
    return Fence(record, int(number)) if record and number.isdecimal() else None


def is_under(project: Project, deployment: Object) -> bool:
    """Tell whether the Deployment carries the claim of ``project`` already."""
    return fence_of(deployment) == project.fence


def stamp(project: Project, deployment: Object) -> dict[str, Any]:
    """Return the ``metadata`` of a patch that puts the claim on, if nothing changed since."""
    annotations = {
        RECORD_ANNOTATION: project.fence.record_id,
        CLAIM_ANNOTATION: str(project.fence.number),
    }
    version = deployment["metadata"]["resourceVersion"]
    return {"resourceVersion": version, "annotations": annotations}


def removal_stamp(project: Project, deployment: Object) -> dict[str, Any]:
    """Return what ``stamp`` does, with the mark that the environment is being removed."""
    metadata = stamp(project, deployment)
    metadata["annotations"][REMOVING_ANNOTATION] = project.fence.record_id
    return metadata


def is_being_removed(deployment: Object) -> bool:
    """Tell whether the removal of this very environment has begun; there is no way back then."""
    annotations = deployment["metadata"].get("annotations") or {}
    removing = annotations.get(REMOVING_ANNOTATION)
    return removing is not None and removing == annotations.get(RECORD_ANNOTATION)
