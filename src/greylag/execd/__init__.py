"""The untrusted side of an environment: it runs the agent, its tools and commands.

Only Python's own library is used here, so that any image with Python 3.11 can be this side.
"""
