"""What nobody uses, through the whole product."""

from pathlib import Path

from tests.e2e.product import product, text_of


async def test_an_environment_that_nobody_uses_falls_asleep_and_the_next_message_wakes_it(
    tmp_path: Path,
) -> None:
    # Longer than any step of the test takes on a busy machine.
    often = {"GREYLAG_IDLE_HOURS": "0.002", "GREYLAG_RESYNC_SECONDS": "1"}
    async with product(tmp_path, GREYLAG_GOOSE="scripted", **often) as up:
        path = await up.project("demo", active=False)
        assert text_of(await up.say(path, "hello"))
        told = [one.content["code"] for one in await up.log(path, "unused")]
        assert told.count("active") == 1
        await up.until(path, status="inactive")
        assert text_of(await up.say(path, "hello again"))
