"""`cloudcomplete complete`: complete one place of one file and print the text."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.client import Client, RequestOptions
    from server.types import Completion

NAME = "complete"
SUMMARY = "complete a place in a file"
DESCRIPTION = (
    "Print the text that belongs at a place in a file. Without --server a server with the starter model is started for "
    "this one request and stopped again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", type=Path, help="UTF-8 text file")
    parser.add_argument("--line", metavar="N", type=int, required=True, help="line of the cursor, counted from 1")
    parser.add_argument("--column", metavar="M", type=int, required=True, help="column of the cursor, counted from 0")
    parser.add_argument("--server", metavar="HOST:PORT", help="server to ask")
    parser.add_argument("--stream", action="store_true", help="print the text as it is generated")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="most tokens to generate; default: the server's")
    parser.add_argument("--temperature", metavar="T", type=float, help="0 is greedy, the default")
    parser.add_argument("--seed", metavar="N", type=int, help="with a temperature: makes the text repeatable")
    parser.add_argument("--timeout", metavar="S", type=float, default=60.0, help="seconds to wait; default: 60")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the answer with its token counts to OUT")


def run(arguments: argparse.Namespace) -> None:
    """Complete and print; raises SourceFileError, OwnServerError, RequestFailedError."""
    from cloudcomplete.own_server import OwnServer
    from cloudcomplete.progress import Progress
    from cloudcomplete.source_file import SourceFile
    from loadtest.report import write_json
    from server.client import Client

    source = SourceFile.read(arguments.file)
    before, after = source.split(arguments.line, arguments.column)
    options: RequestOptions = {
        "path": source.path,
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
    }
    with contextlib.ExitStack() as stack:
        address = arguments.server
        if address is None:
            progress = Progress(sys.stderr, has_plain_lines=False)
            stack.callback(progress.end)
            address = stack.enter_context(OwnServer(on_progress=progress.show)).address
            progress.end()
        client = stack.enter_context(Client(address, timeout_s=arguments.timeout))
        completion = _print_text(client, before, after, options, is_streamed=arguments.stream)
    if not completion.text:
        print("the model wrote nothing here", file=sys.stderr)
    if num_dropped := completion.usage.num_dropped_tokens:
        print(f"{num_dropped} tokens far from the cursor did not fit into the model's context", file=sys.stderr)
    if arguments.json is not None:
        write_json(arguments.json, completion)


def _print_text(
    client: "Client", before: str, after: str, options: "RequestOptions", *, is_streamed: bool
) -> "Completion":
    if is_streamed:
        with client.stream(before, after, **options) as stream:
            for text in stream:
                print(text, end="", flush=True)
        completion = stream.completion
        assert completion is not None, "a stream that ends without an error has a completion"
    else:
        completion = client.complete(before, after, **options)
        print(completion.text, end="")
    if completion.text and not completion.text.endswith("\n"):
        print()
    return completion
