"""Prompts against the layout written out by hand, and what is cut away from those that are too long."""

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError, TokenizerError
from engine.fim import FimPrompt, FimTemplate, build_prompt
from engine.tokenizer import Tokenizer
from engine.types import ContextChunk, Request

TINY_LLAMA = Path(__file__).parents[1] / "fixtures" / "models" / "tiny-llama"
TOKENIZER = Tokenizer.from_directory(TINY_LLAMA)
TEMPLATE = FimTemplate.detect(TOKENIZER)
SPEC: dict[str, Any] = json.loads((TINY_LLAMA / "tokenizer.json").read_text())

PRE, SUF, MID = TEMPLATE.prefix_id, TEMPLATE.suffix_id, TEMPLATE.middle_id
SEP = TEMPLATE.separator_id or 0


def request(before: str = "", **fields: Any) -> Request:
    return Request(request_id="r", before=before, **{"cut": before.rfind("\n") + 1, **fields})


def prompt_of(request: Request, *, max_prompt_tokens: int = 100_000, template: FimTemplate = TEMPLATE) -> FimPrompt:
    return build_prompt(request, TOKENIZER, template, max_prompt_tokens=max_prompt_tokens)


def text_of(tokens: tuple[int, ...]) -> str:
    """Return the text of tokens, markers as their names."""
    names = {PRE: b"[PRE]", SUF: b"[SUF]", MID: b"[MID]", SEP: b"[SEP]"}
    return b"".join(names.get(token_id) or TOKENIZER.token_bytes(token_id) for token_id in tokens).decode()


def parts_of(prompt: FimPrompt) -> dict[str, str]:
    """Return the segments of a prompt with the healed bytes put back."""
    written = b"".join(map(TOKENIZER.token_bytes, prompt.tokens[prompt.num_stable_tokens :]))
    before, after = text_of(prompt.tokens[: prompt.num_stable_tokens]).removesuffix("[MID]").split("[SUF]")
    return {"before": before.removeprefix("[PRE]"), "after": after, "current": (written + prompt.heal).decode()}


# Layout


def test_a_prompt_has_the_documented_layout() -> None:
    prompt = prompt_of(
        request(
            "import os\n\ndef size(path):\n    return os.pa",
            after="(path)\n",
            path="files.py",
            context=(ContextChunk(path="a.py", text="A = 1\n"), ContextChunk(path="b/b.py", text="B = 2")),
        )
    )
    assert text_of(prompt.tokens) + prompt.heal.decode() == (
        "[PRE][SEP]a.py\nA = 1\n[SEP]b/b.py\nB = 2\n[SEP]files.py\n"
        "import os\n\ndef size(path):\n[SUF](path)\n[MID]    return os.pa"
    )
    assert prompt.num_dropped_tokens == 0
    assert prompt.tokens[prompt.num_stable_tokens - 1] == MID


def test_empty_text_gives_markers_alone() -> None:
    prompt = prompt_of(request())
    assert prompt == FimPrompt(tokens=(PRE, SUF, MID), heal=b"", num_stable_tokens=3, num_dropped_tokens=0)


def test_an_unknown_path_leaves_its_line_out() -> None:
    assert text_of(prompt_of(request("a\n", after="b")).tokens) == "[PRE]a\n[SUF]b[MID]"


def test_a_deep_cut_moves_whole_lines_behind_the_middle_marker() -> None:
    before = "one\ntwo\nthree\nfo"
    assert parts_of(prompt_of(request(before, cut=4))) == {"before": "one\n", "after": "", "current": "two\nthree\nfo"}


def test_a_vocabulary_without_separator_gets_comment_lines() -> None:
    template = FimTemplate(name="plain", prefix_id=PRE, suffix_id=SUF, middle_id=MID)
    asked = request("x\n", path="b.py", context=(ContextChunk(path="a.py", text="A"),))
    assert text_of(prompt_of(asked, template=template).tokens) == "[PRE]#a.py\nA\n#b.py\nx\n[SUF][MID]"


def test_a_vocabulary_with_a_beginning_marker_gets_it_first() -> None:
    template = FimTemplate(name="begin", prefix_id=PRE, suffix_id=SUF, middle_id=MID, begin_id=6)
    assert prompt_of(request("x"), template=template).tokens[:2] == (6, PRE)
    assert template.num_markers == 4


texts = st.text(
    st.sampled_from("ab \n\t(é世🙂") | st.characters(exclude_categories=["Cs"]), max_size=60
) | st.sampled_from(["<|fim_middle|>x", "def add(a, b):\n    return <|endoftext|>", "<|fim_suffix|>\n<|file_sep|>\n"])
chunks = st.builds(ContextChunk, path=texts, text=texts)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    before = "".join(draw(st.lists(texts, max_size=6)))
    line_starts = [0, *(i + 1 for i, character in enumerate(before) if character == "\n")]
    context = tuple(draw(st.lists(chunks, max_size=3)))
    after = "".join(draw(st.lists(texts, max_size=6)))
    return request(before, cut=draw(st.sampled_from(line_starts)), after=after, path=draw(texts), context=context)


@given(asked=requests())
def test_a_prompt_with_room_is_the_obvious_one_whatever_the_text(asked: Request) -> None:
    expected = [PRE]
    for chunk in asked.context:
        text = chunk.text if chunk.text.endswith("\n") else chunk.text + "\n"
        expected += [SEP, *TOKENIZER.encode(chunk.path + "\n"), *TOKENIZER.encode(text)]
    if asked.path:
        expected += [SEP, *TOKENIZER.encode(asked.path + "\n")]
    expected += [*TOKENIZER.encode(asked.before[: asked.cut]), SUF, *TOKENIZER.encode(asked.after), MID]
    current = TOKENIZER.encode(asked.before[asked.cut :])
    prompt = prompt_of(asked)
    assert prompt == FimPrompt(
        tokens=(*expected, *current[:-1]),
        heal=TOKENIZER.token_bytes(current[-1]) if current else b"",
        num_stable_tokens=len(expected),
        num_dropped_tokens=0,
    )


# Token healing


@given(asked=requests())
def test_the_prompt_and_the_healed_bytes_together_are_the_text_before_the_cursor(asked: Request) -> None:
    assert parts_of(prompt_of(asked))["current"] == asked.before[asked.cut :]


@pytest.mark.parametrize(
    ("before", "cut", "heal"),
    [
        ("def add(left, ri", 0, b"i"),
        ("x = 1\n", 6, b""),  # at the cut: the marker itself is what comes before the cursor
        ("x\n    ", 2, b"   "),  # indentation may belong to a longer token, " return" takes its last space
        ("x\n", 0, b"\n"),  # a newline may carry the indentation of the next line
        ("é", 0, b"\xa9"),  # the last token may be a part of a character
    ],
)
def test_the_last_token_before_the_cursor_is_left_to_the_model(before: str, cut: int, heal: bytes) -> None:
    whole = TOKENIZER.encode(before[cut:])
    prompt = prompt_of(request(before, cut=cut))
    written = prompt.tokens[prompt.num_stable_tokens :]
    assert (list(written), prompt.heal) == (
        whole[: len(whole) - bool(heal)],
        TOKENIZER.token_bytes(whole[-1]) if heal else b"",
    )
    assert prompt.heal.endswith(heal[-1:])


@given(asked=requests())
def test_without_healing_the_prompt_holds_all_text_before_the_cursor(asked: Request) -> None:
    prompt = build_prompt(asked, TOKENIZER, TEMPLATE, max_prompt_tokens=4096, heals=False)
    assert prompt.heal == b""
    assert parts_of(prompt)["current"] == asked.before[asked.cut :]


def test_the_healed_bytes_can_always_be_written() -> None:
    prompt = prompt_of(request("return"))
    allowed = TOKENIZER.tokens_for_bytes(prompt.heal)
    assert TOKENIZER.encode("return")[-1] in allowed.tolist()


# Keystrokes


SOURCE = "".join(f"def function_{i}(left, right):\n    return left * {i} + right\n\n" for i in range(400))


@pytest.mark.parametrize("max_prompt_tokens", [512, 2048, 100_000])
def test_a_keystroke_leaves_everything_up_to_the_middle_marker_as_it_is(max_prompt_tokens: int) -> None:
    cut = SOURCE.find("\n", len(SOURCE) // 2) + 1
    typed = "    total = function_1(left, right) + function_2(left, right)\n    if total < 0:\n        raise ValueError"
    stable = []
    for end in range(len(typed) + 1):
        asked = request(SOURCE[:cut] + typed[:end], cut=cut, after=SOURCE[cut:], path="functions.py")
        prompt = prompt_of(asked, max_prompt_tokens=max_prompt_tokens)
        stable.append(prompt.tokens[: prompt.num_stable_tokens])
    num_changes = sum(one != other for one, other in itertools.pairwise(stable))
    assert num_changes <= (0 if max_prompt_tokens > 10_000 else 2 if max_prompt_tokens > 1_000 else 4)


# Too long


def long_request(**fields: Any) -> Request:
    cut = SOURCE.find("\n", 6_000) + 1
    context = tuple(ContextChunk(path=f"{i}.py", text=f"CONSTANT_{i} = {i}\n" * 20) for i in range(4))
    defaults = {"cut": cut, "after": SOURCE[cut : cut + 6_000], "path": "functions.py", "context": context}
    return request(SOURCE[:cut] + "    total = functio", **{**defaults, **fields})


def test_what_is_too_long_is_cut_in_the_documented_order() -> None:
    asked = long_request()
    whole = prompt_of(asked)
    untouched = parts_of(whole)
    own_path = "[SEP]functions.py\n"
    context, above = untouched["before"].split(own_path)
    seen = set()
    for budget in range(len(whole.tokens) + 1, 4, -7):
        prompt = prompt_of(asked, max_prompt_tokens=budget)
        parts = parts_of(prompt)
        got_context, has_path, got_above = parts["before"].rpartition(own_path)
        assert context.endswith(got_context)
        assert got_context == "" or got_context.startswith("[SEP]")
        assert above.endswith(got_above)
        assert got_above == "" or above[: len(above) - len(got_above)].endswith(("\n", ""))
        assert untouched["after"].startswith(parts["after"])
        assert parts["current"] != ""
        assert untouched["current"].endswith(parts["current"])
        num_after = len(TOKENIZER.encode(parts["after"]))
        # Each cut begins only where the one before it in the order has gone as far as it may.
        state = [
            parts["after"] != untouched["after"],
            got_above != above,
            num_after < budget // 4 - budget // 32,
            not has_path,
            parts["current"] != untouched["current"],
        ]
        assert state == sorted(state, reverse=True)
        seen.add(sum(state))
        num_context = num_context_tokens(got_context)
        if state[0]:
            assert num_context <= budget // 4
        if got_context != context and state[3] is False:
            longer = context[context.rindex("[SEP]", 0, len(context) - len(got_context)) :]
            assert num_context_tokens(longer) > budget // 4
        if state[1]:
            assert num_after <= budget // 4
        if state[2]:
            assert got_above == ""
        if state[3]:
            assert parts["after"] == ""
            assert "[SEP]" not in got_above
        assert (prompt.num_dropped_tokens == 0) == (state[0] is False and got_context == context)
    assert seen == {0, 1, 2, 3, 4, 5}


def num_context_tokens(context: str) -> int:
    chunks = [chunk.partition("\n") for chunk in context.split("[SEP]")[1:]]
    return sum(1 + len(TOKENIZER.encode(f"{path}\n")) + len(TOKENIZER.encode(text)) for path, _, text in chunks)


def test_context_keeps_its_share_however_long_the_file_is() -> None:
    asked = long_request()
    others = [{"before": asked.before + "n"}, {"after": asked.after * 2}, {"before": asked.before[: asked.cut] + "x"}]
    for budget in range(1_300, len(prompt_of(asked).tokens) - 500, 500):
        contexts = {
            parts_of(prompt_of(each, max_prompt_tokens=budget))["before"].rpartition("[SEP]functions.py\n")[0]
            for each in (asked, *(msgspec.structs.replace(asked, **other) for other in others))
        }
        assert len(contexts) == 1
        assert contexts != {""}


@given(asked=requests(), max_prompt_tokens=st.integers(4, 120))
def test_a_prompt_never_exceeds_its_budget_and_always_keeps_the_text_at_the_cursor(
    asked: Request, max_prompt_tokens: int
) -> None:
    prompt = prompt_of(asked, max_prompt_tokens=max_prompt_tokens)
    assert len(prompt.tokens) + bool(prompt.heal) <= max_prompt_tokens
    current = asked.before[asked.cut :].encode()
    written = b"".join(map(TOKENIZER.token_bytes, prompt.tokens[prompt.num_stable_tokens :])) + prompt.heal
    assert current.endswith(written)
    assert bool(written) == bool(current)
    whole = prompt_of(asked)
    assert (prompt.num_dropped_tokens > 0) == (prompt != whole)
    if prompt == whole:
        assert len(whole.tokens) + bool(whole.heal) <= max_prompt_tokens
    for marker in (PRE, SUF, MID):
        assert prompt.tokens.count(marker) == 1


def test_dropped_tokens_are_counted() -> None:
    asked = long_request(context=())
    whole, cut = prompt_of(asked), prompt_of(asked, max_prompt_tokens=700)
    assert cut.num_dropped_tokens == pytest.approx(len(whole.tokens) - len(cut.tokens), abs=3)
    asked = request(SOURCE, after=SOURCE)
    whole, cut = prompt_of(asked), prompt_of(asked, max_prompt_tokens=200)
    assert cut.num_dropped_tokens == pytest.approx(len(whole.tokens) - len(cut.tokens), rel=0.2)


def test_a_huge_file_costs_no_more_than_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(SPEC)
    encode, num_encoded = tokenizer.encode, []

    def counting_encode(text: str) -> list[int]:
        num_encoded.append(len(text))
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", counting_encode)
    text = SOURCE * 500
    context = (ContextChunk(path="big.py", text=text), ContextChunk(path="small.py", text="x\n"))
    for asked in (
        request(text, after=text, context=context),
        request(text, cut=0),
        request("x" * 5_000_000 + "\n" + "y" * 5_000_000, after="\n" * 5_000_000),
    ):
        num_encoded.clear()
        prompt = build_prompt(asked, tokenizer, TEMPLATE, max_prompt_tokens=1000)
        assert sum(num_encoded) < 50 * 1000
        assert len(prompt.tokens) > 500
        assert prompt.num_dropped_tokens > 100_000


def test_lines_too_long_for_whole_steps_are_kept_one_by_one() -> None:
    above = "".join(f"{i} = {'x' * 60}\n" for i in range(100))
    parts = parts_of(prompt_of(request(above + "y"), max_prompt_tokens=150))
    assert parts["before"] != ""
    assert above.endswith("\n" + parts["before"])


def test_no_room_for_the_markers_is_an_error_of_the_request() -> None:
    message = (
        r"no room for a prompt: expected at least 4 tokens \(markers and cursor\), got 3; ask for fewer new tokens"
    )
    with pytest.raises(RequestError, match=message):
        prompt_of(request("x"), max_prompt_tokens=3)
    assert prompt_of(request("x\n", after="y"), max_prompt_tokens=3).tokens == (PRE, SUF, MID)


# Bad requests


@pytest.mark.parametrize("cut", [-1, 4])
def test_a_cut_outside_of_the_text_is_refused(cut: int) -> None:
    message = (
        rf"cut is {cut}; expected 0 to 3, an index into the text before the cursor; send the start of the cursor's line"
    )
    with pytest.raises(RequestError, match=message):
        prompt_of(request("a\nb", cut=cut))


def test_a_cut_within_a_line_is_refused() -> None:
    message = r"cut is 1; expected a line start, which is 0 or right after a newline, got after 'a'; send the start of"
    with pytest.raises(RequestError, match=message):
        prompt_of(request("ab\n", cut=1))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("before", request("x\ud800")),
        ("after", request(after="x\ud800")),
        ("path", request(path="x\ud800")),
        (
            r"context\[1\].path",
            request(context=(ContextChunk(path="", text=""), ContextChunk(path="x\ud800", text=""))),
        ),
        (r"context\[0\].text", request(context=(ContextChunk(path="", text="x\ud800"),))),
    ],
)
def test_lone_surrogates_are_refused(name: str, asked: Request) -> None:
    message = (
        rf"{name} is not Unicode text: expected characters that UTF-8 can hold, got the lone surrogate U\+D800 at 1; "
    )
    with pytest.raises(RequestError, match=message):
        prompt_of(asked)


# Vocabularies


def vocabulary(*markers: str) -> Tokenizer:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": 313 + i, "content": marker, **flags} for i, marker in enumerate(markers)]
    pieces = {piece: token_id - 7 for piece, token_id in SPEC["model"]["vocab"].items() if token_id >= 7}
    return Tokenizer({**SPEC, "added_tokens": added, "model": {**SPEC["model"], "vocab": pieces}})


VOCABULARIES = {
    "fim_prefix+file_sep": "<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|file_sep|> <|repo_name|> <|endoftext|>",
    "qwen": "<|endoftext|> <|im_start|> <|im_end|> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|>",
    "codegemma": "<eos> <bos> <|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|file_separator|> <end_of_turn>",
    "starcoder2": "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <repo_name> <file_sep>",
    "starcoder": "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <filename> <reponame>",
    "codestral": "<s> </s> [INST] [/INST] [PREFIX] [MIDDLE] [SUFFIX]",
    "codellama": "<s> </s> ▁<PRE> ▁<MID> ▁<SUF> ▁<EOT>",
    "deepseek-coder": "<｜fim▁hole｜> <｜fim▁begin｜> <｜fim▁end｜> <|EOT|> "
    "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>",
    "fim_prefix": "<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|endoftext|>",
    "starcoder-plain": "<fim_prefix> <fim_suffix> <fim_middle> <|endoftext|>",
}
"""What the vocabularies of these lines of models have, in one order or another."""

ASKED = request(
    "import os\n\ndef size(path):\n    return os.pa",
    after="(path)\n",
    path="b.py",
    context=(ContextChunk(path="a.py", text="A = 1\n"),),
)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (
            "fim_prefix+file_sep",
            "<|fim_prefix|>{SEP}a.py\nA = 1\n{SEP}b.py\n{above}<|fim_suffix|>{after}<|fim_middle|>",
        ),
        (
            "qwen",
            "<|repo_name|>project\n{SEP}a.py\nA = 1\n{SEP}b.py\n"
            "<|fim_prefix|>{above}<|fim_suffix|>{after}<|fim_middle|>",
        ),
        (
            "codegemma",
            "<bos><|file_separator|>a.py\nA = 1\n<|file_separator|>b.py\n"
            "<|fim_prefix|>{above}<|fim_suffix|>{after}<|fim_middle|>",
        ),
        (
            "starcoder2",
            "<repo_name>project<file_sep>a.py\nA = 1\n<file_sep>"
            "<fim_prefix>b.py\n{above}<fim_suffix>{after}<fim_middle>",
        ),
        (
            "starcoder",
            "<fim_prefix><filename>a.py\nA = 1\n<filename>b.py\n{above}<fim_suffix>{after}<fim_middle>",
        ),
        ("codestral", "<s>[SUFFIX]{after}[PREFIX]#a.py\nA = 1\n#b.py\n{above}"),
        ("codellama", "<s>▁<PRE>#a.py\nA = 1\n#b.py\n{above}▁<SUF>{after}▁<MID>"),
        (
            "deepseek-coder",
            "<｜begin▁of▁sentence｜><｜fim▁begin｜>#a.py\nA = 1\n#b.py\n{above}<｜fim▁hole｜>{after}<｜fim▁end｜>",
        ),
        ("fim_prefix", "<|fim_prefix|>#a.py\nA = 1\n#b.py\n{above}<|fim_suffix|>{after}<|fim_middle|>"),
        ("starcoder-plain", "<fim_prefix>#a.py\nA = 1\n#b.py\n{above}<fim_suffix>{after}<fim_middle>"),
    ],
)
def test_each_line_of_models_gets_the_layout_it_was_trained_on(name: str, layout: str) -> None:
    markers = VOCABULARIES[name].split()
    tokenizer = vocabulary(*markers)
    template = FimTemplate.detect(tokenizer)
    assert template.name == name
    names = {tokenizer.marker_id(marker): marker.encode() for marker in markers}
    prompt = build_prompt(ASKED, tokenizer, template, max_prompt_tokens=1000)
    texts = [names.get(token_id) or tokenizer.token_bytes(token_id) for token_id in prompt.tokens]
    above, after = "import os\n\ndef size(path):\n", "(path)\n"
    expected = layout.format(SEP="<|file_sep|>", above=above, after=after)
    assert b"".join(texts[: prompt.num_stable_tokens]).decode() == expected
    assert b"".join(texts[prompt.num_stable_tokens :]) + prompt.heal == b"    return os.pa"
    bare = build_prompt(request(), tokenizer, template, max_prompt_tokens=template.num_markers)
    assert len(bare.tokens) == template.num_markers


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_marker_and_end_of_a_vocabulary_stops_a_completion(name: str) -> None:
    markers = VOCABULARIES[name].split()
    tokenizer = vocabulary(*markers)
    expected = sorted(tokenizer.marker_id(marker) or 0 for marker in markers)
    assert FimTemplate.detect(tokenizer).stop_ids == tuple(expected)


@pytest.mark.parametrize("name", ["qwen", "codegemma", "starcoder2", "codestral"])
@pytest.mark.parametrize("max_prompt_tokens", [5, 12, 30, 41, 60, 90])
def test_in_every_layout_a_prompt_keeps_to_its_budget_and_typing_only_appends(
    name: str, max_prompt_tokens: int
) -> None:
    tokenizer = vocabulary(*VOCABULARIES[name].split())
    template = FimTemplate.detect(tokenizer)
    stable = set()
    for typed in ("    return", "    return os", "    return os.path"):
        asked = msgspec.structs.replace(ASKED, before=ASKED.before[: ASKED.cut] + typed)
        prompt = build_prompt(asked, tokenizer, template, max_prompt_tokens=max_prompt_tokens)
        assert len(prompt.tokens) + 1 <= max_prompt_tokens
        if template.repository:  # announced where another file follows, and only there
            has_context = prompt.tokens.count(template.separator_id) == 2
            assert (prompt.tokens[: len(template.repository)] == template.repository) == has_context
        stable.add(prompt.tokens[: prompt.num_stable_tokens])
    assert len(stable) == 1 or max_prompt_tokens < 90


def test_markers_and_the_end_tokens_of_the_model_stop_a_completion() -> None:
    assert TEMPLATE.stop_ids == tuple(range(7))
    more = Tokenizer(SPEC, eos_ids=(300,))
    assert FimTemplate.detect(more).stop_ids == (*range(7), 300)


def test_a_vocabulary_without_markers_is_refused_with_all_that_was_looked_for() -> None:
    message = (
        r"lacks fill-in-the-middle markers; expected one of these sets, each marker one token: .*<\|fim_prefix\|> "
    )
    with pytest.raises(
        TokenizerError, match=message + r".*▁<PRE>.*; got no complete set among 315 tokens; choose a model"
    ):
        FimTemplate.detect(vocabulary("<|fim_prefix|>", "<|fim_suffix|>"))


@pytest.mark.parametrize(
    ("line", "draft", "expected"),
    [
        ("", "return 1", [b"r", b"eturn", b" ", b"1"]),  # nothing to heal
        ("x = ", "1", [b" ", b"1"]),  # as in the whole line
        ("    retu", "rn 1", [b"urn", b" ", b"1"]),  # the whole line has other tokens before the cursor
        ("x = ", "", []),
    ],
)
def test_a_draft_follows_the_tokens_that_are_kept(line: str, draft: str, expected: list[bytes]) -> None:
    prompt = prompt_of(Request(request_id="r", before=line, draft=draft))
    assert [TOKENIZER.token_bytes(token_id) for token_id in prompt.draft] == expected
