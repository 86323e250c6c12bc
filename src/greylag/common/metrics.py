"""The numbers that an operator watches by Prometheus: each is declared here, and counted where what
it counts goes on.

None names a user, a project or an address, and each label has few values: whoever may ask for them
learns nothing else. Where they are told: ``greylag.web.metrics``.
"""

from prometheus_client import Counter, Gauge, Histogram

from greylag import __version__

Gauge("greylag_info", "1, by the version of this program.", ["version"]).labels(__version__).set(1)
REQUESTS = Histogram(
    "greylag_request_seconds",
    "From a request until its answer began, by the route's template.",
    ["method", "route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
IN_PROGRESS = Gauge(
    "greylag_requests_in_progress",
    "Requests that are being answered now; streams and WebSockets are among them.",
)
PASSES = Counter(
    "greylag_reconcile_passes",
    "How often a project was brought to where it rests, by its status and its error's code then.",
    ["status", "error"],
)
ACTIVATIONS = Histogram(
    "greylag_activation_seconds",
    "From the wish for an environment until its agent was ready.",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
)
PROJECTS = Gauge("greylag_projects", "Projects, by status.", ["status"])
OVERDUE = Gauge(
    "greylag_overdue_seconds",
    "For how long the project that has waited longest for a worker has been due; 0: none waits.",
)
STORE_UP = Gauge("greylag_store_up", "1 when the store could be read and written, else 0.")
