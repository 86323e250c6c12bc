"""Greylag: isolated environments, each with a Goose agent, behind one API."""

__version__ = "0.1.0"
