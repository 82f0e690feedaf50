"""The process in which a load test's users live: `python -m loadtest.load_driver`, started by `locustfile.py`.

The first line on standard input has the settings as JSON, the others say who comes and goes: `start TypingUser 3`,
`stop TypingUser 3`. Every figure goes out as a line of JSON, and `["ended", "TypingUser", 3]` when a user has. It ends
with its standard input. Knows no Locust.
"""

import asyncio
import sys

import msgspec

from loadtest.users import USERS, Figure, UserSettings, run_user
from server.client import AsyncClient

_ENCODER = msgspec.json.Encoder()


def emit(line: object) -> None:
    """Write one line of JSON."""
    sys.stdout.buffer.write(_ENCODER.encode(line) + b"\n")
    sys.stdout.buffer.flush()


async def drive() -> None:
    """Start and stop users as standard input says."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    settings = msgspec.json.decode(await commands.readline() or b"null", type=UserSettings | None)
    if settings is None:
        return
    tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def live(kind: str, number: int) -> None:
        try:
            async with AsyncClient(settings.address, timeout_s=settings.timeout_s) as client:
                await run_user(USERS[kind](client, settings, number, report))
        finally:
            emit(("ended", kind, number))

    def report(figure: Figure) -> None:
        emit(("figure", *figure))

    async for line in commands:
        word, kind, number = line.decode().split()
        who = (kind, int(number))
        if word == "start":
            tasks[who] = loop.create_task(live(*who))
        elif (task := tasks.pop(who, None)) is not None:
            task.cancel()
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(drive())
