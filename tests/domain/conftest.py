"""How Hypothesis runs here: a busy machine may be slow, which proves nothing about the code."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
