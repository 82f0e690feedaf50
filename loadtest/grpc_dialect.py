"""The dialect of this product's own server: `CompletionService.Complete` over gRPC, as every client sends it."""

import time
from typing import Self

from loadtest.dialects import MODEL_SOURCE, OPEN_TIMEOUT_S, ErrorKind, Query, Reply, TextPart, TextSink, ignore_text
from loadtest.errors import DialectError
from server.client import DEFAULT_ADDRESS, AsyncClient
from server.errors import (
    BusyError,
    CompletionFailedError,
    DeadlineError,
    InvalidRequestError,
    RequestCancelledError,
    RequestFailedError,
    UnavailableError,
)

_ERROR_KINDS: dict[type[RequestFailedError], ErrorKind] = {
    BusyError: "busy",
    CompletionFailedError: "failed",
    DeadlineError: "deadline",
    InvalidRequestError: "refused",
    RequestCancelledError: "failed",
    UnavailableError: "lost",
}


class GrpcDialect:
    """`server` is HOST:PORT."""

    def __init__(self, server: str) -> None:
        """Take an address; raises DialectError or AddressError."""
        if server.startswith(("http://", "https://")):
            raise DialectError(f"the server address is {server!r}; grpc expected HOST:PORT, such as {DEFAULT_ADDRESS}")
        self._client = AsyncClient(server)

    async def __aenter__(self) -> Self:
        try:
            await self._client.wait_until_serving(timeout_s=OPEN_TIMEOUT_S)
        except UnavailableError as error:
            await self._client.close()
            raise DialectError(str(error)) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def is_alive(self) -> bool:
        """Ask for its health."""
        return await self._client.is_serving(timeout_s=OPEN_TIMEOUT_S)

    async def complete(self, query: Query, *, deadline_s: float, on_text: TextSink = ignore_text) -> Reply:
        """Ask, and return the answer or its error."""
        began_s = time.perf_counter()
        first_text_s: float | None = None
        texts: list[str] = []
        try:
            async with self._client.stream(
                query.before,
                query.after,
                timeout_s=deadline_s,
                path=query.path,
                language=query.language,
                context=query.context,
                temperature=0.0,
                max_tokens=query.max_tokens,
                session_id=query.session_id,
                is_fresh=query.is_fresh,
            ) as stream:
                async for text in stream:
                    if first_text_s is None:
                        first_text_s = time.perf_counter() - began_s
                    texts.append(text)
                    on_text(text)
        except RequestFailedError as error:
            return Reply(
                text="".join(texts),
                first_text_s=first_text_s,
                total_s=time.perf_counter() - began_s,
                error=str(error),
                error_kind=_ERROR_KINDS.get(type(error), "failed"),
            )
        completion = stream.completion
        assert completion is not None, "a stream that ends without an error has a completion"
        return Reply(
            text=completion.text,
            source=completion.source,
            is_from_model=completion.source == MODEL_SOURCE,
            is_cut_short=completion.finish_reason == "length",
            num_typed=completion.num_typed,
            first_text_s=first_text_s,
            total_s=time.perf_counter() - began_s,
            num_prompt_tokens=completion.usage.num_prompt_tokens,
            num_reused_tokens=completion.usage.num_reused_tokens,
            num_generated_tokens=completion.usage.num_generated_tokens,
            parts=tuple(TextPart(num_chars=len(part.text), logit_gap=part.logit_gap) for part in completion.parts),
        )
