"""The SQLite tables, and the steps that bring an older file to them."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from greylag.common import sqlite
from greylag.common.sqlite import FileGoneError, NewerFileError, NoWalError
from greylag.domain.errors import ConfigError, InvalidRequestError, StoreUnavailableError
from greylag.ports import StoreIncompleteError

_OLDEST_SQLITE = (3, 31, 0)
_PRIMARY_CODE = 0xFF
_MAKE_ROOM = "Nothing was changed. It goes on once the disk of the data folder has room again."
_RESTORE = "Stop Greylag and restore a backup: docs/store.md says how."
_ADVICE = {
    sqlite3.SQLITE_FULL: _MAKE_ROOM,
    sqlite3.SQLITE_CORRUPT: _RESTORE,
    sqlite3.SQLITE_NOTADB: _RESTORE,
}
"""What to do about errors of SQLite, by their codes."""

# Times are milliseconds since 1970, UTC. What is looked up stands in columns; the rest is JSON.
# `changes` is how several processes on one file tell each other what they wrote.
_FIRST = (
    """
    CREATE TABLE projects (
      n INTEGER PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      user_id TEXT NOT NULL,
      project_id TEXT NOT NULL,
      name TEXT NOT NULL,
      metadata TEXT NOT NULL,
      namespace TEXT NOT NULL,
      deployment TEXT NOT NULL,
      service TEXT NOT NULL,
      ingress TEXT NOT NULL,
      status TEXT NOT NULL,
      endpoint TEXT,
      error TEXT,
      error_terminal INTEGER NOT NULL,
      last_activated_at INTEGER,
      last_deactivated_at INTEGER,
      created_at INTEGER NOT NULL,
      updated_at INTEGER NOT NULL,
      desired TEXT NOT NULL,
      generation INTEGER NOT NULL,
      observed_generation INTEGER NOT NULL,
      attempts INTEGER NOT NULL,
      due_at INTEGER,
      deadline_at INTEGER,
      lease_worker TEXT,
      lease_number INTEGER,
      lease_until INTEGER,
      claims INTEGER NOT NULL,
      last_seq INTEGER NOT NULL,
      woken INTEGER NOT NULL,
      claimable_at INTEGER GENERATED ALWAYS AS (coalesce(lease_until, due_at)) VIRTUAL,
      UNIQUE (user_id, project_id)
    )
    """,
    "CREATE INDEX projects_page ON projects (user_id, created_at, id)",
    "CREATE INDEX projects_page_by_status ON projects (user_id, status, created_at, id)",
    "CREATE INDEX projects_claimable ON projects (claimable_at) WHERE claimable_at IS NOT NULL",
    """
    CREATE INDEX projects_unsettled ON projects (n)
    WHERE status <> 'inactive' OR desired <> 'inactive' OR observed_generation < generation
    """,
    """
    CREATE TABLE events (
      record_id TEXT NOT NULL,
      seq INTEGER NOT NULL,
      body TEXT NOT NULL,
      PRIMARY KEY (record_id, seq)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE idempotency_keys (
      user_id TEXT NOT NULL,
      key TEXT NOT NULL,
      fingerprint TEXT NOT NULL,
      record_id TEXT NOT NULL,
      expires_at INTEGER NOT NULL,
      PRIMARY KEY (user_id, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at)",
    "CREATE INDEX idempotency_keys_by_record ON idempotency_keys (record_id)",
    """
    CREATE TABLE changes (
      n INTEGER PRIMARY KEY,
      source TEXT NOT NULL,
      user_id TEXT,
      project_id TEXT
    )
    """,
    "CREATE TABLE pings (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL)",
    "INSERT INTO pings (one, count) VALUES (1, 0)",
)

# The order of claims, each user's part of it, and who has leases: so that claims can be fair.
_CLAIMS = (
    "DROP INDEX projects_claimable",
    """
    CREATE INDEX projects_claimable ON projects (claimable_at, id, user_id)
    WHERE claimable_at IS NOT NULL
    """,
    """
    CREATE INDEX projects_claimable_by_user ON projects (user_id, claimable_at, id)
    WHERE claimable_at IS NOT NULL
    """,
    """
    CREATE INDEX projects_leased ON projects (lease_until, user_id)
    WHERE lease_until IS NOT NULL
    """,
)

# Work that one worker at a time does for all.
_DUTIES = (
    """
    CREATE TABLE duties (
      name TEXT PRIMARY KEY,
      holder TEXT,
      until INTEGER,
      done_at INTEGER
    ) WITHOUT ROWID
    """,
)

# Sign-ins that were ended and links that were used.
_REVOCATIONS = (
    "CREATE TABLE revocations (name TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID",
)

# By what this Greylag is told from another on the same cluster.
_INSTANCE = (
    "CREATE TABLE instance (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)",
    "INSERT INTO instance (one, id) VALUES (1, lower(hex(randomblob(8))))",
)

# Which settings what runs lacks, and with which it is to be started anew.
_SETTINGS = (
    "ALTER TABLE projects ADD COLUMN outdated TEXT",
    "ALTER TABLE projects ADD COLUMN refresh TEXT",
)

# Users, their sessions and tokens, and whom projects are shared with; by what they are found.
_PEOPLE = (
    """
    CREATE TABLE people (
      kind TEXT NOT NULL,
      key TEXT NOT NULL,
      version INTEGER NOT NULL,
      body TEXT NOT NULL,
      expires_at INTEGER,
      PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX people_by_expiry ON people (expires_at) WHERE expires_at IS NOT NULL",
    """
    CREATE TABLE people_labels (
      kind TEXT NOT NULL,
      label TEXT NOT NULL,
      key TEXT NOT NULL,
      PRIMARY KEY (kind, label, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX people_labels_by_key ON people_labels (kind, key)",
)

# The audit trail: each entry whole as JSON, with what it is found by; where it begins and ends.
_AUDIT = (
    """
    CREATE TABLE audit (
      number INTEGER PRIMARY KEY,
      body TEXT NOT NULL,
      at TEXT NOT NULL,
      actor TEXT,
      action TEXT NOT NULL,
      object TEXT NOT NULL,
      result TEXT NOT NULL
    )
    """,
    *(
        f"CREATE INDEX audit_by_{column} ON audit ({column})"
        for column in ("at", "actor", "action", "object", "result")
    ),
    """
    CREATE TABLE audit_bounds (
      place TEXT PRIMARY KEY,
      number INTEGER NOT NULL,
      hash TEXT NOT NULL
    ) WITHOUT ROWID
    """,
)

# The repository that a project starts from.
_SOURCES = ("ALTER TABLE projects ADD COLUMN source TEXT",)

# Copies of what was said, to be read while environments sleep.
_TRANSCRIPTS = (
    """
    CREATE TABLE transcripts (
      record_id TEXT NOT NULL,
      part TEXT NOT NULL,
      body BLOB NOT NULL,
      PRIMARY KEY (record_id, part)
    )
    """,
)

# Whose environment a project has that was handed over: no two have the same.
_OWNERS = (
    "ALTER TABLE projects ADD COLUMN environment_user TEXT",
    """
    CREATE UNIQUE INDEX projects_environment
    ON projects (coalesce(environment_user, user_id), project_id)
    """,
)

MIGRATIONS = (
    *(_FIRST, _CLAIMS, _DUTIES, _REVOCATIONS, _INSTANCE, _SETTINGS, _PEOPLE, _AUDIT),
    *(_SOURCES, _TRANSCRIPTS, _OWNERS),
)


def migrate(sql: sqlite3.Connection) -> None:
    """Bring the file to the newest tables.

    Raises:
        ConfigError: this SQLite is too old, or the file is something else than Greylag's.
        NewerFileError: a newer Greylag wrote the file.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise ConfigError(
            f"Greylag needs SQLite 3.31 or newer; this Python has {sqlite3.sqlite_version}."
        )
    sqlite.migrate(sql, MIGRATIONS, _check_new)


def _check_new(sql: sqlite3.Connection) -> None:
    if sql.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise ConfigError(
            "The database file holds tables that are not Greylag's.",
            hint="Give Greylag a data folder of its own.",
        )


def is_incomplete(sql: sqlite3.Connection) -> bool:
    """Tell whether an earlier Greylag's ``store copy`` into this file was cut off."""
    return bool(sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'copying'").fetchone())


def check_complete(sql: sqlite3.Connection) -> None:
    """Raise ``StoreIncompleteError`` for a file that is only partly filled."""
    if is_incomplete(sql):
        raise StoreIncompleteError(
            "The database holds only a part of what was being copied into it.",
            hint="Fill it by `greylag import --replace`, from an export of where its records were.",
        )


def _what_to_do(error: sqlite3.Error | OSError) -> str | None:
    """Return what an operator can do about it, where the cause says that; else ``None``."""
    if isinstance(error, FileGoneError):
        return "Put it back where it was, or start Greylag anew on what is there now."
    if isinstance(error, OSError):
        return _MAKE_ROOM if error.errno in {errno.ENOSPC, errno.EDQUOT} else None
    return _ADVICE.get(getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE)


@contextmanager
def translated() -> Iterator[None]:
    """Turn what SQLite and the file system refuse into errors that everyone can read."""
    try:
        yield
    except NoWalError as error:
        raise ConfigError(
            "The file system of the data folder cannot hold the database.",
            hint="Choose a data folder on a local disk.",
        ) from error
    except NewerFileError as error:
        raise ConfigError(
            "The database was written by a newer Greylag than this one.",
            hint="Start the newer Greylag, or give this one another data folder.",
        ) from error
    except (sqlite3.Error, OSError) as error:
        why = getattr(error, "strerror", None) or error
        hint = _what_to_do(error)
        raise StoreUnavailableError(f"The database cannot be used: {why}.", hint=hint) from error
    except UnicodeEncodeError as error:
        raise InvalidRequestError("Text must not hold unpaired surrogates.") from error
