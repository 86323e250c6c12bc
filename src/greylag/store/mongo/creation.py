"""Creation: at most one project for each id, and for each idempotency key."""

from dataclasses import replace
from typing import Any

from pymongo.errors import DuplicateKeyError

from greylag.domain.errors import ProjectExistsError
from greylag.domain.project import Project
from greylag.ports.store import Created, IdempotencyKey
from greylag.store import records
from greylag.store.cursor import millis
from greylag.store.mongo.attempts import Attempts
from greylag.store.mongo.claims import Projects
from greylag.store.mongo.documents import WITHOUT_TAIL, from_document, to_document
from greylag.store.mongo.keys import Keys
from greylag.store.records import Record


class Creation:
    """One creation; ``news`` names its write, ``seconds`` bound it."""

    def __init__(self, projects: Projects, keys: Keys, news: str, seconds: float) -> None:
        self._projects = projects
        self._keys = keys
        self._news = news
        self._attempts = Attempts(seconds)

    async def run(self, project: Project, key: IdempotencyKey | None) -> Created:
        """Insert ``project``, as the port says."""
        record = records.new_record(project)
        if key is None:
            return await self._insert(record)
        taken = await self._keys.take(project, key, self._attempts)
        if not taken.ours:
            earlier = await self._find({"_id": taken.record_id})
            if earlier is not None:
                return Created(earlier.project, new=False)
            record = _finishing(record, str(taken.record_id))
        try:
            return await self._insert(record)
        except ProjectExistsError:
            await self._keys.give_back(project.user_id, key, taken.record_id)
            raise

    async def _insert(self, record: Record) -> Created:
        document = to_document(record) | {"revision": 1, "news": self._news}
        owner = {name: document[name] for name in ("user_id", "project_id")}
        while True:
            try:
                await self._projects.insert_one(document)
            except DuplicateKeyError:
                there = await self._find({"_id": document["_id"]}) or await self._find(owner)
            else:
                return Created(record.project, new=True)
            if there is not None and there.project.id == record.project.id:
                # Somebody with the same key was faster.
                return Created(there.project, new=False)
            if there is not None:
                raise ProjectExistsError(
                    f"User {record.project.user_id!r} already has a project "
                    f"{record.project.project_id!r}."
                )
            await self._attempts.pause()

    async def _find(self, query: dict[str, Any]) -> Record | None:
        raw = await self._projects.find_one(query, WITHOUT_TAIL)
        return None if raw is None else from_document(raw)


def _finishing(record: Record, record_id: str) -> Record:
    """Return the record under the id that somebody with the same key chose before.

    A project of that id may have been there and gone, with claims that somebody still believes in,
    so its claims begin where no count of them comes.
    """
    project = replace(record.project, id=record_id)
    return replace(record, project=project, claims=millis(project.created_at))
