"""The gRPC face of a keystroke session: events in, suggestions for the newest state out. Decides nothing about either.

A stream has one task that reads events, one that writes updates, and one that asks the completer for the newest state's
suggestion; a newer state cancels that one. What is to be written waits in an `Outbox`, in which a suggestion replaces
that of an older state and text of the same one is joined: a client that reads slowly makes the server keep no more than
one suggestion and a few problems, and holds up nobody else.

A problem with one event or one suggestion is told, and the stream goes on.
"""

import asyncio
import logging
import math
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import grpc
import msgspec

from engine.errors import EngineError, QueueFullError
from server import wire
from server.admission import Admission
from server.completer import Completer
from server.config import ServerConfig
from server.document import Document, Patch, count_units
from server.errors import BusyError, CompletionFailedError, InvalidRequestError, ServerError, grpc_code
from server.feedback import Feedback
from server.pace import join
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.sessions import Sessions
from server.types import AnswerPart, CompletionRequest, Source, SuggestionEvent

MAX_PROBLEMS = 16
"""Problems that wait for a client that does not read; then its events are not read either."""
MAX_SUGGESTIONS = 64
"""Suggestions whose fate a client may still tell."""
STILL_THERE_S = 30.0
"""Seconds after which accepted text is looked for again."""

_log = logging.getLogger(__name__)


class SessionService:
    """Serves `Session` streams."""

    def __init__(
        self,
        config: ServerConfig,
        admission: Admission,
        completer: Completer,
        sessions: Sessions,
        feedback: Feedback,
    ) -> None:
        self.config, self.admission, self.completer = config, admission, completer
        self.sessions, self.feedback = sessions, feedback

    async def serve(
        self, messages: AsyncIterator[bytes], write: Callable[[bytes], Awaitable[None]], *, tenant: str = ""
    ) -> None:
        """Serve one stream until the client ends it; cancel to end it from here."""
        outbox = Outbox()
        stream = _Stream(self, outbox, tenant)
        writing = asyncio.create_task(outbox.write_all(write))
        reading = asyncio.create_task(stream.read_all(messages))
        try:
            done, _ = await asyncio.wait((writing, reading), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            writing.cancel()
            reading.cancel()
            stream.close()
            await asyncio.gather(writing, reading, return_exceptions=True)


class Outbox:
    """Updates that wait to be written."""

    def __init__(self) -> None:
        self._problems: deque[pb.SessionUpdate] = deque()
        self._state = 0
        self._part: AnswerPart | None = None
        self._has_some = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def begin(self, state: int) -> None:
        """Make a state the newest one: what waits of an older one's suggestion is of no use any more."""
        self._state, self._part = state, None

    def put_part(self, state: int, part: AnswerPart) -> None:
        """Add to the suggestion of a state; ignored when it is not the newest."""
        if state == self._state:
            self._part = part if self._part is None else join(self._part, part)
            self._has_some.set()

    def put_problem(self, state: int, error: Exception, *, needs_text: bool = False) -> None:
        """Add a problem."""
        problem = pb.Problem(code=grpc.StatusCode[grpc_code(error)].value[0], message=str(error), needs_text=needs_text)
        if isinstance(error, (BusyError, QueueFullError)):
            problem.retry_after_ms = math.ceil(error.retry_after_s * 1000)
        self._problems.append(pb.SessionUpdate(seq=state, problem=problem))
        self._has_some.set()
        if len(self._problems) >= MAX_PROBLEMS:
            self._has_room.clear()

    async def wait_for_room(self) -> None:
        """Wait until not too many problems wait."""
        await self._has_room.wait()

    async def write_all(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write whatever comes, for ever."""
        while True:
            await self._has_some.wait()
            update = self._take()
            if update is None:
                self._has_some.clear()
            else:
                await write(update.SerializeToString())

    def _take(self) -> pb.SessionUpdate | None:
        if self._problems:
            update = self._problems.popleft()
            self._has_room.set()
            return update
        part, self._part = self._part, None
        return None if part is None else pb.SessionUpdate(seq=self._state, suggestion=wire.encode_part(part))


class _Pushed:
    """What a client was sent for one state."""

    def __init__(self) -> None:
        self.text = ""
        self.source: Source | None = None
        """None until all of it was there."""


class _Stream:
    """One client's document, and the suggestion for its newest state."""

    def __init__(self, service: SessionService, outbox: Outbox, tenant: str) -> None:
        self._service, self._outbox, self._tenant = service, outbox, tenant
        self._session_id = ""
        self._common = CompletionRequest(before="")
        self._opened: weakref.ref[Document] | None = None
        self._is_stale = False
        """Whether the client has been told that its text is needed, and has not sent it yet."""
        self._suggesting: asyncio.Task[None] | None = None
        self._pushed: OrderedDict[int, _Pushed] = OrderedDict()
        self._looks: set[asyncio.TimerHandle] = set()

    async def read_all(self, messages: AsyncIterator[bytes]) -> None:
        """Take events until the client ends them."""
        async for message in messages:
            await self._outbox.wait_for_room()
            self._take(message)

    def close(self) -> None:
        """Forget the document; its suggestions stay in the session for a while."""
        self._stop_suggesting()
        for timer in self._looks:
            timer.cancel()
        self._looks.clear()
        if self._document() is not None:
            self._service.sessions.session(self._tenant, self._session_id).document = None
        self._opened = None

    def _document(self) -> Document | None:
        """Return the document that this stream opened, unless the session has it no longer."""
        document = self._service.sessions.document(self._tenant, self._session_id)
        return document if self._opened is not None and document is self._opened() else None

    def _take(self, message: bytes) -> None:
        number = 0
        try:
            event = wire.decode_event(message)
            number = event.seq
            if event.WhichOneof("event") == "open":
                self._open(number, event.open)
            elif not self._is_stale:
                self._apply(event)
        except InvalidRequestError as error:  # nobody knows any more what the text is
            self._is_stale = True
            self._stop_suggesting()
            self._outbox.begin(number)
            self._outbox.put_problem(number, error, needs_text=True)

    def _open(self, number: int, opened: pb.OpenDocument) -> None:
        """Begin a document, in place of the one before."""
        self.close()
        common = wire.decode_open(opened)
        service = self._service
        service.admission.check(common, deadline_s=None)
        document = Document(opened.text, cursor=opened.cursor, number=number, max_bytes=service.config.max_text_bytes)
        self._session_id = common.session_id or uuid.uuid4().hex
        self._common = msgspec.structs.replace(common, session_id=self._session_id)
        service.sessions.session(self._tenant, self._session_id).document = document
        self._opened, self._is_stale = weakref.ref(document), False
        self._pushed.clear()
        self._suggest(number, document, is_quiet=opened.quiet)

    def _apply(self, event: pb.SessionEvent) -> None:
        """Take an event about the open document; raises InvalidRequestError when its text is needed again."""
        kind, number = event.WhichOneof("event"), event.seq
        document = self._document()
        if document is None:
            raise InvalidRequestError(
                f"event {number} is about a document that is not open here: it was never opened, was closed, was "
                "forgotten since sessions are bounded, or another stream opened the session; "
                "open the document again with its text"
            )
        document.count(number)
        if kind == "edit":
            edit = event.edit
            patches = [Patch(patch.start, patch.end, patch.text) for patch in edit.patches]
            document.edit(patches, cursor=edit.cursor, length=edit.length if edit.HasField("length") else None)
            self._suggest(number, document, is_quiet=edit.quiet)
        elif kind == "move":
            document.move(event.move.cursor)
            self._suggest(number, document, is_quiet=event.move.quiet)
        elif kind == "close":
            self.close()
        elif kind is None:
            raise InvalidRequestError(
                f"event {number} has nothing in it that this server knows; expected one of open, edit, move, shown, "
                "accepted, rejected, close; use a newer server, and open the document again with its text"
            )
        else:
            try:
                self._note(event)
            except InvalidRequestError as error:
                self._outbox.put_problem(number, error)

    def _note(self, event: pb.SessionEvent) -> None:
        """Count what became of a suggestion; raises InvalidRequestError for one that was never pushed."""
        fate: SuggestionEvent
        length = 0
        if event.HasField("accepted"):
            pushed, length = self._pushed_for(event.accepted.suggestion), event.accepted.length
            num_units = count_units(pushed.text)
            if length > num_units:
                raise InvalidRequestError(
                    f"{length} UTF-16 code units of suggestion {event.accepted.suggestion} were accepted; expected at "
                    f"most {num_units}, which is all of it; leave the length out for all of it"
                )
            fate = "partly_accepted" if 0 < length < num_units else "accepted"
        elif event.HasField("shown"):
            pushed, fate = self._pushed_for(event.shown.suggestion), "shown"
        else:
            pushed, fate = self._pushed_for(event.rejected.suggestion), "rejected"
        taken = pushed.text
        if length:
            taken = taken.encode("utf-16-le")[: 2 * length].decode("utf-16-le", "ignore")
        self._service.feedback.note(
            self._tenant,
            f"{self._session_id}/{event.seq}",
            fate,
            source=pushed.source or "model",
            num_chars=len(pushed.text),
            num_accepted=len(taken) if fate == "partly_accepted" else 0,
            text=pushed.text,
        )
        if fate in ("accepted", "partly_accepted") and len(self._looks) < MAX_SUGGESTIONS:
            self._look_again(taken, pushed.source or "model")

    def _look_again(self, taken: str, source: Source) -> None:
        """See after a while whether accepted text still stands in the document."""
        opened = self._opened

        def look() -> None:
            self._looks.discard(timer)
            document = self._document()
            if document is None or opened is None or document is not opened():
                return
            fate: SuggestionEvent = "kept" if taken in document.text else "gone"
            self._service.feedback.note(
                self._tenant, self._session_id, fate, source=source, num_chars=len(taken), text=taken
            )

        timer = asyncio.get_running_loop().call_later(STILL_THERE_S, look)
        self._looks.add(timer)

    def _pushed_for(self, state: int) -> _Pushed:
        pushed = self._pushed.get(state)
        if pushed is None:
            raise InvalidRequestError(
                f"suggestion {state} was not pushed, or long ago; expected the seq of one of the last "
                f"{MAX_SUGGESTIONS} suggestions of this document; leave the event out"
            )
        return pushed

    def _suggest(self, state: int, document: Document, *, is_quiet: bool) -> None:
        """Begin the suggestion for the newest state; what an older one was being made for is not wanted any more."""
        self._stop_suggesting()
        self._outbox.begin(state)
        if not is_quiet:
            request = msgspec.structs.replace(self._common, before=document.before, after=document.after)
            self._suggesting = asyncio.create_task(self._push(state, request))

    def _stop_suggesting(self) -> None:
        if self._suggesting is not None:
            self._suggesting.cancel()
            self._suggesting = None

    async def _push(self, state: int, request: CompletionRequest) -> None:
        try:
            parts = self._service.completer.complete(request, deadline_s=None, tenant=self._tenant)
            async with aclosing(parts):
                async for part in parts:
                    pushed = self._pushed.setdefault(state, _Pushed())
                    pushed.text += part.text
                    pushed.source = part.source if part.finish is not None else None
                    if len(self._pushed) > MAX_SUGGESTIONS:
                        self._pushed.popitem(last=False)
                    self._outbox.put_part(state, part)
        except (ServerError, EngineError) as error:
            self._outbox.put_problem(state, error)
        except Exception:
            incident = uuid.uuid4().hex[:12]
            _log.exception("incident %s: a suggestion failed unexpectedly", incident)
            self._outbox.put_problem(
                state,
                CompletionFailedError(
                    f"the suggestion failed unexpectedly; see incident {incident} in the server's log"
                ),
            )
