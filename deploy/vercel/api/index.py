# ruff: noqa: INP001 - a file of its own, which the host imports by its path
"""Greylag's web on Vercel, whose Python runtime calls ``app`` as an ASGI application."""

import os

# Less than ``maxDuration`` in vercel.json: a stream must end before the function is ended.
os.environ.setdefault("GREYLAG_STREAM_SECONDS", "270")

# The names that Vercel gives this deployment, beside those that the operator names.
_NAMES = ("VERCEL_URL", "VERCEL_BRANCH_URL", "VERCEL_PROJECT_PRODUCTION_URL")
_given = [os.environ.get("GREYLAG_ALLOWED_HOSTS"), *(os.environ.get(name) for name in _NAMES)]
os.environ["GREYLAG_ALLOWED_HOSTS"] = ",".join(name for name in _given if name)

from greylag.serverless import app  # noqa: E402 - the settings above come first

__all__ = ["app"]
