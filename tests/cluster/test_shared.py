"""What all clusters share: the feed of unasked changes, and plain words."""

from hypothesis import given, settings
from hypothesis import strategies as st

from greylag.cluster.shared import ChangeFeed, plain
from greylag.domain.project import ProjectRef

ONE, OTHER = ProjectRef("ada", "one"), ProjectRef("ada", "other")


async def test_a_slow_listener_hears_of_each_project_once_and_every_listener_hears() -> None:
    feed = ChangeFeed()
    slow, other = feed.listen(), feed.listen()
    for _ in range(3):
        feed.tell(ONE)
    feed.tell(OTHER)
    assert [await anext(slow), await anext(slow)] == [ONE, OTHER]
    feed.tell(ONE)
    assert await anext(slow) == ONE
    assert [await anext(other), await anext(other)] == [ONE, OTHER]
    feed.close()
    feed.close()
    assert [ref async for ref in slow] == []
    assert [ref async for ref in other] == []
    assert [ref async for ref in feed.listen()] == []


@settings(deadline=None)
@given(st.text())
def test_plain_text_has_no_character_that_a_terminal_obeys(text: str) -> None:
    assert len(plain(text)) == len(text)
    assert all(char.isprintable() or char == " " or char.isspace() for char in plain(text))
