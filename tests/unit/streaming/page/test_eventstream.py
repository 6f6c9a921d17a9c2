"""What open tabs are told: bounded, alive, and ended with the page."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from streaming.page.eventstream import EventStreams


def read(event: bytes) -> Any:
    return json.loads(event.split(b"data: ", 1)[1])


class Maker:
    """Counts how often a message was made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, Any]:
        self.made += 1
        return {"turn": self.made}


async def begin(streams: EventStreams) -> AsyncIterator[bytes]:
    tab = streams.follow()
    assert (await anext(tab)).startswith(b"retry:")
    return tab


def test_ten_tabs_cost_one_message_a_turn() -> None:
    async def run() -> None:
        make = Maker()
        streams = EventStreams(make, max_tabs=10, turn_s=30)
        tabs = [await begin(streams) for _ in range(10)]
        assert [read(await anext(tab)) for tab in tabs] == [{"turn": 1}] * 10
        assert make.made == 1
        streams.end()

    asyncio.run(run())


def test_a_tab_too_many_is_refused() -> None:
    async def run() -> None:
        streams = EventStreams(Maker(), max_tabs=1, turn_s=30)
        tab = await begin(streams)
        assert streams.is_full
        assert [event async for event in streams.follow()] == []
        await tab.aclose()  # type: ignore[attr-defined]
        assert not streams.is_full
        streams.end()

    asyncio.run(run())


def test_a_tab_that_is_not_let_in_any_more_is_told_nothing_more() -> None:
    async def run() -> None:
        streams = EventStreams(Maker(), max_tabs=1, turn_s=0.01)
        let_in = [True, True, False]
        tab = streams.follow(lambda: let_in.pop(0))
        events = [event async for event in tab]
        assert [read(event) for event in events[1:]] == [{"turn": 1}]
        assert streams.tabs == 0
        streams.end()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_slow_tab_gets_the_newest_message_and_no_other() -> None:
    async def run() -> None:
        streams = EventStreams(Maker(), max_tabs=2, turn_s=0.01)
        slow, quick = await begin(streams), await begin(streams)
        await anext(slow)
        for _ in range(5):
            newest = read(await anext(quick))["turn"]
        assert read(await anext(slow))["turn"] >= newest
        streams.end()

    asyncio.run(run())


def test_nothing_is_made_while_nobody_looks_on() -> None:
    async def run() -> None:
        make = Maker()
        streams = EventStreams(make, max_tabs=2, turn_s=0.01)
        tab = await begin(streams)
        await anext(tab)
        await tab.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        made = make.made
        await asyncio.sleep(0.1)
        assert make.made == made
        # And whoever comes back is not shown what was new then.
        again = await begin(streams)
        assert read(await anext(again))["turn"] > made
        streams.end()

    asyncio.run(run())


def test_a_silent_stream_has_a_heartbeat() -> None:
    async def run() -> None:
        streams = EventStreams(Maker(), max_tabs=1, turn_s=30, heartbeat_s=0.01)
        tab = await begin(streams)
        await anext(tab)
        assert await anext(tab) == b": \n\n"
        streams.end()

    asyncio.run(run())


def test_the_end_of_the_page_ends_every_stream() -> None:
    async def run() -> None:
        streams = EventStreams(Maker(), max_tabs=2, turn_s=30)
        tab = await begin(streams)
        await anext(tab)
        rest = asyncio.create_task(collect(tab))
        await asyncio.sleep(0)
        streams.end()
        assert await asyncio.wait_for(rest, 5) == []
        assert streams.tabs == 0

    asyncio.run(run())


def test_a_message_that_cannot_be_made_ends_no_stream() -> None:
    async def run() -> None:
        make = Maker()

        def fail_once() -> dict[str, Any]:
            if make()["turn"] == 1:
                msg = "no broker"
                raise RuntimeError(msg)
            return make()

        streams = EventStreams(fail_once, max_tabs=1, turn_s=0.01)
        tab = await begin(streams)
        assert read(await anext(tab))["turn"] > 1
        streams.end()

    asyncio.run(run())


async def collect(tab: AsyncIterator[bytes]) -> list[bytes]:
    return [event async for event in tab]
