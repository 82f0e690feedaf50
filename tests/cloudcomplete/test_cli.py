"""The command line, in this process where possible: output, exit codes, one line for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cloudcomplete
from cloudcomplete import own_server
from cloudcomplete.cli import main
from tests.cloudcomplete.shell import Shell

COUNTING_SERVER = [sys.executable, str(Path(__file__).parents[1] / "server" / "counting_server.py")]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.py"
    path.write_text("x = 41\ny = x\n")
    return path


def test_complete_prints_the_text_and_nothing_else(shell: Shell, source: Path, address: str) -> None:
    done = shell("complete", source, "--line", 1, "--column", 6, "--server", address, "--max-tokens", 3)
    assert (done.code, done.out, done.err) == (0, "42 43 44 \n", "")


def test_complete_streams_the_same_text(shell: Shell, source: Path, address: str) -> None:
    done = shell("complete", source, "--line", 1, "--column", 6, "--server", address, "--max-tokens", 3, "--stream")
    assert (done.code, done.out, done.err) == (0, "42 43 44 \n", "")


def test_complete_writes_its_answer_as_json(shell: Shell, source: Path, address: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    place = ("--line", 1, "--column", 6, "--server", address, "--max-tokens", 1, "--temperature", 0.5, "--seed", 3)
    assert shell("complete", source, *place, "--json", out).code == 0
    written = json.loads(out.read_text())
    assert (written["text"], written["source"], written["usage"]["num_generated_tokens"]) == ("42 ", "model", 1)


def test_an_empty_file_can_be_completed(shell: Shell, tmp_path: Path, address: str) -> None:
    path = tmp_path / "empty.py"
    path.touch()
    done = shell("complete", path, "--line", 1, "--column", 0, "--server", address, "--max-tokens", 2)
    assert (done.code, done.out) == (0, "0 1 \n")


def test_without_a_server_one_is_started_and_stopped(
    shell: Shell, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_server, "serve_command", lambda: COUNTING_SERVER)
    done = shell("complete", source, "--line", 1, "--column", 6, "--max-tokens", 1)
    assert (done.code, done.out, done.err) == (0, "42 \n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{source}", "--line", 9, "--column", 0), "line 9 is out of range: a.py has lines 1 to 3; lines count from 1"),
        (("{source}", "--line", 1, "--column", 7), "column 7 is out of range: line 1 of a.py has columns 0 to 6; "),
        (("{source}.missing", "--line", 1, "--column", 0), "cannot read {source}.missing: No such file or directory"),
        (
            ("{source}", "--line", 1, "--column", 0, "--server", "nowhere"),
            "the server address is 'nowhere'; expected HOST:PORT, such as 127.0.0.1:50051",
        ),
        (
            ("{source}", "--line", 1, "--column", 0, "--server", "{address}", "--temperature", "nan"),
            "temperature is nan; expected 0 (greedy) to 2; 0 is greedy",
        ),
        (
            ("{source}", "--line", 1, "--column", 0, "--server", "{address}", "--max-tokens", 2**40),
            "the request cannot be sent: ",
        ),
        (
            ("{source}", "--line", 1, "--column", 0, "--server", "{address}", "--json", "{source}/out"),
            "cannot write the results to {source}/out: Not a directory; expected a writable place",
        ),
    ],
)
def test_a_mistake_is_one_line_and_code_1(
    shell: Shell, source: Path, address: str, arguments: tuple[object, ...], message: str
) -> None:
    filled = [str(argument).format(source=source, address=address) for argument in arguments]
    done = shell("complete", *filled)
    assert done.code == 1
    assert done.err.startswith(f"cloudcomplete: {message.format(source=source)}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "cloudcomplete: the following arguments are required: COMMAND; see `cloudcomplete --help`\n"),
        (("fly",), "cloudcomplete: argument COMMAND: invalid choice: 'fly'"),
        (("complete", "f", "--lin", "1"), "cloudcomplete complete: the following arguments are required: --line"),
        (("serve", "--grpc-port", "x"), "cloudcomplete serve: argument --grpc-port: invalid int value: 'x'; see `"),
        (
            ("serve", "--frobnicate"),
            "cloudcomplete: unrecognized arguments: --frobnicate; see `cloudcomplete --help`\n",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    done = shell(*arguments)
    assert done.code == 2
    assert done.err.startswith(message)
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "--config", "/no/such.toml"), "cannot read the configuration /no/such.toml: "),
        (("serve", "--set", "server.nonsense=1"), "--set: server.nonsense is no setting; expected one of: host, "),
        (("serve", "--grpc-port", "-1"), "--set server.grpc_port=-1: server: grpc_port is -1; expected 0 "),
        (("serve", "--host", "no such host", "--grpc-port", "0"), "cannot resolve the host 'no such host'"),
        (("info", "/no/such/model"), "model directory /no/such/model does not exist"),
        (("info", "--set", "engine.dtype=int3"), "--set engine.dtype=int3: engine.dtype: Invalid enum value"),
    ],
)
def test_what_a_command_cannot_use_is_one_line_and_code_1(
    shell: Shell, arguments: tuple[str, ...], message: str
) -> None:
    done = shell(*arguments)
    assert done.code == 1
    assert done.err.startswith(f"cloudcomplete: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "command", [(), ("serve",), ("complete",), ("evaluate",), ("replay",), ("info",), ("cache",), ("bench",)]
)
def test_every_command_has_help(shell: Shell, command: tuple[str, ...]) -> None:
    done = shell(*command, "--help")
    assert done.code == 0
    assert done.out.startswith("usage: cloudcomplete")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cloudcomplete.commands.info.run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_an_interrupt_is_code_130(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cloudcomplete.commands.info.run", interrupt)
    assert shell("info").code == 130


def test_a_reader_that_leaves_is_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cloudcomplete", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_help_and_the_package_load_neither_jax_nor_grpc() -> None:
    script = (
        "import sys, cloudcomplete, cloudcomplete.cli as cli\n"
        "cli.build_parser().format_help()\n"
        "heavy = {'jax', 'grpc', 'numpy', 'msgspec', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert cloudcomplete.Client and 'jax' not in sys.modules\n"
        "assert cloudcomplete.AsyncClient and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_the_packages_names_are_all_there_and_no_others() -> None:
    assert set(cloudcomplete.__all__) <= set(dir(cloudcomplete))
    for name in cloudcomplete.__all__:
        assert getattr(cloudcomplete, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'cloudcomplete' has no attribute 'Cleint'"):
        _ = cloudcomplete.Cleint


def test_info_shows_the_starter_model_and_writes_it(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "info.json"
    done = shell("info", "--json", out)
    assert done.code == 0
    names = [line.split()[0] for line in done.out.splitlines()]
    assert names == ["model", "family", "parameters", "vocabulary", "context", "KV", "slots", "machine", "versions"]
    facts = json.loads(out.read_text())
    assert facts["model"]["family"] == "llama"
    assert facts["kv"]["bytes_per_slot"] == facts["kv"]["bytes_per_token"] * facts["plan"]["capacity"]
    assert facts["kv"]["num_slots_that_fit"] > 0
    assert {"python", "jax", "grpcio"} <= facts["versions"].keys()
