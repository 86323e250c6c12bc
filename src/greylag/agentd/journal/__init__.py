"""Journals: what happened in each turn, as the frames that readers get."""
