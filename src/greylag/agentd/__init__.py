"""The Goose API server that runs inside an environment.

It drives the agent (goose, over ACP), keeps a journal of every turn, and serves it over HTTP.
"""
