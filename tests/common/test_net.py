"""What a relay passes on, and whose request it was."""

import pytest
from multidict import CIMultiDict
from starlette.datastructures import Headers

from greylag.common.net import (
    HOP_BY_HOP,
    Proxy,
    below,
    end_to_end,
    is_confidential,
    network_of,
    proxy_for,
    proxy_variables,
    request_id_of,
    retry_after,
)


def test_a_repeated_header_is_passed_on_as_often_as_it_came() -> None:
    came = CIMultiDict([("Set-Cookie", "a=1"), ("set-cookie", "b=2"), ("Accept", "*/*")])
    assert end_to_end(came) == [("Set-Cookie", "a=1"), ("set-cookie", "b=2"), ("Accept", "*/*")]


def test_what_is_about_one_connection_is_not_passed_on_however_it_is_written() -> None:
    came = CIMultiDict([(name.title(), "x") for name in HOP_BY_HOP] + [("Host", "h")])
    assert end_to_end(came) == [("Host", "h")]
    assert end_to_end(came, without={"host"}) == []


def test_what_any_connection_header_names_is_not_passed_on() -> None:
    came = [("Connection", "keep-alive, X-First"), ("connection", "x-second"), ("X-Other", "kept")]
    marked = [("x-first", "1"), ("X-Second", "2")]
    assert end_to_end(CIMultiDict(came + marked)) == [("X-Other", "kept")]
    raw = [(name.lower().encode(), value.encode()) for name, value in came + marked]
    assert end_to_end(Headers(raw=raw)) == [("x-other", "kept")]
    assert end_to_end({"connection": "x-first", "x-first": "1"}) == []


def test_a_request_keeps_its_harmless_id_and_gets_one_in_the_place_of_another() -> None:
    assert request_id_of([(b"x-other", b"1"), (b"x-request-id", b"r.1:2-3_4")]) == "r.1:2-3_4"
    for harmful in (b"", b"two words", b"line\n", b"x" * 129, "ä".encode()):
        made = request_id_of([(b"x-request-id", harmful)])
        assert len(made) == 32
        assert made != request_id_of([(b"x-request-id", harmful)])


@pytest.mark.parametrize(
    ("path", "told"), [("/base/x", "/x"), ("/base", "/"), ("/based", "/based"), ("/x", "/x")]
)
def test_a_prefix_is_taken_off_whole_names_alone(path: str, told: str) -> None:
    assert below({"path": path}, "/base")["path"] == told


@pytest.mark.parametrize(
    ("address", "confidential"),
    [
        ("https://x.example", True),
        ("http://localhost:1", True),
        ("http://[::1]", True),
        ("http://x.example", False),
        ("ftp://localhost", False),
        ("https://", False),
        ("https://x.example:many", False),
    ],
)
def test_what_goes_by_tls_or_stays_on_this_machine_is_read_by_nobody(
    address: str,
    confidential: bool,  # noqa: FBT001 - of the table
) -> None:
    assert is_confidential(address) == confidential


@pytest.mark.parametrize(
    ("url", "excepted", "straight"),
    [
        ("https://api.test/v1", "", False),
        ("https://api.test/v1", "*", True),
        ("https://api.test/v1", "other.test, API.test", True),
        ("https://api.test/v1", "test", True),
        ("https://api.test/v1", ".test", True),
        ("https://api.test/v1", "*.test", True),
        ("https://notapi.test/v1", "api.test", False),
        ("https://api.test/v1", "api.test:443", True),
        ("https://api.test/v1", "api.test:8443", False),
        ("https://api.test:8443/v1", ".test:8443", True),
        ("https://10.1.2.3/v1", "10.0.0.0/8", True),
        ("https://10.1.2.3/v1", "10.1.2.3", True),
        ("https://10.1.2.3/v1", "10.1.2.3:443", True),
        ("https://11.1.2.3/v1", "10.0.0.0/8,::/0", False),
        ("https://[fd00::1]/v1", "fd00::/8", True),
        ("https://[fd00::1]/v1", "[fd00::1]:443", True),
        ("https://[fd00::1]/v1", "fd00::2", False),
    ],
)
def test_no_proxy_knows_names_suffixes_ports_and_ranges(
    url: str, excepted: str, *, straight: bool
) -> None:
    variables = {"HTTPS_PROXY": "http://p.test:3128", "NO_PROXY": excepted}
    assert (proxy_for(url, variables) is None) is straight


def test_a_proxy_is_found_by_scheme_then_for_all_and_never_shows_its_password() -> None:
    given = {"https_proxy": "http://a:b%40c@p.test:3128", "HTTPS_PROXY": "x", "ALL_PROXY": "q.test"}
    found = proxy_variables(given)
    proxy = proxy_for("https://h.test", found)
    assert proxy == Proxy("http://p.test:3128", "a", "b@c")
    assert "b@c" not in repr(proxy)
    assert proxy_for("http://h.test", found) == Proxy("http://q.test")
    with pytest.raises(ValueError, match="must be an http or https address"):
        proxy_for("http://h.test", {"ALL_PROXY": "socks5://p.test:1"})


@pytest.mark.parametrize(
    "address",
    [
        "http://ann:hunter2#1@p.test:3128",
        "http://ann:hunter2/1@p.test:3128",
        "http://ann:1234?hunter2@p.test:3128",
        "http://ann:1234/hunter2@p.test:3128",
        "http://ann:hunter2\u2105@p.test:3128",
        "http://ann:hunter2@[p.test",
    ],
)
def test_a_proxys_password_with_signs_in_it_is_asked_for_encoded_and_not_repeated(
    address: str,
) -> None:
    with pytest.raises(ValueError, match="percent-encoded") as refused:
        Proxy.parse(address)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__context__ is None  # its words would hold it


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("2", 2),
        ("0.5", 0.5),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("-3", 0),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 1970 00:00:00 +99999999999999", None),
        ("Thu, 01 Jan 99999999999 00:00:00 GMT", None),
    ],
)
def test_a_retry_after_may_be_whole_a_fraction_or_a_date(asked: str, seconds: float | None) -> None:
    assert retry_after(asked, "Thu, 01 Jan 1970 00:16:40 GMT") == seconds


def test_a_retry_after_counts_by_our_clock_where_the_other_tells_none_that_is_good() -> None:
    for date in ("", "soon", "Thu, 01 Jan 1970 00:00:00 +99999999999999"):
        assert retry_after("Fri, 01 Jan 2100 00:00:00 GMT", date)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.0.0.0/112", "10.0.0.0/16"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("::ffff:0:0/95", None),
        ("2001:db8::/112", "2001:db8::/112"),
    ],
)
def test_a_network_of_ipv4_is_one_however_it_is_written(written: str, meant: str | None) -> None:
    if meant is None:
        with pytest.raises(ValueError, match="host bits"):
            network_of(written)
    else:
        assert str(network_of(written)) == meant
