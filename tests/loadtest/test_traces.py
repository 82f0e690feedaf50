"""Reading traces: which formats there are, what is refused, and the real recordings."""

import gzip
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.editing_trace import EditingTrace
from loadtest.errors import TraceError
from loadtest.session_trace import SessionTrace
from loadtest.traces import PAUSE_CAP_S, read_trace
from tests.loadtest.handmade_trace import encode, history_of, typed

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
SESSION = b'{"session": 1, "TimeGenerated": "2022-08-08T16:00:00Z", "StateName": "Shown", "CurrentPrompt": "a"}\n'


def shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_both_formats_are_read_plain_and_gzipped(tmp_path: Path, compress: type[bytes]) -> None:
    path = tmp_path / "trace"
    path.write_bytes(compress(encode(history_of(typed("ab")))))
    assert isinstance(read_trace(path, seed=0), EditingTrace)
    path.write_bytes(compress(json.dumps(history_of(typed("ab")), indent=2).encode()))
    assert isinstance(read_trace(path, seed=0), EditingTrace)
    path.write_bytes(compress(SESSION * 2))
    assert isinstance(read_trace(path, seed=0), SessionTrace)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "{path} is empty; expected an editing history (startContent, endContent, txns) or completion sessions"),
        (b" \n\n", "{path} is empty; "),
        (gzip.compress(b"", mtime=0), "{path} is empty; "),
        (gzip.compress(encode(history_of(typed("abc"))))[:-20], "{path} is damaged or cut short: "),
        (b"\x1f\x8bnonsense", "{path} is damaged or cut short: "),
        (b"def main(): ...", "{path} is no known trace: expected an editing history"),
        (b"\xff\xfe\x00", "{path} is no known trace: "),
        (b'{"prompt": "a", "suffix": "b"}\n', "{path} is no known trace: "),
        (b"[1, 2]", "{path} is no known trace: "),
        (b'{"txns": 5, "startContent": "", "endContent": ""}', "{path} is no editing history: Expected `array`"),
        (SESSION[:-30], "{path} is no known trace: "),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "trace.json.gz"
    path.write_bytes(data)
    with pytest.raises(TraceError) as raised:
        read_trace(path, seed=0)
    assert str(raised.value).startswith(message.format(path=path))


def test_an_unknown_format_says_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"prompt": "a", "suffix": "b"}\n')
    with pytest.raises(TraceError, match=r"got JSON with prompt, suffix$"):
        read_trace(path, seed=0)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=f"cannot read the trace {tmp_path}/no: No such file or directory; expected "):
        read_trace(tmp_path / "no", seed=0)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "num_keystrokes"),
    [
        ("editing-traces/sveltecomponent.json.gz", 15_539),
        ("editing-traces/json-crdt-patch.json.gz", 14_997),
        ("copilot-sessions/sessions-00-12.jsonl.gz", 627),
    ],
)
def test_real_recordings_are_replayed_whole_and_fast(name: str, num_keystrokes: int) -> None:
    began_s = time.process_time()
    trace = read_trace(shared(name), seed=0)
    moments = list(trace.moments(first=0, count=len(trace.keystroke_times_s)))
    assert time.process_time() - began_s < 2.0
    assert sum(moment.keystroke is not None for moment in moments) == num_keystrokes
    gaps = [b.at_s - a.at_s for a, b in pairwise(moments)]
    assert min(gaps) >= 0
    assert max(gaps) <= PAUSE_CAP_S + 1e-6
    asked = [moment.keystroke for moment in moments if moment.keystroke is not None]
    assert sum(bool(key.next_chars) for key in asked) > 0.4 * num_keystrokes
    assert sum(key.line is not None for key in asked) > 0.4 * num_keystrokes


@pytest.mark.shared_data
def test_a_recording_of_seconds_has_the_gaps_of_real_typing() -> None:
    trace = read_trace(shared("editing-traces/sveltecomponent.json.gz"), seed=0)
    gaps = sorted(b - a for a, b in pairwise(trace.keystroke_times_s) if b - a < 1)
    assert 0.10 < gaps[len(gaps) // 2] < 0.18
    assert 0.35 < gaps[len(gaps) * 9 // 10] < 0.65
