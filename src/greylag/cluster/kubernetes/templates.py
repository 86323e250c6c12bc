"""Templates: named shapes of environment that an operator offers and a project picks from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from greylag.domain.errors import ClusterError
from greylag.domain.project import Project

DEFAULT_TEMPLATE = "default"
"""What a project without a choice gets; settings may say what it is."""

TEMPLATE_KEY = "template"
"""The key of a project's metadata that names its template."""


@dataclass(frozen=True, slots=True)
class Template:
    """One shape. Quantities are as Kubernetes writes them (``250m``, ``1Gi``).

    ``image`` and ``volume_size`` are ``None`` where those of the options hold; ``environment`` are
    further environment variables of agentd.
    """

    image: str | None = None
    cpu_request: str = "250m"
    memory_request: str = "512Mi"
    cpu_limit: str = "500m"
    memory_limit: str = "1Gi"
    volume_size: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def chosen(project: Project, templates: Mapping[str, Template]) -> Template:
    """Return the template that ``project`` picked by ``metadata.template``.

    Raises:
        ClusterError: there is none of this name (``template_not_found``, terminal).
    """
    name = project.metadata.get(TEMPLATE_KEY, DEFAULT_TEMPLATE)
    if isinstance(name, str) and name in templates:
        return templates[name]
    if name == DEFAULT_TEMPLATE:
        return Template()
    known = ", ".join(sorted({DEFAULT_TEMPLATE, *templates}))
    raise ClusterError(
        f"The project asks for the template {name!r}, which does not exist.",
        code="template_not_found",
        hint=f"Set metadata.template to one of: {known}.",
        terminal=True,
    )
