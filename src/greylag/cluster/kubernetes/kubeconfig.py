"""Reading kubeconfig files: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from greylag.domain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entry:
    """A cluster or a user of a kubeconfig. ``folder``: what its relative paths begin from."""

    setting: str
    what: str
    fields: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None

    def wrong(self, why: str) -> ConfigError:
        """Return the error that this entry ``why``."""
        return ConfigError(f"{self.setting}: {self.what} {why}.")

    def text(self, key: str) -> str:
        """Return a field's text, "" when it has none."""
        value = self.fields.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"has a {key} that is not a text")
        return value or ""

    def path(self, name: str) -> Path:
        """Return the file ``name`` as this kubeconfig means it."""
        path = Path(name).expanduser()
        if path.is_absolute():
            return path
        if self.folder is None:
            raise self.wrong(
                f"names the file {name}, which is not in it; embed files with "
                "`kubectl config view --flatten --minify`"
            )
        return self.folder / path

    def pem(self, key: str) -> str | None:
        """Return what ``key``-data holds, or the file that ``key`` names; ``None`` for neither."""
        if data := self.text(f"{key}-data"):
            try:
                return base64.b64decode(data, validate=True).decode("ascii")
            except (binascii.Error, ValueError) as error:
                raise self.wrong(f"has a {key}-data that is not PEM in base64") from error
        if not (name := self.text(key)):
            return None
        path = self.path(name)
        try:
            return path.read_text("ascii")
        except (OSError, ValueError) as error:
            raise self.wrong(f"names the {key} {path}, which cannot be read") from error


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """The cluster and the user that the current context names."""

    cluster: Entry
    user: Entry


def from_base64(setting: str, text: str) -> Kubeconfig:
    """Read a kubeconfig that the setting holds in base64. Raises ``ConfigError``."""
    try:
        content = base64.b64decode("".join(text.split()), validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"{setting} is not a text in base64.") from error
    return _chosen(setting, [_Source(_parsed(setting, content), None)], "")


def from_files(setting: str, paths: Sequence[Path], context: str = "") -> Kubeconfig:
    """Read these files as kubectl does: the first that has a name decides. Raises ``ConfigError``.

    ``context`` is taken instead of the current one.
    """
    sources = []
    for path in paths:
        try:
            content = path.read_text()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not a text"
            raise ConfigError(f"{setting} names {path}, which cannot be read: {why}.") from error
        sources.append(_Source(_parsed(f"{setting} ({path})", content), path.absolute().parent))
    return _chosen(setting, sources, context)


@dataclass(frozen=True, slots=True)
class _Source:
    content: Mapping[str, Any] = field(repr=False)
    folder: Path | None


def _parsed(setting: str, content: str) -> Mapping[str, Any]:
    try:
        parsed = yaml.safe_load(content)
    except yaml.YAMLError:
        # Not chained: the parser quotes the lines around the fault, which may hold a token.
        raise ConfigError(f"{setting} is not YAML.") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("clusters"), list):
        raise ConfigError(f"{setting} is not a kubeconfig: it lists no clusters.")
    return parsed


def _chosen(setting: str, sources: Sequence[_Source], context: str) -> Kubeconfig:
    name = context or next(
        (one.content["current-context"] for one in sources if one.content.get("current-context")),
        "",
    )
    if not name:
        raise ConfigError(f"{setting} has no current-context.")
    chosen = _entry(setting, sources, "context", name)
    cluster = _entry(setting, sources, "cluster", chosen.text("cluster"))
    user = chosen.text("user")
    if not user:
        return Kubeconfig(cluster, Entry(setting, "no user", {}))
    return Kubeconfig(cluster, _entry(setting, sources, "user", user))


def _entry(setting: str, sources: Sequence[_Source], kind: str, name: str) -> Entry:
    for source in sources:
        for one in source.content.get(f"{kind}s") or ():
            found = isinstance(one, dict) and one.get("name") == name
            if found and isinstance(one.get(kind), dict):
                return Entry(setting, f'the {kind} "{name}"', one[kind], source.folder)
    raise ConfigError(f'{setting}: the {kind} "{name}" is named and is not there.')
