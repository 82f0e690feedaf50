"""The editor plugins' cache: what it answers itself, what it forgets, and that it is what the plugins do."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.dialects import Query, Reply
from loadtest.llama_infill import LINES_ABOVE, place_of
from loadtest.plugin_cache import MAX_KEYS, MAX_TYPED_CHARS, SOURCE, PluginCache
from tests.loadtest.timed_dialect import Answer, TimedDialect
from tests.loadtest.virtual_time import run_virtual


def ask(cache: PluginCache, before: str, after: str = "", **values: object) -> tuple[Reply, list[str]]:
    shown: list[str] = []
    query = Query(before=before, after=after, session_id=str(values.pop("session_id", "s")), **values)  # type: ignore[arg-type]
    return run_virtual(cache.complete(query, deadline_s=1.0, on_text=shown.append)), shown


def cache_of(*texts: str, reply: Reply | None = None) -> tuple[PluginCache, TimedDialect]:
    """Return a cache in front of a dialect that gives one text after the other, then the last one again."""
    left = list(texts)

    def answer(_: Query) -> Answer:
        text = left.pop(0) if len(left) > 1 else left[0]
        return Answer([(0.0, text)] if text else [], reply or Reply(source="model"))

    dialect = TimedDialect(answer)
    return PluginCache(dialect), dialect


def test_the_same_place_is_asked_for_once() -> None:
    cache, dialect = cache_of("text")
    first, _ = ask(cache, "a", "b")
    again, shown = ask(cache, "a", "b")
    assert (first.source, first.is_from_model) == ("model", True)
    assert (again.text, again.source, again.is_from_model, shown) == ("text", SOURCE, False, ["text"])
    assert again.first_text_s is not None
    assert again.num_computed_tokens == 0
    assert len(dialect.asked) == 1


@pytest.mark.parametrize(("before", "after"), [("a2", "b"), ("a", "b2"), ("", "b"), ("x\na", "b")])
def test_another_place_is_asked_for_itself(before: str, after: str) -> None:
    cache, dialect = cache_of("text")
    ask(cache, "a", "b")
    assert ask(cache, before, after)[0].source == "model"
    assert len(dialect.asked) == 2


def test_typing_what_was_suggested_is_answered_with_the_rest() -> None:
    cache, dialect = cache_of("def", reply=Reply(source="model", is_cut_short=True))
    ask(cache, "abc", "after")
    reply, shown = ask(cache, "abcde", "after")
    assert (reply.text, reply.source, reply.is_cut_short, shown) == ("f", SOURCE, True, ["f"])
    assert len(dialect.asked) == 1


@pytest.mark.parametrize("before", ["abcX", "abcdX", "abcdef"])  # another key, one later, and all of it typed
def test_typing_anything_else_asks(before: str) -> None:
    cache, dialect = cache_of("def")
    ask(cache, "abc")
    assert ask(cache, before)[0].source == "model"
    assert len(dialect.asked) == 2


def test_the_longest_rest_wins() -> None:
    cache, _ = cache_of("bcd", "Zzzzz", "cdefgh")
    ask(cache, "a")
    ask(cache, "aq")
    ask(cache, "ab", is_fresh=True)  # not kept
    assert ask(cache, "ab")[0].text == "cd"
    cache, _ = cache_of("bcX", "cdefgh")
    ask(cache, "a")
    ask(cache, "abcd")  # nothing fits
    assert ask(cache, "abcdcd")[0].text == "efgh"


def test_looking_back_ends_after_so_many_characters() -> None:
    text = "x" * (MAX_TYPED_CHARS + 5)
    cache, _ = cache_of(text)
    ask(cache, "a")
    assert ask(cache, "a" + text[:MAX_TYPED_CHARS])[0].text == "x" * 5
    assert ask(cache, "a" + text[: MAX_TYPED_CHARS + 1])[0].source == "model"


def test_an_empty_answer_is_kept_but_not_looked_back_for() -> None:
    cache, _ = cache_of("")
    ask(cache, "a")
    reply, shown = ask(cache, "a")
    assert (reply.source, reply.text, reply.first_text_s, shown) == (SOURCE, "", None, [])
    assert ask(cache, "ab")[0].source == "model"


def test_a_window_that_moved_down_three_lines_is_found_and_four_are_not() -> None:
    lines = [f"line {number}\n" for number in range(LINES_ABOVE + 5)]
    cache, _ = cache_of("typed\n" * 4 + "rest")
    ask(cache, "".join(lines[:LINES_ABOVE]))
    for num_typed, source in ((1, SOURCE), (3, SOURCE), (4, "model")):
        before = "".join(lines[:LINES_ABOVE]) + "typed\n" * num_typed
        assert ask(cache, before)[0].source == source


def test_failed_and_cancelled_answers_are_not_kept() -> None:
    cache, dialect = cache_of("par", reply=Reply(error="full", error_kind="busy"))
    assert ask(cache, "a")[0].error == "full"
    assert ask(cache, "a")[0].error == "full"
    assert len(dialect.asked) == 2


def test_sessions_have_caches_of_their_own() -> None:
    cache, _ = cache_of("text")
    ask(cache, "a", session_id="one")
    assert ask(cache, "a", session_id="other")[0].source == "model"


def test_a_fresh_query_goes_to_the_server() -> None:
    cache, _ = cache_of("text")
    ask(cache, "a")
    assert ask(cache, "a", is_fresh=True)[0].source == "model"


def test_the_least_recently_used_answer_goes_first() -> None:
    cache, _ = cache_of("text")
    for number in range(MAX_KEYS):
        ask(cache, f"place {number}")
    assert ask(cache, "place 0")[0].source == SOURCE
    ask(cache, "one more")
    assert ask(cache, "place 0")[0].source == SOURCE
    assert ask(cache, "place 1")[0].source == "model"


class NaivePlugin:
    """The plugins' cache as they write it: a table of hashed texts, and one look-up for each character back."""

    def __init__(self) -> None:
        self.table: OrderedDict[str, str] = OrderedDict()

    def find(self, before: str, after: str) -> str | None:
        if (found := self.table.get(f"{before}\0{after}")) is not None:
            self.table.move_to_end(f"{before}\0{after}")
            return found
        best, best_key = "", ""
        for num_typed in range(1, MAX_TYPED_CHARS + 1):
            if num_typed > len(before):
                break
            key = f"{before[:-num_typed]}\0{after}"
            text = self.table.get(key, "")
            rest = text[num_typed:]
            if text[:num_typed] == before[-num_typed:] and len(rest) > len(best):
                best, best_key = rest, key
        if best:
            self.table.move_to_end(best_key)
        return best or None

    def store(self, before: str, after: str, text: str) -> None:
        for _ in range(4):
            self.table[f"{before}\0{after}"] = text
            self.table.move_to_end(f"{before}\0{after}")
            if "\n" not in before:
                break
            before = before[before.index("\n") + 1 :]
        while len(self.table) > MAX_KEYS:
            self.table.popitem(last=False)


small = st.text(alphabet="ab\n", max_size=6)


@given(st.lists(st.tuples(small, st.sampled_from(["", "x"]), small), max_size=120))
def test_it_answers_as_the_plugins_do(asked: list[tuple[str, str, str]]) -> None:
    plugin = NaivePlugin()
    answers: dict[tuple[str, str], Answer] = {}
    cache = PluginCache(TimedDialect(lambda query: answers[query.before, query.after]))
    for before, after, text in asked:
        answers[before, after] = Answer([(0.0, text)] if text else [], Reply(source="model"))
        place = place_of(Query(before=before, after=after))
        expected = plugin.find(place.above + place.head, place.after)
        reply, _ = ask(cache, before, after)
        assert (reply.source == SOURCE) == (expected is not None)
        if expected is None:
            plugin.store(place.above + place.head, place.after, text)
        else:
            assert reply.text == expected


def test_whether_the_server_is_alive_is_the_servers_matter() -> None:
    cache, dialect = cache_of("text")
    assert run_virtual(cache.is_alive())
    dialect.is_there = False
    assert not run_virtual(cache.is_alive())
