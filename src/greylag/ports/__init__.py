"""What the use cases need from the world, as Protocols.

Each method says the state before, the state after, and what a second call does. Every adapter of
a port is held to one contract suite (``tests/contract``). Times are aware, in UTC, to the
millisecond.
"""
