"""What nobody uses, through the whole product."""

from pathlib import Path

from tests.e2e.product import product, text_of


async def test_an_environment_that_nobody_uses_falls_asleep_and_the_next_message_wakes_it(
    tmp_path: Path,
) -> None:
    often = {"GREYLAG_IDLE_HOURS": "0.0005", "GREYLAG_RESYNC_SECONDS": "1"}
    async with product(tmp_path, GREYLAG_GOOSE="scripted", **often) as up:
        path = await up.project("demo")
        told = await up.log(path, "inactive", after="2")
        assert [one.content["code"] for one in told][-3:] == ["unused", "stopping", "inactive"]
        assert text_of(await up.say(path, "hello")) != ""
