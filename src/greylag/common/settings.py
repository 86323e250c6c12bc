"""Reading settings: from the process's environment, else from ``.env`` in the working folder."""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from greylag.domain.errors import ConfigError

S = TypeVar("S", bound=BaseSettings)


def read_settings(model: type[S], **arguments: object) -> S:
    """Parse the settings of ``model``; ``arguments`` win over the environment.

    Raises:
        ConfigError: one is wrong; the sentence names its variable.
    """
    try:
        return model(**arguments)  # type: ignore[arg-type] # pydantic checks each value
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"The file .env of the working folder cannot be read: {_reason(error)}.",
            hint="Mend it, a setting a line in UTF-8, or start in another folder.",
        ) from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name, *inside = (str(part) for part in first["loc"] or ("",))
        reason = _plain(model, name, first["type"]) or first["msg"].removeprefix("Value error, ")
        where = f" ({'.'.join(inside)})" if inside else ""
        sentence = f"{variable_of(model, name)}{where}: {reason}." if name else f"{reason}."
        # The cause is left out: it holds the values, secrets among them.
        raise ConfigError(sentence) from None


_PLAIN = {"byte_size": "must be a size such as 2GiB", "extra_forbidden": "is not known"}
"""In words of ours, by pydantic's kinds of errors."""


def _plain(model: type[BaseSettings], name: str, kind: str) -> str | None:
    """Return what a setting must be; of one with a pattern its field's description says it."""
    if kind != "string_pattern_mismatch":
        return _PLAIN.get(kind)
    fields = model.model_fields
    return next(
        field.description for one, field in fields.items() if name in {one, field.validation_alias}
    )


def _reason(error: OSError | UnicodeError) -> str:
    return (isinstance(error, OSError) and error.strerror) or "it is not UTF-8"


def variable_of(model: type[BaseSettings], field: str) -> str:
    """Return the environment variable that sets a field; ``field`` may be that already."""
    known = model.model_fields.get(field)
    if known is None:
        return field
    return str(known.validation_alias or f"{model.model_config['env_prefix']}{field}".upper())
