"""The agent's API as the platform relays it: one table that both sides read.

agentd makes its routes from it, and the platform's relay lets through what stands in it and nothing
else; OpenAPI is made from it. An operation has the same path below agentd's ``/api/v1`` and below
``/api/users/{user}/projects/{project}``. The shapes are dataclasses, so that agentd, whose image
has no pydantic, builds its answers from what the platform describes.
"""

from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar, get_args

from greylag.common.git import MAX_REF_LENGTH, REF_FORM

_AnswerShape = TypeVar("_AnswerShape")

ROOT = "/api/v1"
"""Where agentd's API begins."""
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
MEBIBYTE = 1024 * 1024
TURNS = 50
MOST_TURNS = 200
"""How many turns a list has, if the client does not say, and at most."""
MOST_MESSAGES = 400
PAGE_CHARACTERS = 256 * 1024
"""How many messages one page of a history has at most, and how much text they have together."""
MOST_BEFORE = 2**31
"""Past every index of a message."""
KEPT_AT = "greylag-kept-at"
"""The header that tells of when a copy is that answers in the place of an environment."""
MOST_TITLE = 200
"""How many characters a session's title may have."""
MOST_EVENT = 8 * MEBIBYTE
"""How many bytes an event of a turn has at most; every client takes as many."""
BYTES = "application/octet-stream"
ENTRIES = 200
MOST_ENTRIES = 1000
"""How many entries of a folder a page has, if the client does not say, and at most."""
MATCHES = 100
MOST_MATCHES = 500
MOST_CONTENT = 64 * 1024 * MEBIBYTE
LONGEST_TRANSFER = 4 * 3600.0
"""How many bytes a file may have to pass, and in how many seconds it must."""
AUTHOR_HEADER = "x-greylag-author"
MOST_AUTHOR = 200
"""What tells who sends a message, percent-encoded, and how long that name may be."""
MOST_ARGUMENTS = 20_000
"""How many characters of a question's arguments are told."""
MOST_WAIT = 25
"""How many seconds a wait for what the agent does takes at most."""
MOST_GIT_MESSAGE = 32 * 1024
"""How many characters a commit may say."""
MOST_SIZE = 1000
"""How many rows or columns a terminal may have."""

Decision = Literal["allow_once", "allow_session", "reject_once"]
"""What a user says to the agent's question whether a tool may run; `allow_session` is for all
further calls of that tool in the session, too.
"""
DECISIONS: Mapping[str, Decision] = {one: one for one in get_args(Decision)}
SettingValue = str | int | float
"""What the agent's settings hold."""


@dataclass(frozen=True, slots=True)
class Doc:
    """What OpenAPI tells of a member, beside its type."""

    text: str = ""
    example: Any = None
    rules: Mapping[str, Any] | None = None

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        """Add this to the member's JSON schema; pydantic calls it by this name."""
        schema = {**handler(core_schema), "description": self.text, **(self.rules or {})}
        return schema if self.example is None else {**schema, "examples": [self.example]}


LEGACY_API = (
    "GREYLAG_LEGACY_API is set: pages of any origin may call an environment's own API, and its "
    "token may stand in addresses, which proxies and histories keep."
)

# The shapes of answers.

_SESSION = "0d4f7c1e-6a35-4b0e-9c55-1f2f0c5f7a10"
_TURN = "5a1d0b6c2f3e4d51a7c8e9f001122334"
_Time = Annotated[str, Doc("RFC 3339, UTC.", "2026-11-23T09:15:00.000Z")]
_SessionId = Annotated[str, Doc("A session's id.", _SESSION)]
_TurnId = Annotated[str, Doc("A turn's id.", _TURN)]


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation with the agent."""

    session_id: _SessionId
    created_at: _Time
    updated_at: _Time
    message_count: Annotated[int, Doc("How many messages and answers it has.", 2)]
    title: Annotated[
        str, Doc("What it was called, else how its first message begins; empty before that.", "Hi")
    ] = ""
    mode: Annotated[
        str | None, Doc("When the agent asks in it; null: as GOOSE_MODE says.", "auto")
    ] = None
    model: Annotated[
        str | None, Doc("Which model answers in it; null: as GOOSE_MODEL says.", "gpt-4o")
    ] = None


@dataclass(frozen=True, slots=True)
class SessionName:
    """What a session is to be called."""

    title: Annotated[
        str,
        Doc("Empty: as its first message begins again.", "Search", {"maxLength": MOST_TITLE}),
    ]


@dataclass(frozen=True, slots=True)
class SessionList:
    """The sessions of a project, newest first."""

    sessions: list[Session]
    total: int


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a session's history."""

    role: Annotated[str, Doc("User or Assistant.", "User")]
    content: Annotated[str, Doc("The words.", "Hello")]
    timestamp: Annotated[int | None, Doc("Seconds since 1970.", 1795424100)]
    message_index: Annotated[int, Doc("From 0, without a gap; a copy may begin later.", 0)]
    turn_id: Annotated[str | None, Doc("The turn that it is of.", _TURN)] = None
    shortened: Annotated[bool, Doc("Whether a page cut it, as it alone is longer.")] = False
    author: Annotated[str | None, Doc("The user's name, where it is known.", "Ann")] = None
    forgotten: Annotated[bool, Doc("Whether an undo cut it out of the agent's history.")] = False


@dataclass(frozen=True, slots=True)
class History:
    """What was said in a session, oldest first."""

    session_id: _SessionId
    messages: list[ChatMessage]
    total_count: int


@dataclass(frozen=True, slots=True)
class TurnChanges:
    """How much a turn changed in the workspace, and whether that was undone."""

    files: Annotated[int, Doc("How many files, links and folders.", 3)]
    added_lines: Annotated[int, Doc("Of all whose lines were counted.", 48)]
    deleted_lines: int
    undo_id: Annotated[
        str | None, Doc("The undo that took it back, if that is not undone itself.")
    ] = None
    undone_files: Annotated[int, Doc("How many that undo brought back.")] = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A tool call of which the agent asks whether it may run."""

    confirmation_id: Annotated[str, Doc("By this it is answered.", _TURN)]
    tool_name: Annotated[str, Doc("The tool's name.", "shell")]
    arguments: Annotated[str, Doc("What the tool is given: JSON, as text.", '{"command": "ls"}')]
    shortened: Annotated[bool, Doc("Whether that was cut to 20,000 characters.")] = False
    decisions: Annotated[
        list[str], Doc("What it may be answered with.", ["allow_once", "reject_once"])
    ] = field(default_factory=lambda: ["allow_once", "reject_once"])
    expires_at: Annotated[
        str | None, Doc("RFC 3339, UTC: when it is declined unless it is answered.")
    ] = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A message and all that answers it."""

    turn_id: _TurnId
    session_id: _SessionId
    message_id: Annotated[str, Doc("The client's own id of the message.", "b3c1")]
    status: Annotated[str, Doc("running, completed, cancelled or error.", "completed")]
    message: Annotated[str, Doc("What was asked.", "Hello")]
    started_at: _Time
    ended_at: Annotated[str | None, Doc("RFC 3339, UTC; null while it runs.")] = None
    answer: Annotated[str, Doc("The answer's text, whole at the end.", "Hello!")] = ""
    tool_calls_count: int = 0
    stop_reason: Annotated[str | None, Doc("Why it ended.", "end_turn")] = None
    error: Annotated[str | None, Doc("Why it failed, in words.")] = None
    error_code: Annotated[str | None, Doc("The same, for programs.")] = None
    shortened: Annotated[bool, Doc("Whether a list cut the texts to 1,000 characters.")] = False
    changes: Annotated[
        TurnChanges | None, Doc("null where it is not known (yet), or not kept any longer.")
    ] = None
    author: Annotated[str | None, Doc("Whose message it is, where it is known.", "Ann")] = None
    question: Annotated[
        Question | None, Doc("The oldest that waits for its answer; null: none does.")
    ] = None
    forgotten: Annotated[bool, Doc("Whether an undo cut it out of the agent's history.")] = False


@dataclass(frozen=True, slots=True)
class TurnList:
    """The turns of a session, newest first."""

    turns: list[Turn]


@dataclass(frozen=True, slots=True)
class TurnState:
    """How one of the newest turns stands."""

    turn_id: _TurnId
    session_id: _SessionId
    message_id: Annotated[str, Doc("The client's own id of the message.", "b3c1")]
    state: Annotated[str, Doc("working, asks (a question waits for its answer) or ended.", "asks")]


@dataclass(frozen=True, slots=True)
class Activity:
    """What the agent does now."""

    revision: Annotated[str, Doc("Changes with all that this tells of, and with the sessions.")]
    turns: Annotated[list[TurnState], Doc("All that run, and those of late; oldest first.")]
    last_at: Annotated[
        str | None, Doc("RFC 3339, UTC: when a turn began or ended last; null: none since start.")
    ]


@dataclass(frozen=True, slots=True)
class AgentExtension:
    """One of goose's extensions; the values of its secret variables are never shown."""

    name: Annotated[str, Doc("Its name.", "developer")]
    display_name: str | None
    type: Annotated[str, Doc("builtin, platform, stdio or streamable_http.", "platform")]
    extension_type: Annotated[str, Doc("The same as `type`.", "platform")]
    enabled: Annotated[bool, Doc("Whether new sessions have it.", example=True)]
    timeout: Annotated[int | None, Doc("Seconds that one call may take.", 300)]
    cmd: Annotated[str | None, Doc("The program that is run.")]
    args: Annotated[list[str], Doc("Its arguments.")]
    uri: Annotated[str | None, Doc("Where it is reached.")]
    bundled: bool | None
    description: str | None
    env_keys: Annotated[list[str], Doc("The names of its secret variables.")]
    state: Annotated[str | None, Doc("starting, ready, failed; null: not started yet.")] = None
    state_detail: Annotated[str | None, Doc("The same in words, with its last ones.")] = None


@dataclass(frozen=True, slots=True)
class ExtensionList:
    """The agent's extensions, by name."""

    extensions: list[AgentExtension]
    total_count: int


@dataclass(frozen=True, slots=True)
class ExtensionSwitch:
    """Whether new sessions are to have an extension."""

    enabled: Annotated[bool, Doc("On or off.", example=False)]


@dataclass(frozen=True, slots=True)
class SwitchedExtension:
    """An extension that was switched on or off."""

    message: str
    name: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class AgentSetting:
    """One of goose's settings."""

    key: Annotated[str, Doc("Its name.", "GOOSE_TEMPERATURE")]
    value: Annotated[SettingValue | None, Doc("What holds now.", 0.7)]
    default_value: SettingValue | None
    description: str
    value_type: Annotated[str, Doc("number or string.", "number")]
    validation: Annotated[dict[str, Any], Doc("min, max, allowed_values, pattern.", {"min": 0})]
    env_override: Annotated[str | None, Doc("What the environment fixes it to.")]
    restart_required: Annotated[bool, Doc("Whether a change waits for a new start.")]


@dataclass(frozen=True, slots=True)
class SettingList:
    """The agent's settings."""

    settings: list[AgentSetting]
    total_count: int


@dataclass(frozen=True, slots=True)
class NewSettingValue:
    """What a setting is to be; the setting's own rules say what it takes."""

    value: Annotated[SettingValue, Doc("A number or text.", 0.7)]


@dataclass(frozen=True, slots=True)
class ModelList:
    """The models that there are to choose from."""

    models: Annotated[list[str], Doc("By name; none where the provider does not tell.", ["gpt-4o"])]


@dataclass(frozen=True, slots=True)
class ChangedSetting:
    """A setting that has its new value."""

    message: str
    key: str
    value: SettingValue | None
    restart_required: bool


@dataclass(frozen=True, slots=True)
class ResetSetting:
    """A setting that has its default again."""

    message: str
    key: str
    default_value: SettingValue | None


_PATH = (
    "Below the workspace, parts between `/`; empty for the workspace itself. A byte that is no "
    "UTF-8 is written `\\xHH`, a backslash `\\\\`."
)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file, folder or link of the workspace."""

    path: Annotated[str, Doc(_PATH, "src/main.py")]
    name: Annotated[str, Doc("The last part of the path.", "main.py")]
    kind: Annotated[str, Doc("file, folder, link, or other (a socket, a pipe, ...).", "file")]
    size: Annotated[int, Doc("Bytes of a file.", 1204)]
    modified: _Time
    mode: Annotated[str, Doc("Its rights, in octal digits.", "644")]
    target: Annotated[str | None, Doc("Where a link leads, as it says.")]
    media_type: Annotated[str | None, Doc("What its name says it is.", "text/x-python")]
    etag: Annotated[str, Doc("Changes whenever it does; for If-Match.", '"4a1-4b4-18c2f3"')]


@dataclass(frozen=True, slots=True)
class FileList:
    """What is at a path and, for a folder, a page of what it holds, by name."""

    entry: FileEntry
    entries: list[FileEntry]
    next: Annotated[str | None, Doc("What `after` is for the next page; null at the end.")]


@dataclass(frozen=True, slots=True)
class NewFolder:
    """A folder that is to be."""

    path: Annotated[str, Doc(_PATH, "src/parts")]


@dataclass(frozen=True, slots=True)
class FileMove:
    """Which file or folder is to have which path."""

    source: Annotated[str, Doc(_PATH, "notes.txt")]
    target: Annotated[str, Doc(_PATH, "docs/notes.txt")]
    replace: Annotated[bool, Doc("Whether it may take the place of a file.")] = False


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came of an archive."""

    files: Annotated[int, Doc("How many files, folders and links were made.", 12)]
    left_out: Annotated[list[str], Doc("The first of those that were not, by name.")]


@dataclass(frozen=True, slots=True)
class FileMatch:
    """A name or a line that holds what was searched for."""

    path: Annotated[str, Doc(_PATH, "src/main.py")]
    line: Annotated[int, Doc("The line's number; 0 when the name matches.", 12)]
    text: Annotated[str, Doc("The line's beginning.", "def main() -> None:")]


@dataclass(frozen=True, slots=True)
class FileMatches:
    """What a search found: names first, then lines."""

    matches: list[FileMatch]
    whole: Annotated[bool, Doc("Whether this is all; else there was too much, or no time.")]


_TERMINAL = "3f9c1e7ab2d4"
_OF_SIZE = {"minimum": 1, "maximum": MOST_SIZE}


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """How large a terminal is."""

    rows: Annotated[int, Doc("How many.", 24, _OF_SIZE)]
    columns: Annotated[int, Doc("How many.", 80, _OF_SIZE)]


@dataclass(frozen=True, slots=True)
class Terminal:
    """A shell of the workspace on a terminal, which outlives who looks at it."""

    terminal_id: Annotated[str, Doc("Its id.", _TERMINAL)]
    rows: Annotated[int, Doc("How many it has now.", 24)]
    columns: Annotated[int, Doc("How many it has now.", 80)]
    started_at: _Time
    attached: Annotated[int, Doc("How many connections look at it.", 1)]
    ended: Annotated[bool, Doc("Whether its shell has ended.", example=False)]
    exit_code: Annotated[
        int | None, Doc("The shell's, negative for a signal; null while it runs, or if unknown.")
    ]


@dataclass(frozen=True, slots=True)
class TerminalList:
    """The terminals of an environment, oldest first."""

    terminals: list[Terminal]


@dataclass(frozen=True, slots=True)
class ListeningPort:
    """A port of the environment on which one of its processes listens."""

    port: Annotated[int, Doc("Its number.", 5173)]
    process: Annotated[str, Doc("The process's name, as it says.", "node")]


@dataclass(frozen=True, slots=True)
class PortList:
    """The ports on which the environment's processes listen, in order."""

    ports: list[ListeningPort]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file, link or folder that differs between two states of the workspace.

    A folder is told of when it is empty or its rights changed.
    """

    path: Annotated[str, Doc(_PATH, "src/main.py")]
    change: Annotated[str, Doc("added, modified, deleted or renamed.", "modified")]
    kind: Annotated[str, Doc("file, folder or link.", "file")]
    old_path: Annotated[str | None, Doc("Of what was renamed: its path before.")] = None
    old_mode: Annotated[str | None, Doc("Its rights before, in octal digits.", "644")] = None
    mode: Annotated[str | None, Doc("Its rights after.", "644")] = None
    binary: Annotated[bool, Doc("Whether it is no text.")] = False
    added_lines: Annotated[int | None, Doc("null where none were counted.", 3)] = None
    deleted_lines: Annotated[int | None, Doc("null where none were counted.", 1)] = None
    shared: Annotated[bool, Doc("Whether it may be the work of somebody else meanwhile.")] = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not kept, and so neither compared nor put back."""

    path: Annotated[str, Doc(_PATH, "node_modules")]
    reason: Annotated[
        str,
        Doc(
            "build (made again by tools), ignored (by .gitignore), too_large, no_room, unreadable, "
            "special (a socket, a pipe, ...), too_deep, changed (while it was read).",
            "build",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two states of the workspace, by path."""

    from_snapshot: Annotated[int, Doc("The number of the earlier state.", 4)]
    to_snapshot: Annotated[int, Doc("The number of the later state.", 5)]
    changes: list[FileChange]
    total: Annotated[int, Doc("How many there are, also of those that the list has no room for.")]
    added_lines: Annotated[int, Doc("Of all whose lines were counted.", 48)]
    deleted_lines: int
    left_out: Annotated[list[LeftOut], Doc("The first of what is not kept, by path.")]
    left_out_total: int


@dataclass(frozen=True, slots=True)
class FileDiff:
    """What differs in one file."""

    change: FileChange
    diff: Annotated[str, Doc("Unified, three lines around each change; empty for no text.")]
    whole: Annotated[bool, Doc("Whether this is all; else it was too long.")]


@dataclass(frozen=True, slots=True)
class UndoWish:
    """What is to be undone, and how far."""

    override: Annotated[
        bool, Doc("Whether what others changed since, or meanwhile, is taken away too.")
    ] = False
    paths: Annotated[
        list[str] | None, Doc("Only these, with what is below them; null: all.", ["src/main.py"])
    ] = None
    history: Annotated[
        Literal["keep", "cut"],
        Doc(
            "cut: the agent forgets this turn and the later ones of its session, too; keep: it is "
            "told of the undo."
        ),
    ] = "keep"


@dataclass(frozen=True, slots=True)
class Kept:
    """What an undo left as it is."""

    path: Annotated[str, Doc(_PATH, "notes.txt")]
    reason: Annotated[
        str,
        Doc(
            "changed_since (after the turn), changed_by_others (while it ran), left_out (its "
            "content is not kept), not_empty, folder_gone, or why the system refused.",
            "changed_since",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Undone:
    """What an undo did."""

    undo_id: Annotated[str, Doc("Takes the place of a turn's id, to undo the undo too.", _TURN)]
    changes: Changes
    kept: Annotated[list[Kept], Doc("The first of what was left as it is, by path.")]
    kept_total: int
    forgotten_turns: Annotated[int, Doc("How many turns the agent has forgotten by it.")] = 0


@dataclass(frozen=True, slots=True)
class GitStatus:
    """How the workspace's git repository stands."""

    repository: Annotated[bool, Doc("Whether it is one; else nothing else is told.", example=True)]
    branch: Annotated[str | None, Doc("What is checked out; null: no branch.", "main")] = None
    commit: Annotated[str | None, Doc("The commit that is checked out; null: none yet.")] = None
    upstream: Annotated[str | None, Doc("The branch that it follows.", "origin/main")] = None
    ahead: Annotated[int, Doc("How many commits it has that `upstream` lacks.", 1)] = 0
    behind: Annotated[
        int, Doc("How many commits `upstream` has that it lacks, as last fetched.")
    ] = 0
    changed: Annotated[int, Doc("How many files differ from the commit.", 2)] = 0
    untracked: Annotated[int, Doc("How many files or folders git does not know.")] = 0
    conflicted: Annotated[int, Doc("How many files a merge left for people to settle.")] = 0
    whole: Annotated[bool, Doc("Whether all were counted; else there are more.")] = True
    remote: Annotated[str | None, Doc("Where `origin` is.", "https://github.com/o/r.git")] = None


_MESSAGE_RULES = {
    "minLength": 1,
    "maxLength": MOST_GIT_MESSAGE,
    "pattern": r"^[^\x00]*[^\s\x00][^\x00]*$",
}
_PATH_RULES = {"minItems": 1, "items": {"minLength": 1, "pattern": r"^[^\x00]+$"}}


@dataclass(frozen=True, slots=True)
class GitCommitWish:
    """What is to be committed."""

    message: Annotated[str, Doc("What the commit is to say.", "Add a search", _MESSAGE_RULES)]
    paths: Annotated[
        list[str] | None,
        Doc("Only these files and folders; null: all that changed.", ["src/main.py"], _PATH_RULES),
    ] = None


@dataclass(frozen=True, slots=True)
class GitCommitted:
    """A commit that was made."""

    commit: Annotated[str, Doc("Its id.", "0f1e2d3c4b5a69788796a5b4c3d2e1f001234567")]
    branch: Annotated[str | None, Doc("The branch that it is on; null: none.", "main")]


@dataclass(frozen=True, slots=True)
class GitPushWish:
    """What is to be pushed, and where to."""

    branch: Annotated[
        str | None,
        Doc(
            "The remote's branch; null: the one of the same name.",
            "fix",
            {"pattern": REF_FORM, "maxLength": MAX_REF_LENGTH},
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class GitPushed:
    """What was pushed."""

    branch: Annotated[str, Doc("The remote's branch, which is followed from now on.", "fix")]
    remote: Annotated[str, Doc("Where it is.", "https://github.com/o/r.git")]


# The operations.


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of a path, or a member of a query, as OpenAPI tells it."""

    name: str
    text: str
    schema: dict[str, Any]


TERMINALS = "terminals"
"""The tag of all that runs what a person types."""

IN_PATHS = {
    "extension": Parameter(
        "extension", "An extension's name.", {"type": "string", "examples": ["developer"]}
    ),
    "key": Parameter("key", "A setting's name.", {"type": "string", "examples": ["GOOSE_MODE"]}),
    "session": Parameter("session", "A session's id.", {"type": "string", "examples": [_SESSION]}),
    "terminal": Parameter(
        "terminal", "A terminal's id.", {"type": "string", "examples": [_TERMINAL]}
    ),
    "turn": Parameter("turn", "A turn's id.", {"type": "string", "examples": [_TURN]}),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation(Generic[_AnswerShape]):
    """One thing that may be asked of the agent through the platform.

    Attributes:
        name: its id in OpenAPI.
        request: the HTTP method and the path, which is below ``ROOT`` at agentd and below a project
            on the platform; ``{name}`` in it is a part that the client gives.
        summary: what it does, in a few words.
        text: what else OpenAPI tells of it.
        tag: where OpenAPI lists it.
        answer: the shape of a success: a dataclass, ``str`` for text, ``bytes`` for a file,
            ``NoneType`` for nothing.
        status: the HTTP status of a success.
        query: the query's members that are passed on; others are dropped.
        body: the shape of the request's body, if it takes one; ``bytes`` for a file.
        body_limit: the most bytes of it.
        told: which of its members say what the operation is done with, and how: those that the
            audit trail has.
        media: the content type of a success, whatever the agent calls it.
        answer_limit: the most bytes of an answer.
        seconds: that it may take from beginning to end.
        silence: seconds that nothing of the answer may come.
        kept: whether a copy answers it while there is nobody to ask.
    """

    name: str
    request: str
    summary: str
    text: str
    tag: str
    answer: type[_AnswerShape]
    status: int = 200
    query: tuple[Parameter, ...] = ()
    body: type[Any] | None = None
    body_limit: int = 64 * 1024
    told: tuple[str, ...] = ()
    media: str = JSON
    answer_limit: int = 8 * MEBIBYTE
    seconds: float = 600
    silence: float = 30
    kept: bool = False

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.split()[0]

    @property
    def path(self) -> str:
        """The path, with the names of its parts."""
        return self.request.split()[1]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parts of the path that the client gives."""
        parts = self.path.split("/")
        return tuple(IN_PATHS[part[1:-1]] for part in parts if part.startswith("{"))


def _limit(text: str, default: int, most: int) -> Parameter:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter("limit", text, schema)


LIST_SESSIONS = Operation(
    name="list_sessions",
    request="GET /sessions",
    summary="List the sessions",
    text="The project's sessions, newest first.",
    tag="sessions",
    answer=SessionList,
    kept=True,
)
CREATE_SESSION = Operation(
    name="create_session",
    request="POST /sessions",
    summary="Start a session",
    text="A new, empty conversation. A message without `session_id` starts one by itself.",
    tag="sessions",
    answer=Session,
    status=201,
)
SHOW_SESSION = Operation(
    name="show_session",
    request="GET /sessions/{session}",
    summary="Read a session",
    text="One session.",
    tag="sessions",
    answer=Session,
    kept=True,
)
RENAME_SESSION = Operation(
    name="rename_session",
    request="PUT /sessions/{session}",
    summary="Name a session",
    text="Call the session as people are to see it listed.",
    tag="sessions",
    body=SessionName,
    answer=Session,
)
DELETE_SESSION = Operation(
    name="delete_session",
    request="DELETE /sessions/{session}",
    summary="Delete a session",
    text="End the conversation for good; a running turn of it is cancelled.",
    tag="sessions",
    answer=NoneType,
    status=204,
)
LIST_MESSAGES = Operation(
    name="list_messages",
    request="GET /sessions/{session}/messages",
    summary="Read a session's history",
    text="What was said, oldest first; tool calls are in the events of the turns. With `limit` it "
    "is a page of the newest, ended earlier where their texts are long; `before` asks for the one "
    "that precedes it. Without, it is all.",
    tag="sessions",
    answer=History,
    query=(
        Parameter(
            "limit",
            "The most messages of a page.",
            {"type": "integer", "minimum": 1, "maximum": MOST_MESSAGES},
        ),
        Parameter(
            "before",
            "Only messages with a smaller `message_index`.",
            {"type": "integer", "minimum": 1},
        ),
    ),
    answer_limit=256 * MEBIBYTE,
    kept=True,
)
EXPORT_SESSION = Operation(
    name="export_session",
    request="GET /sessions/{session}/export",
    summary="Read a session as Markdown",
    text="The same as the history, as one text.",
    tag="sessions",
    answer=str,
    media=TEXT,
    answer_limit=256 * MEBIBYTE,
)
LIST_TURNS = Operation(
    name="list_turns",
    request="GET /sessions/{session}/turns",
    summary="List a session's turns",
    text="The session's newest turns, newest first, with the beginnings of their texts.",
    tag="sessions",
    answer=TurnList,
    query=(_limit("The most turns to list.", TURNS, MOST_TURNS),),
    kept=True,
)
SHOW_TURN = Operation(
    name="show_turn",
    request="GET /turns/{turn}",
    summary="Read a turn",
    text="One turn and how it stands.",
    tag="turns",
    answer=Turn,
    # The answer is as long as the turn's journal may be, and each character six in JSON at most.
    answer_limit=512 * MEBIBYTE,
)
SHOW_ACTIVITY = Operation(
    name="show_activity",
    request="GET /activity",
    summary="Read what the agent does",
    text="Which turns run, and which wait for an answer. With `since` it is told once it is "
    "another than the one of that revision, or after `wait` seconds.",
    tag="turns",
    answer=Activity,
    query=(
        Parameter("since", "The `revision` that is known.", {"type": "string"}),
        Parameter(
            "wait",
            "How long to wait for another one, in seconds.",
            {"type": "integer", "minimum": 1, "maximum": MOST_WAIT, "default": MOST_WAIT},
        ),
    ),
    answer_limit=256 * 1024,
)

LIST_EXTENSIONS = Operation(
    name="list_extensions",
    request="GET /extensions",
    summary="List the agent's extensions",
    text="What goose has for its sessions.",
    tag="settings",
    answer=ExtensionList,
)
SWITCH_EXTENSION = Operation(
    name="switch_extension",
    request="PUT /extensions/{extension}/toggle",
    summary="Switch an extension on or off",
    text="Sessions that are made from now on have it or not. It works while goose does not, too.",
    tag="settings",
    body=ExtensionSwitch,
    told=("enabled",),
    answer=SwitchedExtension,
)
REMOVE_EXTENSION = Operation(
    name="remove_extension",
    request="DELETE /extensions/{extension}",
    summary="Remove an extension",
    text="One that is switched off. It works while goose does not, too.",
    tag="settings",
    answer=NoneType,
    status=204,
)
LIST_SETTINGS = Operation(
    name="list_settings",
    request="GET /settings",
    summary="List the agent's settings",
    text="How goose is set up, and within which rules that can be changed.",
    tag="settings",
    answer=SettingList,
)
SHOW_SETTING = Operation(
    name="show_setting",
    request="GET /settings/{key}",
    summary="Read a setting",
    text="One setting.",
    tag="settings",
    answer=AgentSetting,
)
CHANGE_SETTING = Operation(
    name="change_setting",
    request="PUT /settings/{key}",
    summary="Change a setting",
    text="Sessions that are made from now on have it; mode and model hold in all that have none of "
    "their own, from their next message on. What the environment fixes stays as it is.",
    tag="settings",
    body=NewSettingValue,
    answer=ChangedSetting,
)
RESET_SETTING = Operation(
    name="reset_setting",
    request="DELETE /settings/{key}",
    summary="Reset a setting",
    text="Give a setting its default again.",
    tag="settings",
    answer=ResetSetting,
)
CHANGE_SESSION_SETTING = Operation(
    name="change_session_setting",
    request="PUT /sessions/{session}/settings/{key}",
    summary="Choose a session's mode or model",
    text="`GOOSE_MODE` or `GOOSE_MODEL` for this session alone, from its next message on. Empty "
    "text: as the setting says. A mode that is chosen ends what was allowed for the session.",
    tag="settings",
    body=NewSettingValue,
    answer=ChangedSetting,
)
LIST_MODELS = Operation(
    name="list_models",
    request="GET /models",
    summary="List the models",
    text="Those that `GREYLAG_MODEL` names, else those that the model provider offers (it may take "
    "others, too).",
    tag="settings",
    answer=ModelList,
)

_FILE_QUERY = Parameter("path", _PATH, {"type": "string", "examples": ["src/main.py"]})
_PATH_QUERY = Parameter("path", _PATH, {"type": "string", "default": "", "examples": ["src"]})
_FORMAT = Parameter("format", "What the archive is.", {"type": "string", "enum": ["tar.gz", "zip"]})
LIST_FILES = Operation(
    name="list_files",
    request="GET /files",
    summary="List a folder",
    text="What is at a path of the workspace; of a folder also what it holds, by name.",
    tag="files",
    answer=FileList,
    query=(
        _PATH_QUERY,
        Parameter("after", "Only names after this one.", {"type": "string"}),
        _limit("The most entries of a page.", ENTRIES, MOST_ENTRIES),
    ),
)
DELETE_FILE = Operation(
    name="delete_file",
    request="DELETE /files",
    summary="Delete a file or folder",
    text="A link is deleted, not what it leads to. A folder that holds something is refused, "
    "unless `recursive` is true.",
    tag="files",
    answer=NoneType,
    status=204,
    query=(
        _PATH_QUERY,
        Parameter("recursive", "With all that it holds.", {"type": "boolean", "default": False}),
    ),
    silence=600,
)
READ_FILE = Operation(
    name="read_file",
    request="GET /files/content",
    summary="Read a file",
    text="Its bytes, or a range of them. `If-None-Match`, `If-Match` and `If-Range` count. Its "
    "type is what its name says, of what no browser runs or shows as a page; all else is "
    "`application/octet-stream`.",
    tag="files",
    answer=bytes,
    query=(_PATH_QUERY,),
    media=BYTES,
    answer_limit=MOST_CONTENT,
    seconds=LONGEST_TRANSFER,
)
WRITE_FILE = Operation(
    name="write_file",
    request="PUT /files/content",
    summary="Write a file",
    text="The body is what the file holds then; until all of it has come, it is what it was. "
    "Folders on the way are made. `If-Match` refuses a file that changed, `If-None-Match: *` one "
    "that is there.",
    tag="files",
    answer=FileEntry,
    query=(
        _PATH_QUERY,
        Parameter(
            "mode",
            "Its rights then, as lists tell them; by default those that it has.",
            {"type": "string", "pattern": "^[0-7]{3}$", "examples": ["755"]},
        ),
        Parameter(
            "modified",
            "When it changed last, as lists tell it; by default now.",
            {"type": "string", "format": "date-time"},
        ),
    ),
    body=bytes,
    body_limit=MOST_CONTENT,
    seconds=LONGEST_TRANSFER,
    silence=LONGEST_TRANSFER,
)
MAKE_FOLDER = Operation(
    name="make_folder",
    request="POST /files/folder",
    summary="Make a folder",
    text="And those on the way to it; one that is there is left as it is.",
    tag="files",
    answer=FileEntry,
    status=201,
    body=NewFolder,
    told=("path",),
)
MOVE_FILE = Operation(
    name="move_file",
    request="POST /files/move",
    summary="Move a file or folder",
    text="Give it another path; folders on the way are made.",
    tag="files",
    answer=FileEntry,
    body=FileMove,
    told=("source", "target", "replace"),
)
READ_ARCHIVE = Operation(
    name="read_archive",
    request="GET /files/archive",
    summary="Read a folder as an archive",
    text="With its links, without following them. `LEFT-OUT.txt` in it names what could not be put "
    "in, if anything.",
    tag="files",
    answer=bytes,
    query=(_PATH_QUERY, _FORMAT),
    media=BYTES,
    answer_limit=MOST_CONTENT,
    seconds=LONGEST_TRANSFER,
)
UNPACK_ARCHIVE = Operation(
    name="unpack_archive",
    request="POST /files/archive",
    summary="Unpack an archive into a folder",
    text="Its files and links replace those of the same path. Nothing of it gets outside the "
    "workspace.",
    tag="files",
    answer=Unpacked,
    query=(
        _PATH_QUERY,
        _FORMAT,
        Parameter(
            "source",
            "A file of the workspace that is the archive; the body is not read then.",
            {"type": "string", "examples": ["t.tar.gz"]},
        ),
    ),
    body=bytes,
    body_limit=MOST_CONTENT,
    seconds=LONGEST_TRANSFER,
    silence=LONGEST_TRANSFER,
)
SEARCH_FILES = Operation(
    name="search_files",
    request="GET /files/search",
    summary="Search in files",
    text="Names and lines that hold a text, in any case; each have half of the matches, or what "
    "the others leave. `.git`, `node_modules` and (where ripgrep is) what `.gitignore` names are "
    "passed over, and of binary and very large files the lines.",
    tag="files",
    answer=FileMatches,
    query=(
        Parameter("q", "What is searched for.", {"type": "string", "minLength": 1}),
        _PATH_QUERY,
        _limit("The most matches.", MATCHES, MOST_MATCHES),
    ),
    silence=60,
)

LIST_TERMINALS = Operation(
    name="list_terminals",
    request="GET /terminals",
    summary="List the terminals",
    text="Those that run, and the last that have ended, oldest first.",
    tag=TERMINALS,
    answer=TerminalList,
)
START_TERMINAL = Operation(
    name="start_terminal",
    request="POST /terminals",
    summary="Start a terminal",
    text="A shell in the workspace. It ends by itself, by DELETE, or with the environment; a "
    "WebSocket to `terminals/{terminal}` attaches to it.",
    tag=TERMINALS,
    answer=Terminal,
    status=201,
    body=TerminalSize,
)
END_TERMINAL = Operation(
    name="end_terminal",
    request="DELETE /terminals/{terminal}",
    summary="End a terminal",
    text="Its shell is killed with all that it started, and the terminal is forgotten.",
    tag=TERMINALS,
    answer=NoneType,
    status=204,
)

LIST_PORTS = Operation(
    name="list_ports",
    request="GET /ports",
    summary="List the ports that are listened on",
    text="What the environment's processes serve on its loopback, and can be previewed.",
    tag="ports",
    answer=PortList,
)
_LONG_COMPARISON = 600.0
TURN_CHANGES = Operation(
    name="turn_changes",
    request="GET /turns/{turn}/changes",
    summary="List what a turn changed",
    text="The files that differ between the states of the workspace before and after it, with "
    "what is left out. What another turn changed meanwhile is among them, marked as shared. An "
    "undo's id may stand for a turn's. 409 `turn_running` while it runs, 410 `snapshot_gone` when "
    "its states are not kept (any longer).",
    tag="changes",
    answer=Changes,
    silence=_LONG_COMPARISON,
)
TURN_DIFF = Operation(
    name="turn_diff",
    request="GET /turns/{turn}/diff",
    summary="Read what a turn changed in a file",
    text="A unified diff of one path of the turn's changes.",
    tag="changes",
    answer=FileDiff,
    query=(_FILE_QUERY,),
    silence=_LONG_COMPARISON,
)
UNDO_TURN = Operation(
    name="undo_turn",
    request="POST /turns/{turn}/undo",
    summary="Undo what a turn changed",
    text="Every file that the turn changed is as before it, but for those that somebody else "
    "changed since or meanwhile: they stay, and are named, unless `override` is true. The present "
    "state is kept first, so that the undo can be undone, by its own id. The agent is told with "
    "the session's next message; with `history` `cut` it forgets this turn and those after it in "
    "the session, which stay in the session's history, marked. An undo of such an undo brings the "
    "files back, and not what was forgotten. 409 `history_not_cut` when the agent's history cannot "
    "be cut there; nothing is changed then.",
    tag="changes",
    answer=Undone,
    body=UndoWish,
    body_limit=MEBIBYTE,
    told=("override", "paths", "history"),
    seconds=LONGEST_TRANSFER,
    silence=LONGEST_TRANSFER,
)
_STATE = "A state's number, or a turn's id: the state before it, and after it for `to`."
LIST_CHANGES = Operation(
    name="list_changes",
    request="GET /changes",
    summary="List what changed between two states",
    text="The files that differ between two states of the workspace that are kept.",
    tag="changes",
    answer=Changes,
    query=(
        Parameter("from", f"{_STATE} By default the oldest.", {"type": "string"}),
        Parameter("to", f"{_STATE} By default as it is now.", {"type": "string"}),
    ),
    silence=_LONG_COMPARISON,
)
DIFF_CHANGES = Operation(
    name="diff_changes",
    request="GET /changes/diff",
    summary="Read what changed in a file between two states",
    text="A unified diff of one path of the changes between two states that are kept.",
    tag="changes",
    answer=FileDiff,
    query=(
        *LIST_CHANGES.query,
        _FILE_QUERY,
    ),
    silence=_LONG_COMPARISON,
)

_LONG_GIT = 1900.0
GIT_STATUS = Operation(
    name="git_status",
    request="GET /git",
    summary="Read how the git repository stands",
    text="Its branch, how far it is ahead of and behind what it follows, and how much changed.",
    tag="git",
    answer=GitStatus,
    silence=200,
)
GIT_COMMIT = Operation(
    name="git_commit",
    request="POST /git/commit",
    summary="Commit",
    text="All that changed, new files too, or what `paths` name. Hooks of the repository run, in "
    "the environment. 409 `git_nothing_to_commit`, `git_no_repository`, `git_failed`.",
    tag="git",
    answer=GitCommitted,
    status=201,
    body=GitCommitWish,
    body_limit=MEBIBYTE,
    seconds=_LONG_GIT,
    silence=_LONG_GIT,
)
GIT_FETCH = Operation(
    name="git_fetch",
    request="POST /git/fetch",
    summary="Fetch",
    text="What `origin` has; no file of the workspace changes. The answer is how the repository "
    "stands then. 409 with the cause: `git_denied`, `git_no_remote`, `git_timeout`, ...",
    tag="git",
    answer=GitStatus,
    seconds=_LONG_GIT,
    silence=_LONG_GIT,
)
GIT_PUSH = Operation(
    name="git_push",
    request="POST /git/push",
    summary="Push",
    text="What is checked out, to a branch of `origin`; never by force. A secret of the project's "
    "owner for the host is used where there is one. 409 with the cause: `git_denied`, "
    "`git_rejected`, `git_refused`, `git_timeout`, ...",
    tag="git",
    answer=GitPushed,
    body=GitPushWish,
    told=("branch",),
    seconds=_LONG_GIT,
    silence=_LONG_GIT,
)

OPERATIONS: tuple[Operation[Any], ...] = tuple(
    one for one in globals().values() if isinstance(one, Operation)
)
"""All that the platform relays, in the order in which OpenAPI tells of them."""


@dataclass(frozen=True, slots=True)
class Socket:
    """A WebSocket of agentd's that the platform relays, message by message (`docs/terminal.md`).

    Attributes:
        name: what log lines call it.
        path: as an operation's.
    """

    name: str
    path: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parts of the path that the client gives."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A whole HTTP request on its way to what listens on a port of an environment.

    Attributes:
        method: as the client sent it.
        target: path and query, still percent-encoded.
        headers: those that pass, by lower-case name.
        body: what comes of the body, if there is one.
    """

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: AsyncIterator[bytes] | None = None


@dataclass(frozen=True, slots=True)
class ForwardedAnswer:
    """What was answered, on its way back."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class ForwardedSocket:
    """A WebSocket to such a port past its handshake, as the bytes of its frames.

    Attributes:
        reader: what the application says.
        writer: what is said to it.
        protocol: which of the subprotocols that were offered it chose.
    """

    reader: StreamReader
    writer: StreamWriter
    protocol: str | None


class OpenSocket(Protocol):
    """An open WebSocket, whose messages pass as they are, bytes or text."""

    async def send(self, content: bytes | str) -> None:
        """Send a message; returns when there is room for more. What comes after the other end has
        gone is for nobody: ``receive`` tells of that.
        """

    async def receive(self) -> bytes | str | None:
        """Return the next message, ``None`` when the other end has closed the connection.

        Raises:
            AgentUnreachableError: it broke, or what came is larger than is taken.
        """

    @property
    def close_code(self) -> int | None:
        """Why it was closed (RFC 6455)."""


PREVIEW = "/preview"
"""Below it, by its number, agentd hands on what is asked of a port."""
NOT_FORWARDED = "x-greylag-not-forwarded"
"""A header of agentd's own answer to what it could not hand on."""
FORWARDED_AUTHORIZATION = "x-greylag-forwarded-authorization"
"""The header that carries a preview's Authorization: agentd wants one of its own."""
APART = "x-greylag-apart"
"""A header of a request for a preview whose answer's headers are to come apart from those of what
is between, and of an answer of which they do: an older agentd does not know of it.
"""
SHARED = "x-greylag-shared"
"""A header of a request for a preview that is shared: such ones never have all the places."""
THEIRS = "x-greylag-theirs-"
"""What the names of such headers begin with."""
TERMINAL_SOCKET = Socket("terminal", "/terminals/{terminal}")
COMMAND_SOCKET = Socket("command", "/commands")
SOCKETS = (TERMINAL_SOCKET, COMMAND_SOCKET)
"""Those that a project's own path has."""
