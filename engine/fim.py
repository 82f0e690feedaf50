"""Fill-in-the-middle prompts: from a request's text to the tokens a model completes.

The layout survives keystrokes: everything that stands before the MID marker stays the same while someone types on, so
that its KV is kept and a keystroke only appends tokens:

    PRE {SEP path \\n text: each context chunk} {SEP path \\n} {text above the cut} SUF {after} MID {cut to cursor}

Families were trained to see the same parts in other places (`Markers`): Qwen and CodeGemma have the context before PRE,
StarCoder2 has all of it but the file's own path there, and both Qwen and StarCoder2 begin it with the repository's
name; Codestral has no MID: `SUF {after} PRE {context, all that is before the cursor}`, where typing appends anyway.
Segments are encoded apart from each other: the tokens of one never depend on its neighbours. Vocabularies without a
separator get `#path` lines instead, the form DeepSeek-Coder was trained on.

**Token healing.** The last token before the cursor is often only the beginning of the token that a finished text would
have there, and a model that is asked to go on after it goes astray. So that token is left out of the prompt and its
bytes become `heal`: the model has to write them again, alone or as the beginning of something longer, and they are
stripped from the output. That is right for every kind of token: indentation may turn out to be part of a longer
whitespace token, a newline may carry the next line's indentation, and where the token was whole already the model
simply chooses it again. Nothing is left out when the cursor stands at the cut: there the MID marker comes right
before it, and what the model writes starts a segment as in training.

**Too long.** What is cut away, in this order, until the prompt fits: context chunks from the front, until they have at
most a quarter of the budget (`CONTEXT_SHARE`); the end of `after` beyond a quarter of the budget; the beginning of the
text above the cut, at a line start; the rest of `after`; the file's own path; and only then the left of the text from
the cut to the cursor, whose end at the cursor always stays. What context keeps when the file is long is the same for
every keystroke.
Edges move in steps of several lines or tokens, so that they stand still during most keystrokes. No more than
`_WINDOW_CHARS_PER_TOKEN` characters per token of the budget are looked at, whatever the length of the file.
"""

import math
from typing import Literal, Self

import msgspec

from engine.errors import RequestError, TokenizerError
from engine.markers import Markers
from engine.model.families import FAMILIES
from engine.tokenizer import Tokenizer
from engine.types import ContextChunk, Request

_WINDOW_CHARS_PER_TOKEN = 8
"""Code has 3 to 4 characters a token; text beyond this many for each token of the budget is not even encoded."""

CONTEXT_SHARE = 0.25
"""Of the prompt, for context chunks, however long the file itself is."""

_REPOSITORY = "project"
"""Requests don't name their repository, and models that know the marker have never seen it without a name."""


class FimTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """The markers of one vocabulary, as ids."""

    name: str
    """Which known set of markers this is; part of what identifies a prompt."""
    prefix_id: int
    suffix_id: int
    middle_id: int
    separator_id: int | None = None
    begin_id: int | None = None
    repository: tuple[int, ...] = ()
    """The tokens that announce the repository, before the first context chunk."""
    context: Literal["inside", "outside", "path inside"] = "inside"
    """As in `Markers`."""
    is_suffix_first: bool = False
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion, ascending: ends of text, and markers, none of which belongs into a hole."""

    @classmethod
    def detect(cls, tokenizer: Tokenizer) -> Self:
        """Find the markers of a vocabulary; raises TokenizerError when no known set is complete."""
        for known in _known_markers():
            ids = [None if text is None else tokenizer.marker_id(text) for text in known.required]
            if any(text is not None and found is None for text, found in zip(known.required, ids, strict=True)):
                continue
            prefix_id, suffix_id, middle_id, separator_id, repository_id, begin_id, *_ = ids
            assert prefix_id is not None
            assert suffix_id is not None
            assert middle_id is not None
            name = tokenizer.encode(_REPOSITORY + known.repository_end)
            ends = (*ids, *map(tokenizer.marker_id, known.ends), *tokenizer.eos_ids)
            return cls(
                name=known.name,
                prefix_id=prefix_id,
                suffix_id=suffix_id,
                middle_id=middle_id,
                separator_id=separator_id,
                begin_id=begin_id,
                repository=() if repository_id is None else (repository_id, *name),
                context=known.context,
                is_suffix_first=known.is_suffix_first,
                stop_ids=tuple(sorted({token_id for token_id in ends if token_id is not None})),
            )
        looked_for = "; ".join(" ".join(filter(None, known.required)) for known in _known_markers())
        raise TokenizerError(
            "the vocabulary lacks fill-in-the-middle markers; expected one of these sets, each marker one token: "
            f"{looked_for}; got no complete set among {tokenizer.num_tokens} tokens; "
            "choose a model trained to fill in the middle"
        )

    @property
    def num_markers(self) -> int:
        """Markers that every prompt has."""
        return 3 + (self.begin_id is not None) - self.is_suffix_first

    def stable_tokens(
        self, *, context: list[int], header: list[int], above: list[int], after: list[int]
    ) -> tuple[int, ...]:
        """Arrange what stands before the text from the cut to the cursor."""
        begin = [] if self.begin_id is None else [self.begin_id]
        both = [*context, *header]
        edge = {"inside": 0, "outside": len(both), "path inside": len(context) + min(1, len(header))}[self.context]
        before = [self.prefix_id, *both[edge:], *above]
        if self.is_suffix_first:
            return (*begin, *both[:edge], self.suffix_id, *after, *before)
        return (*begin, *both[:edge], *before, self.suffix_id, *after, self.middle_id)


def _known_markers() -> list[Markers]:
    """Return all families' markers in the order of looking: a set with more of them says more."""
    known = [markers for family in FAMILIES for markers in family.MARKERS]
    return sorted(known, key=lambda markers: -sum(text is not None for text in markers.required))


class FimPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is given, and what it has to write first."""

    tokens: tuple[int, ...]
    heal: bytes
    """Bytes right before the cursor that the prompt leaves out: the first new tokens must write them."""
    draft: tuple[int, ...] = ()
    """Tokens of `Request.draft`, those for the bytes to heal included."""
    num_stable_tokens: int
    """Tokens before the text from the cut to the cursor: the same for every keystroke below this cut."""
    num_dropped_tokens: int
    """Tokens cut away because the prompt was too long; text too far away to be encoded is counted by its length."""


def build_prompt(
    request: Request, tokenizer: Tokenizer, template: FimTemplate, *, max_prompt_tokens: int, heals: bool = True
) -> FimPrompt:
    """Lay out a request as a prompt of at most `max_prompt_tokens`, the healed token counted.

    Without `heals` the last token before the cursor stays in the prompt.

    Raises RequestError for a cut that is no line start of `before`, for text that is not Unicode, and when not even the
    markers fit.
    """
    _check(request)
    room = max_prompt_tokens - template.num_markers
    num_at_cursor = int(request.cut < len(request.before))
    if room < num_at_cursor:
        needed = template.num_markers + num_at_cursor
        raise RequestError(
            f"no room for a prompt: expected at least {needed} tokens (markers and cursor), got {max_prompt_tokens}; "
            "ask for fewer new tokens or load a model with a longer context"
        )
    parts = _Parts(request, tokenizer, template, max_prompt_tokens=max_prompt_tokens)
    # A fixed share once anything else is cut: what room is left by steps changes with each keystroke.
    share = min(int(max_prompt_tokens * CONTEXT_SHARE), room - num_at_cursor)
    room_for_context = max(share, room - parts.num_tokens)
    context, num_dropped_context = _context(tokenizer, template, request.context, room=room_for_context)
    parts.fit(room - len(context))

    stable = template.stable_tokens(
        context=context, header=parts.header.tokens, above=parts.above.tokens, after=parts.after.tokens
    )
    current = parts.current.tokens
    heal = tokenizer.token_bytes(current[-1]) if heals and current else b""
    # A token without bytes (an unknown character) can't be written again, so it stays.
    kept = current[:-1] if heal else current
    return FimPrompt(
        tokens=(*stable, *kept),
        heal=heal,
        draft=_draft(tokenizer, request, kept, heal),
        num_stable_tokens=len(stable),
        num_dropped_tokens=num_dropped_context + parts.num_dropped_tokens,
    )


def _draft(tokenizer: Tokenizer, request: Request, kept: list[int], heal: bytes) -> tuple[int, ...]:
    """Return the tokens of the request's draft and of what is to be healed before it; none if they cannot be known.

    As they follow in the whole line, if that begins with the tokens kept; else apart from it, as in the middle of an
    identifier, whose tokens are others once it is complete.
    """
    if not request.draft:
        return ()
    line = tokenizer.encode(request.before[request.cut :] + request.draft)
    is_same = line[: len(kept)] == kept
    draft = line[len(kept) :] if is_same else tokenizer.encode(heal.decode(errors="replace") + request.draft)
    return tuple(draft) if draft and tokenizer.token_bytes(draft[0]).startswith(heal) else ()


class _Segment:
    """A run of text in the prompt: its tokens, and how many were cut away."""

    def __init__(self, tokens: list[int], *, num_seen_chars: int, num_unseen_chars: int = 0) -> None:
        self.tokens = tokens
        self._num_tokens = len(tokens) + _estimated_tokens(num_unseen_chars, len(tokens), num_seen_chars)

    @property
    def num_dropped_tokens(self) -> int:
        return self._num_tokens - len(self.tokens)

    def keep_start(self, num_tokens: int, step: int) -> None:
        """Keep so many tokens at most, whole steps of them."""
        if num_tokens < len(self.tokens):
            self.tokens = self.tokens[: num_tokens // step * step]

    def keep_end(self, num_tokens: int, step: int) -> None:
        """Keep so many tokens at most, leaving out whole steps of them."""
        self.tokens = self.tokens[math.ceil(max(0, len(self.tokens) - num_tokens) / step) * step :]


class _Parts:
    """The segments that are the file itself, as much of each as could fit on its own."""

    def __init__(
        self, request: Request, tokenizer: Tokenizer, template: FimTemplate, *, max_prompt_tokens: int
    ) -> None:
        above, after, current = request.before[: request.cut], request.after, request.before[request.cut :]
        window = _WINDOW_CHARS_PER_TOKEN * max_prompt_tokens
        self._tokenizer = tokenizer
        self._quarter = max_prompt_tokens // 4
        self._step_tokens = max(1, max_prompt_tokens // 32)
        self._step_lines = min(max(4, max_prompt_tokens // 128), 32)

        path = request.path[:window]
        self.header = _Segment(_header(tokenizer, template, path) if path else [], num_seen_chars=len(path))
        start = _line_edge(above, window, self._step_lines)
        self._above_text = above[start:]
        self.above = _Segment(
            tokenizer.encode(self._above_text), num_seen_chars=len(self._above_text), num_unseen_chars=start
        )
        end = min(window, len(after))
        self.after = _Segment(tokenizer.encode(after[:end]), num_seen_chars=end, num_unseen_chars=len(after) - end)
        # The left edge of an overlong current part moves in steps too, or each keystroke would encode it anew.
        half = window // 2
        start = math.ceil(max(0, len(current) - window) / half) * half
        self.current = _Segment(
            tokenizer.encode(current[start:]), num_seen_chars=len(current) - start, num_unseen_chars=start
        )

    @property
    def _segments(self) -> tuple[_Segment, ...]:
        return self.header, self.above, self.after, self.current

    @property
    def num_tokens(self) -> int:
        return sum(len(segment.tokens) for segment in self._segments)

    @property
    def num_dropped_tokens(self) -> int:
        return sum(segment.num_dropped_tokens for segment in self._segments)

    def fit(self, room: int) -> None:
        """Cut in the documented order until at most `room` tokens are left."""

        def room_for(segment: _Segment) -> int:
            return room - (self.num_tokens - len(segment.tokens))

        self.after.keep_start(max(self._quarter, room_for(self.after)), self._step_tokens)
        if self.num_tokens > room:
            self.above.tokens = _last_lines(self._tokenizer, self._above_text, room_for(self.above), self._step_lines)
        self.after.keep_start(max(0, room_for(self.after)), self._step_tokens)
        if self.num_tokens > room:
            self.header.tokens = []
        self.current.keep_end(room_for(self.current), self._step_tokens)


def _estimated_tokens(num_chars: int, num_seen_tokens: int = 0, num_seen_chars: int = 0) -> int:
    """Return about how many tokens a text has, from what was encoded of it, or else from what code usually has."""
    return math.ceil(num_chars * (num_seen_tokens / num_seen_chars if num_seen_chars else 0.3))


def _check(request: Request) -> None:
    cut, before = request.cut, request.before
    if not 0 <= cut <= len(before):
        raise RequestError(
            f"cut is {cut}; expected 0 to {len(before)}, an index into the text before the cursor; "
            "send the start of the cursor's line or of a line above it"
        )
    if cut and before[cut - 1] != "\n":
        raise RequestError(
            f"cut is {cut}; expected a line start, which is 0 or right after a newline, got after {before[cut - 1]!r}; "
            "send the start of the cursor's line or of a line above it"
        )
    texts = {"before": before, "after": request.after, "path": request.path}
    for i, chunk in enumerate(request.context):
        texts |= {f"context[{i}].path": chunk.path, f"context[{i}].text": chunk.text}
    for name, text in texts.items():
        try:
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{name} is not Unicode text: expected characters that UTF-8 can hold, got the lone surrogate "
                f"U+{ord(text[error.start]):04X} at {error.start}; decode the file with errors='replace'"
            ) from None


def _header(tokenizer: Tokenizer, template: FimTemplate, path: str) -> list[int]:
    """Return the tokens that announce a file."""
    if template.separator_id is None:
        return tokenizer.encode(f"#{path}\n")
    return [template.separator_id, *tokenizer.encode(f"{path}\n")]


def _context(
    tokenizer: Tokenizer, template: FimTemplate, chunks: tuple[ContextChunk, ...], *, room: int
) -> tuple[list[int], int]:
    """Return the tokens of as many chunks from the end as fit, and about how many those in front would have had."""
    kept: list[list[int]] = []
    room -= len(template.repository)
    for num_kept, chunk in enumerate(reversed(chunks)):
        text = chunk.text if chunk.text.endswith("\n") else f"{chunk.text}\n"
        tokens = []
        if len(text) + len(chunk.path) <= _WINDOW_CHARS_PER_TOKEN * room:
            tokens = [*_header(tokenizer, template, chunk.path), *tokenizer.encode(text)]
        if not tokens or len(tokens) > room:
            chunks = chunks[: len(chunks) - num_kept]
            break
        kept.append(tokens)
        room -= len(tokens)
    else:
        chunks = ()
    num_dropped = sum(_estimated_tokens(len(one.path) + len(one.text) + 2) for one in chunks)
    return [*template.repository, *_joined(kept)] if kept else [], num_dropped


def _joined(kept_from_the_end: list[list[int]]) -> list[int]:
    return [token for tokens in reversed(kept_from_the_end) for token in tokens]


def _line_edge(text: str, max_chars: int, step_lines: int) -> int:
    """Return the first line start, of every `step_lines`-th one if possible, that leaves at most `max_chars`."""
    start = len(text) - max_chars
    if start <= 0:
        return 0
    line = text.count("\n", 0, start)
    edges = []
    while (newline := text.find("\n", start)) >= 0:
        start, line = newline + 1, line + 1
        if line % step_lines == 0:
            return start
        edges.append(start)
    return edges[0] if edges else len(text)


def _last_lines(tokenizer: Tokenizer, text: str, room: int, step_lines: int) -> list[int]:
    """Return the tokens of the last lines of `text`, whole steps of lines counted from its start, that fit into `room`.

    When not even one step fits, single lines do.
    """
    lines = [f"{line}\n" for line in text.split("\n")[:-1]]  # The text above a cut ends in a newline.
    last_step = max(0, len(lines) - 1) // step_lines * step_lines
    for starts in (range(0, len(lines), step_lines), range(last_step + 1, len(lines))):
        # Encoding step by step finds the edge at the price of one pass; the result is then encoded in one piece.
        fitting, num_tokens, end = [], 0, len(lines)
        for start in reversed(starts):
            num_tokens += len(tokenizer.encode("".join(lines[start:end])))
            if num_tokens > room:
                break
            fitting.append(start)
            end = start
        while fitting:
            tokens = tokenizer.encode("".join(lines[fitting.pop() :]))
            if len(tokens) <= room:
                return tokens
    return []
