"""The use cases: they check who asks, write what is wanted, wait, and relay streams."""
