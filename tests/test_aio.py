"""Calls from an event loop: the same results, at the same time, ended by whoever asked."""

from __future__ import annotations

import asyncio
import time

import pytest
from test_generate import MODEL

import bitnet
from bitnet.errors import UsageError
from bitnet.runtime import CONTEXTS

PROMPTS = ("One day Anna", "The cat", "Tom was", "Once upon", "A boat", "Zoe saw")
SETTINGS = {"max_new_tokens": 12, "ignore_eos": True}
ENDLESS = {"max_new_tokens": 450, "ignore_eos": True}


@pytest.fixture(scope="module")
def model():
    with bitnet.load(MODEL, n_threads=1) as loaded:
        yield loaded


def passes(model):
    return model.network.backend.ledger.passes


async def idle(model):
    """Until no call is in progress."""
    end = time.monotonic() + 60
    while model.cache_stats.sequences:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_the_same_as_without_a_loop(model):
    async def main():
        whole = await model.agenerate("The cat", **SETTINGS)
        pieces = [piece async for piece in model.astream("The cat", **SETTINGS)]
        return whole, pieces

    whole, pieces = asyncio.run(main())
    expected = model.generate("The cat", **SETTINGS)
    assert (whole.text, whole.ids) == (expected.text, expected.ids)
    assert "".join(pieces) == expected.text
    assert len(pieces) > 3
    assert whole.text != model.generate("Tom was", **SETTINGS).text


def test_many_at_once_are_each_as_if_alone(model):
    prompts = PROMPTS * 3
    assert len(prompts) > CONTEXTS

    async def stream(prompt):
        return "".join([piece async for piece in model.astream(prompt, **SETTINGS)])

    async def main():
        calls = [model.agenerate(prompt, **SETTINGS) for prompt in prompts]
        whole, streamed = await asyncio.gather(asyncio.gather(*calls), asyncio.gather(*map(stream, PROMPTS)))
        return whole, streamed

    whole, streamed = asyncio.run(main())
    expected = [model.generate(prompt, **SETTINGS).text for prompt in PROMPTS]
    assert [g.text for g in whole] == expected * 3
    assert streamed == expected
    assert model.cache_stats.sequences == 0


def test_the_loop_stays_awake(model):
    async def main():
        call, ticks = asyncio.ensure_future(model.agenerate("The cat", **ENDLESS)), 0
        while not call.done():
            ticks += 1
            await asyncio.sleep(0.002)
        return ticks

    assert asyncio.run(main()) > 10


def test_a_cancelled_call_stops_after_the_token_in_progress(model):
    async def main():
        call = asyncio.ensure_future(model.agenerate("The cat", **ENDLESS))
        begun = passes(model)
        while passes(model) < begun + 5:
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        at = passes(model)
        await idle(model)
        return passes(model) - at, passes(model) - begun

    after, whole = asyncio.run(main())
    assert after <= 2  # the one in progress, and one between the flag and the look at it
    assert whole < 400


def test_a_call_that_waits_is_cancelled_before_it_begins(model):
    async def main():
        running = [asyncio.ensure_future(model.agenerate("The cat", **ENDLESS)) for _ in range(CONTEXTS)]
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(model.agenerate("Tom was", **ENDLESS))
        await asyncio.sleep(0.01)
        for call in (waiting, *running):
            call.cancel()
        results = await asyncio.gather(waiting, *running, return_exceptions=True)
        await idle(model)
        return results

    assert all(isinstance(result, asyncio.CancelledError) for result in asyncio.run(main()))


def test_a_cancelled_stream_gives_its_cache_back(model):
    async def read(seen):
        async for piece in model.astream("The cat", **ENDLESS):
            seen.append(piece)

    async def main():
        seen = []
        task = asyncio.ensure_future(read(seen))
        while len(seen) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        at = passes(model)
        await idle(model)
        return passes(model) - at

    assert asyncio.run(main()) <= 1


def test_a_reader_who_leaves_stops_it_at_once(model):
    async def main():
        stream = model.astream("The cat", **ENDLESS)
        async for _ in stream:
            break
        at = passes(model)
        await stream.aclose()
        return passes(model) - at, model.cache_stats.sequences

    assert asyncio.run(main()) == (0, 0)


def test_a_timeout(model):
    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.agenerate("The cat", **ENDLESS), 0.05)
        await idle(model)

    asyncio.run(main())


def test_errors_come_through(model):
    async def main():
        with pytest.raises(UsageError, match="temperature"):
            await model.agenerate("The cat", temperature=-1)
        with pytest.raises(UsageError, match="outside the vocabulary"):
            async for _ in model.astream([10**6]):
                pass

    asyncio.run(main())
