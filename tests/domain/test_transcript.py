"""What is kept of a turn is told again as it was, some of it at a time."""

from greylag.domain.transcript import pack_events, unpack_events

FRAMES = [f"id: x-{number}\ndata: {'word ' * 1000}\n\n".encode() for number in range(200)]


def test_events_come_as_runs_of_whole_frames_however_many_there_are() -> None:
    runs = list(unpack_events(pack_events(b"".join(FRAMES))))
    assert b"".join(runs) == b"".join(FRAMES)
    assert all(run.startswith(b"id: ") and run.endswith(b"\n\n") for run in runs)
    assert max(map(len, runs)) <= 64 * 1024 + len(FRAMES[-1])


def test_of_a_part_that_was_cut_off_whole_frames_alone_are_told() -> None:
    whole = b"".join(FRAMES)
    part = pack_events(whole)
    for kept in range(0, len(part), 97):
        told = b"".join(unpack_events(part[:kept]))
        assert whole.startswith(told)
        assert told.endswith(b"\n\n") or not told
