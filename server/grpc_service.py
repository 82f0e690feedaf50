"""The gRPC face of the completer: bytes to requests, outputs to chunks, errors to status codes. Decides nothing else.

Messages are decoded in the handler, because an exception in gRPC's own deserialiser reaches the client as UNKNOWN with
a Python message. A client that cancels, disconnects or runs out of time shows as CancelledError at an `await` of the
handler; `aclosing` then closes the completer's generator, whose `finally` cancels the engine's request.
"""

import logging
import math
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import msgspec

from engine.errors import EngineError, QueueFullError
from server import wire
from server.admission import MAX_NAME_CHARS
from server.completer import Completer
from server.errors import BusyError, InvalidRequestError, ServerError, grpc_code
from server.feedback import Feedback
from server.proto.cloudcomplete.v1 import completion_pb2 as pb
from server.session_service import SessionService

_log = logging.getLogger(__name__)


class GrpcService:
    """`cloudcomplete.v1.CompletionService`."""

    def __init__(self, completer: Completer, session_service: SessionService, feedback: Feedback) -> None:
        self._completer = completer
        self._session_service = session_service
        self._feedback = feedback

    def handler(self) -> Any:
        """Return the handler to add to a `grpc.aio` server."""
        complete: Any = grpc.unary_stream_rpc_method_handler(self._complete)  # no serialisers: bytes in, bytes out
        session: Any = grpc.stream_stream_rpc_method_handler(self._session)
        feedback: Any = grpc.unary_unary_rpc_method_handler(self._take_feedback)
        handlers = {"Complete": complete, "Session": session, "Feedback": feedback}
        return grpc.method_handlers_generic_handler(wire.SERVICE_NAME, handlers)

    async def _complete(self, message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        try:
            request, tenant = wire.decode_request(message), _tenant(context)
            if _is_background(context):
                request = msgspec.structs.replace(request, is_background=True)
            deadline_s = context.time_remaining()
            async with aclosing(self._completer.complete(request, deadline_s=deadline_s, tenant=tenant)) as parts:
                async for part in parts:
                    await context.write(wire.encode_part(part).SerializeToString())
        except (ServerError, EngineError) as error:
            await _abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:
            await _abort_incident(context)

    async def _take_feedback(self, message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        reply = pb.FeedbackReply()
        try:
            tenant = _tenant(context)
            for request_id, event, num_accepted in wire.decode_feedback(message):
                if self._feedback.tell(tenant, request_id, event, num_accepted=num_accepted):
                    reply.counted += 1
                else:
                    reply.unknown_request_ids.append(request_id)
        except ServerError as error:
            await _abort(context, error)
        return reply.SerializeToString()

    async def _session(self, messages: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        try:
            await self._session_service.serve(messages, context.write, tenant=_tenant(context))
        except ServerError as error:
            await _abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:
            await _abort_incident(context)


def _tenant(context: "grpc.aio.ServicerContext[bytes, bytes]") -> str:
    """Return whose call it is, "" when it does not say; raises InvalidRequestError for a name that is none."""
    tenant = _metadata(context, wire.TENANT_KEY)
    if len(tenant) > MAX_NAME_CHARS or not tenant.isprintable():
        raise InvalidRequestError(
            f"metadata {wire.TENANT_KEY} has {len(tenant)} characters; expected at most {MAX_NAME_CHARS} printable ones"
        )
    return tenant


def _is_background(context: "grpc.aio.ServicerContext[bytes, bytes]") -> bool:
    """Tell whether nobody waits for a call; raises InvalidRequestError for a priority that clients cannot ask for."""
    priority = _metadata(context, wire.PRIORITY_KEY)
    if priority not in ("", "interactive", "background"):
        raise InvalidRequestError(
            f"metadata {wire.PRIORITY_KEY} is {priority!r}; expected interactive or background, or none"
        )
    return priority == "background"


def _metadata(context: "grpc.aio.ServicerContext[bytes, bytes]", key: str) -> str:
    return next((str(value) for name, value in context.invocation_metadata() or () if name == key), "")


async def _abort(context: "grpc.aio.ServicerContext[bytes, bytes]", error: ServerError | EngineError) -> None:
    """End the call with the code and the message of an error."""
    metadata: tuple[tuple[str, str], ...] = ()
    if isinstance(error, (BusyError, QueueFullError)):
        metadata = ((wire.RETRY_AFTER_KEY, str(math.ceil(error.retry_after_s * 1000))),)
    await context.abort(grpc.StatusCode[grpc_code(error)], str(error), metadata)


async def _abort_incident(context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
    """End the call for a defect of ours, whose details only the log has; from an `except` block."""
    incident = uuid.uuid4().hex[:12]
    _log.exception("incident %s: a request failed unexpectedly", incident)
    await context.abort(
        grpc.StatusCode.INTERNAL, f"the request failed unexpectedly; see incident {incident} in the server's log"
    )
