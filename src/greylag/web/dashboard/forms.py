"""What the pages' forms send, read and checked."""

import json
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData

from greylag.domain.errors import InvalidRequestError
from greylag.web.plain import check_metadata


@dataclass(frozen=True, slots=True)
class ProjectForm:
    """The fields of the form that creates or edits a project, as they were typed.

    ``key`` makes a form that is sent twice create one project.
    """

    name: str = ""
    project_id: str = ""
    metadata: str = ""
    key: str = ""

    @classmethod
    def read(cls, form: FormData) -> "ProjectForm":
        """Take the fields from what a browser sent."""
        return cls(**{name: field(form, name) for name in cls.__slots__})

    def metadata_object(self) -> dict[str, Any]:
        """Return the metadata. Raises ``InvalidRequestError`` when it is no JSON object."""
        if not self.metadata.strip():
            return {}
        try:
            value = json.loads(self.metadata)
        except (ValueError, RecursionError) as error:
            place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
            raise InvalidRequestError(f"metadata must be a JSON object{place}.") from error
        if not isinstance(value, dict):
            raise InvalidRequestError('metadata must be a JSON object, such as {"team": "blue"}.')
        try:
            return check_metadata(value)
        except ValueError as error:
            raise InvalidRequestError(f"metadata {error}.") from error


def field(form: FormData, name: str) -> str:
    """Return a text field with plain line ends; empty when it is not there.

    Forms send line ends as CR LF (WHATWG HTML, 4.10.22.4).
    """
    value = form.get(name, "")
    return value.replace("\r\n", "\n") if isinstance(value, str) else ""
