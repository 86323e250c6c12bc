"""The bodies of model calls are bounded together, and none waits for ever."""

from contextlib import ExitStack

from greylag.agentd.model.bodies import Bodies


def test_one_at_a_time_goes_beyond_what_may_be_held_until_it_has_been_sent() -> None:
    bodies = Bodies(10)
    with ExitStack() as calls:
        first, second, third = (calls.enter_context(bodies.begun()) for _ in range(3))
        for body in (second, first):
            assert bodies.may_hold(body, 5)
            body.add(b"x" * 5)
        assert [bodies.may_hold(one, 10) for one in (third, second, first)] == [False, False, True]
        first.add(b"x" * 10)
        first.finish()
        # It is held still: whoever reads for longest now has to wait for it.
        assert not bodies.may_hold(second, 1)
        first.drop()
        assert bodies.may_hold(second, 5)
        second.add(b"x" * 5)
        assert [bodies.may_hold(one, 1) for one in (third, second)] == [False, True]
    assert bodies.held == 0
