"""All use cases in one object, as the web is given them, and what this installation is."""

from dataclasses import dataclass

from greylag.ports import ProjectStore
from greylag.services.access import Gate
from greylag.services.accounts import Accounts, AuditReader
from greylag.services.activity import Activities
from greylag.services.agents import Agents
from greylag.services.audit import Audit
from greylag.services.notifications import Notifications
from greylag.services.people import People
from greylag.services.projects import Projects
from greylag.services.secrets import Secrets
from greylag.services.sharing import Members, Shares
from greylag.services.sign_in import SignIn
from greylag.services.tokens import DeviceLogins, Tokens

DEMONSTRATION = (
    "This is a demonstration: no model provider is set, so a built-in script answers. Set"
    " GREYLAG_MODEL_URL, GREYLAG_MODEL_KEY and GREYLAG_MODEL, and activate the project again."
)
OPEN_TO_ALL = (
    "Nobody has to sign in (GREYLAG_AUTH=none): every program and every user of this machine, the"
    " agents too, can do all that you can."
)


@dataclass(slots=True)
class ModelInUse:
    """Which model provider environments are given.

    Attributes:
        provider: its host.
        problem: what is wrong with its address or key, as far as the start has shown by now.
    """

    provider: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Platform:
    """What this installation is, for pages, clients and ``greylag doctor``.

    ``notice`` and ``demonstration`` are sentences that every user must see, or ``None``.
    ``model`` is ``None`` where a script plays it.
    """

    version: str
    cluster: str
    store: str
    notice: str | None
    demonstration: str | None
    model: ModelInUse | None = None


@dataclass(frozen=True, slots=True)
class UseCases:
    """What a web or another front may ask of Greylag.

    ``sign_in`` is ``None`` where nobody signs in by an identity provider.
    """

    projects: Projects
    agents: Agents
    activities: Activities
    platform: Platform
    store: ProjectStore
    people: People
    accounts: Accounts
    gate: Gate
    members: Members
    tokens: Tokens
    audit_reader: AuditReader
    device_logins: DeviceLogins
    shares: Shares
    secrets: Secrets
    notifications: Notifications
    sign_in: SignIn | None = None

    @property
    def audit(self) -> Audit:
        """What the audit trail is told by."""
        return self.gate.audit

    async def close(self) -> None:
        """Tell the audit trail what was counted, and hear of no agent any more."""
        await self.audit.flush()
        await self.activities.close()
