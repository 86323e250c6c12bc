"""Which headers pass from one connection to another."""

from greylag.common.forwarding import end_to_end


def test_what_is_about_one_connection_or_malformed_does_not_pass() -> None:
    given = [
        (b"Connection", b"close, X-Hop"),
        (b"x-hop", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"te", b"trailers"),
        (b"keep-alive", b"timeout=5"),
        (b"bare", b"a\rset-cookie: b"),
        (b"nul", b"a\0"),
        (b"name with: colon", b"x"),
        (b"", b"x"),
        (b"secret", b"x"),
        (b"X-Twice", b"1"),
        (b"x-twice", b"\xff\t"),
    ]
    assert end_to_end(given, b"secret") == [(b"x-twice", b"1"), (b"x-twice", b"\xff\t")]
