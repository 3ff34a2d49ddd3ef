"""Threads and loops under hostile use: nothing hangs, nothing is lost, nothing is kept alive."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import stemma as sgl
from stemma.interpreter import background
from stemma.lang.errors import ProgramError

WATCHDOG = 10.0


def slow(seconds: float = 0.1) -> sgl.ScriptedEndpoint:
    def reply(prompt: str, node: Any) -> str:
        time.sleep(seconds)
        return "a"

    return sgl.ScriptedEndpoint(reply)


def within(call: Callable[[], Any]) -> Any:
    """What the call returns or raises, from a thread of its own; an error when it does neither in time."""
    out: list[Any] = []

    def body() -> None:
        try:
            out.append((True, call()))
        except BaseException as error:
            out.append((False, error))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(WATCHDOG)
    assert out, "it hangs"
    good, value = out[0]
    if not good:
        raise value
    return value


@sgl.function
def one(s):
    s += "q" + sgl.gen("x")


@sgl.function
async def waits(s):
    s += "q" + sgl.gen("x")
    return await s["x"]


def test_many_threads_read_one_value():
    state, got = one.run(stream=True, backend=slow()), []
    threads = [threading.Thread(target=lambda: got.append(state["x"])) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert got == ["a"] * 100


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_loop_that_closes_while_it_waits_hurts_nobody_else(cancelled):
    state = one.run(stream=True, backend=slow(0.2))

    async def read() -> None:
        async for _ in state.text_async_iter("x"):
            pass

    loop = asyncio.new_event_loop()
    task = loop.create_task(read())
    loop.run_until_complete(asyncio.sleep(0.02))
    if cancelled:
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
    loop.close()
    assert within(lambda: state["x"]) == "a"


def test_readers_that_gave_up_leave_nothing_behind():
    state = one.run(stream=True, backend=slow(0.5))

    async def poll() -> int:
        for _ in range(50):
            with pytest.raises(TimeoutError):
                async for _ in state.text_async_iter("x", timeout=0.001):
                    pass
        return len(state._run._sleepers)

    assert asyncio.run(poll()) == 0


def test_a_gen_with_a_long_timeout_does_not_keep_its_program_alive():
    @sgl.function
    def timed(s):
        s += sgl.gen("x", timeout=600)

    state = timed.run(backend=slow(0), timeout=600)
    state.sync()
    run = weakref.ref(state._run)
    del state
    for _ in range(50):
        gc.collect()
        if run() is None:
            return
        time.sleep(0.02)  # a worker of the endpoint may still hold the last event
    raise AssertionError("the timer holds the run")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_stops_a_loop_does_not_stop_ours(error):
    @sgl.function
    async def stops(s):
        s += "q" + sgl.gen("x")
        raise error

    for call in (lambda: stops.run(backend=slow(0)), lambda: stops.run_batch([{}] * 3, backend=slow(0))):
        with pytest.raises(error):
            within(call)
        assert within(lambda: waits.run(backend=slow(0)).ret_value) == "a"
    assert background._thread is not None and background._thread.is_alive()


def test_stop_iteration_in_a_body_is_an_error_and_not_silence():
    @sgl.function
    def stops(s):
        next(iter([]))

    with pytest.raises(RuntimeError, match="stops raised StopIteration"):
        within(lambda: asyncio.run(stops.arun(backend=slow(0))))
    with pytest.raises(ProgramError, match=r"item 0 of 1: RuntimeError: .*stops raised StopIteration"):
        within(lambda: stops.run_batch([{}], backend=slow(0)))

    async def streamed() -> Any:
        return await stops.arun(backend=slow(0), stream=True)

    state = asyncio.run(streamed())
    with pytest.raises(ProgramError, match="the program raised: StopIteration"):
        within(state.text)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_body_that_raises_cancelled_error_itself_is_a_failed_item(is_async):
    def body(s: Any) -> None:
        raise asyncio.CancelledError

    async def abody(s: Any) -> None:
        raise asyncio.CancelledError

    program = sgl.function(abody if is_async else body)
    with pytest.raises(ProgramError, match=r"item 0 of 2 .*the body raised asyncio.CancelledError"):
        within(lambda: program.run_batch([{}] * 2, backend=slow(0)))


def test_a_streamed_run_outlives_the_loop_that_began_it_or_says_why_not():
    async def begin(program: Any) -> Any:
        return await program.arun(backend=slow(0.1), stream=True)

    assert within(asyncio.run(begin(one)).text) == "qa"  # its body is in a thread
    with pytest.raises(ProgramError, match="the task that ran the program was cancelled"):
        within(asyncio.run(begin(waits)).text)


def test_bodies_inside_bodies_do_not_wait_for_each_others_threads(monkeypatch):
    monkeypatch.setattr(background, "BODY_THREADS", 4)
    background.bodies.cache_clear()
    gate = threading.Barrier(4)

    @sgl.function
    def outer(s):
        gate.wait(WATCHDOG)  # all threads are taken
        return asyncio.run(one.arun())["x"]

    async def main() -> list[Any]:
        endpoint = slow(0)
        states = await asyncio.gather(*(outer.arun(backend=endpoint) for _ in range(4)))
        return [state.ret_value for state in states]

    try:
        assert within(lambda: asyncio.run(main())) == ["a"] * 4
    finally:
        background.bodies.cache_clear()


def test_programs_and_batches_inside_others():
    @sgl.function
    def sync_batch(s):
        return [state["x"] for state in one.run_batch([{}] * 3)]

    @sgl.function
    async def async_batch(s):
        return [state["x"] for state in await one.abatch([{}] * 3)] + [(await waits.arun()).ret_value]

    for program, count in ((sync_batch, 3), (async_batch, 4)):
        states = within(lambda program=program: program.run_batch([{}] * 70, backend=slow(0)))
        assert [state.ret_value for state in states] == [["a"] * count] * 70

    async def main() -> list[Any]:
        endpoint = slow(0)
        states = await asyncio.gather(*(sync_batch.arun(backend=endpoint) for _ in range(10)))
        return [state.ret_value for state in states]

    assert within(lambda: asyncio.run(main())) == [["a"] * 3] * 10


@pytest.mark.parametrize("how", ["join", "race", "first"])
def test_cancelling_from_outside_ends_a_program_that_waits_for_forks(how):
    @sgl.function
    def program(s):
        forks = s.fork(3)
        forks += sgl.gen("x")
        if how == "join":
            forks.join()
            return s["x"]
        return forks.race() if how == "race" else forks.first(2)

    state = program.run(stream=True, backend=slow(0.5))
    time.sleep(0.05)
    state.cancel()
    with pytest.raises(ProgramError, match="the program was cancelled"):
        within(lambda: state.ret_value)


def test_what_when_raises_reaches_the_program():
    @sgl.function
    def sync(s):
        forks = s.fork(3)
        forks += sgl.gen("x")
        forks.first(1, when=lambda fork: 1 / 0)

    @sgl.function
    async def async_(s):
        forks = s.fork(3)
        forks += sgl.gen("x")
        await forks.first(1, when=lambda fork: 1 / 0)

    for program in (sync, async_):
        with pytest.raises(ZeroDivisionError):
            within(lambda program=program: program.run(backend=slow(0)))


def test_an_endpoint_that_cannot_cancel_does_not_keep_a_batch_from_closing():
    class Stubborn(sgl.ScriptedEndpoint):
        def cancel(self, program: str, branches: Any = None) -> None:
            raise OSError("cannot cancel")

    batch = one.run_batch(
        [{}] * 8, num_threads=4, generator_style=True, backend=Stubborn(lambda p, n: time.sleep(0.05) or "a")
    )
    next(batch)
    with pytest.raises(OSError, match="cannot cancel"):
        within(batch.close)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stemma-batch") and _later(thread)]


def _later(thread: threading.Thread) -> bool:
    thread.join(2.0)
    return thread.is_alive()
