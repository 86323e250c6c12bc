"""What a relay passes on, and whose request it was."""

from multidict import CIMultiDict
from starlette.datastructures import Headers

from greylag.common.net import HOP_BY_HOP, end_to_end, request_id_of


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
