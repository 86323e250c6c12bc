"""Matching environments with records: what a start does, and the search for orphans."""

from greylag.domain.errors import ProjectNotFoundError
from greylag.domain.project import ProjectRef
from greylag.ports.store import ProjectStore


async def has_record(store: ProjectStore, ref: ProjectRef) -> bool:
    """Tell whether the project that an environment says it is of has a record now.

    Raises ``StoreUnavailableError``: a store that does not answer is no proof that there is none.
    """
    try:
        await store.get(ref.user_id, ref.project_id)
    except ProjectNotFoundError:
        return False
    return True
