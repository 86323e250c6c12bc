"""The web: the JSON API, the relay of streams, sign-in, and what keeps them safe."""
