"""Making environments match what the store says: the loop, one pass, the worker around them."""
