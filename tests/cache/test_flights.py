"""Single flight: who asks, who waits, and that nobody waits for somebody who has left."""

import asyncio
import threading

from cache.flights import Flight, Flights
from cache.key import Answer
from tests.cache.made_keys import make_answer


def test_the_first_one_leads_and_the_others_get_its_answer() -> None:
    flights = Flights()
    with flights.join(b"a") as leader, flights.join(b"a") as follower, flights.join(b"b") as other:
        assert [flight.is_leader for flight in (leader, follower, other)] == [True, False, True]
        flights.check_integrity()
        leader.finish(make_answer())
        assert follower.future.result(timeout=0) == make_answer()


def test_a_leader_that_leaves_without_an_answer_lets_the_others_join_again() -> None:
    flights = Flights()
    with flights.join(b"a"):
        follower = flights.join(b"a")
    assert follower.future.result(timeout=0) is None
    with flights.join(b"a") as next_leader:
        assert next_leader.is_leader
    flights.check_integrity()


def test_a_follower_that_cancels_takes_nothing_from_the_others() -> None:
    flights = Flights()
    with flights.join(b"a") as leader:
        impatient, patient = flights.join(b"a"), flights.join(b"a")
        assert impatient.future.cancel()
        leader.finish(make_answer())
    assert patient.future.result(timeout=0) == make_answer()


def test_finishing_twice_or_late_disturbs_no_later_flight() -> None:
    flights = Flights()
    early = flights.join(b"a")
    early.finish(make_answer())
    with flights.join(b"a") as later:
        early.finish(make_answer("late"))
        follower = flights.join(b"a")
        assert later.is_leader
        assert not follower.is_leader
        assert not follower.future.done()


def test_an_event_loop_can_wait() -> None:
    flights = Flights()

    async def follow(flight: Flight) -> Answer | None:
        return await asyncio.wrap_future(flight.future)

    async def fly() -> Answer | None:
        with flights.join(b"a") as leader:
            waiting = asyncio.create_task(follow(flights.join(b"a")))
            given_up = asyncio.create_task(follow(flights.join(b"a")))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.sleep(0)
            threading.Thread(target=leader.finish, args=(make_answer(),)).start()
            return await waiting

    assert asyncio.run(fly()) == make_answer()
