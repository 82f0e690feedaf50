"""Several processes that run one mesh: the leader has the engine and the clients, followers run the same programs.

Before JAX's own runtime is joined, every follower says over a control connection (TCP) who it is; the leader refuses
one with another model, other versions or without the secret, and then the whole group ends with the reason. From then
on the leader sends each fixed-shape call before it makes it itself, so that all processes reach the same collectives in
the same order.

    follower  Hello →                          leader  ← Welcome | Refusal
    follower  Ready →  (programs compiled)     leader  ← Run | Copy | Reset …, and the end of the connection is the end

**When one is lost.** A closed connection, or a call that takes longer than `STEP_LIMIT_S`, ends every process of the
group at once with code `LOST`: JAX's runtime cannot go on without a peer. Both ends watch on threads of their own,
since what waits inside a collective notices nothing; a host that is gone without closing anything is found by keepalive
within `SILENT_S`. The leader's clients see their connections close, which gRPC reports as UNAVAILABLE. Whoever started
the processes starts them again (`cloudcomplete serve --processes N` does).

Frames are four bytes of length and a MessagePack of one of the types here. Knows no scheduler and no weights.
"""

import contextlib
import hmac
import logging
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import jax
import msgspec
import numpy as np

from engine.errors import ConfigError, GroupError, StepError
from engine.prefix_store import BlockCopy
from engine.programs import Batch
from engine.runner import DeviceRunner
from engine.shapes import Shape

logger = logging.getLogger(__name__)

LOST = 70
"""Exit code of a process whose group is broken: start all of them again."""
SECRET = "CLOUDCOMPLETE_GROUP_SECRET"
"""Environment variable with what the processes of a group know and nobody else."""
JOIN_S = 120.0
"""Seconds that the processes have to find each other, and again to compile."""
STEP_LIMIT_S = 30.0
"""A call that takes longer will never end: a process stands still without having closed its connection."""
SILENT_S = 30
"""A host from which nothing came for so long, not even an answer to keepalive probes, is gone."""
_PROBE_S, _PROBES = 5, 4
_LOG_S = 5.0
"""Seconds that a process that ends may need to say why: whoever should read it may have stopped reading."""

_MAX_FRAME = 1 << 26


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A follower introduces itself."""

    process: int
    versions: dict[str, str]
    identity: str
    """Of the model, its types, the mesh and everything else that decides which programs run."""
    proof: bytes
    """HMAC-SHA256 of the leader's nonce and `process`, by the secret."""


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The follower belongs to the group."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It does not."""

    reason: str


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The follower's programs are compiled."""


class Run(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Call the program of a shape."""

    shape: tuple[int, int, int]
    arrays: list[bytes]
    """The batch's, in the order of its fields; their shapes and types follow from the step's shape."""


class Copy(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Move blocks of KV."""

    saves: list[tuple[int, int, int]]
    loads: list[tuple[int, int, int]]


class Reset(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Forget all KV."""


Message = Hello | Welcome | Refusal | Ready | Run | Copy | Reset


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """Which process of which group this is."""

    num_processes: int
    process: int
    """0 leads."""
    coordinator: str
    """`host:port` of JAX's coordinator, at the leader; the control connection is on the port after it."""
    secret: str

    @property
    def control_address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host, int(port) + 1


def membership(num_processes: int, process: int, coordinator: str) -> Membership:
    """Check what the command line says; raises ConfigError."""
    if not 0 <= process < num_processes:
        raise ConfigError(
            f"--process is {process} of {num_processes} processes; expected 0 (the leader) to {num_processes - 1}"
        )
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65535):
        raise ConfigError(f"--coordinator is {coordinator!r}; expected HOST:PORT of the leader, and PORT + 1 free too")
    secret = os.environ.get(SECRET, "")
    if not secret:
        raise ConfigError(f"{SECRET} is not set; expected the same long random text in every process of the group")
    return Membership(num_processes=num_processes, process=process, coordinator=coordinator, secret=secret)


def versions() -> dict[str, str]:
    """Return what must be the same in all processes."""
    import jaxlib.version

    return {"jax": jax.__version__, "jaxlib": jaxlib.version.__version__, "numpy": np.__version__}


def join_runtime(member: Membership) -> None:
    """Join JAX's distributed runtime, before anything asks for devices; raises GroupError."""
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which drains the server
    try:
        jax.distributed.initialize(
            coordinator_address=member.coordinator,
            num_processes=member.num_processes,
            process_id=member.process,
            initialization_timeout=int(JOIN_S),
        )
    except jax.errors.JaxRuntimeError as error:
        raise GroupError(
            f"JAX's runtime did not come up with its coordinator at {member.coordinator} ({error}); expected all "
            f"{member.num_processes} processes there within {JOIN_S:g} s; check that every host reaches that port"
        ) from None


class Connection:
    """One control connection; `send` from one thread, `receive` from one other."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S - _PROBE_S * _PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
        self._socket = sock
        self.is_closed = False
        """By this end."""
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Message)

    def send(self, message: Message) -> None:
        data = self._encoder.encode(message)
        self._socket.sendall(struct.pack(">I", len(data)) + data)

    def send_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> Message:
        """Return the next message; raises GroupError when the peer is gone or talks nonsense."""
        (size,) = struct.unpack(">I", self.receive_raw(4))
        if size > _MAX_FRAME:
            raise GroupError(f"a control message claims {size:,} bytes; expected at most {_MAX_FRAME:,}")
        try:
            message: Message = self._decoder.decode(self.receive_raw(size))
            return message
        except msgspec.ValidationError as error:
            raise GroupError(f"a control message is none of this version: {error}") from None

    def receive_raw(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self._socket.recv(size)
            except OSError as error:
                raise GroupError(f"the control connection broke: {error}") from None
            if not part:
                raise GroupError("the other process closed the control connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def wait_closed(self) -> None:
        """Wait until either end is closed or lost; reads nothing."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        poll.poll()

    def set_timeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def close(self) -> None:
        self.is_closed = True
        with contextlib.suppress(OSError):  # wake the thread that reads
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Leader:
    """The leader's end: admits followers, tells them every call, ends the process when one is lost."""

    def __init__(self, member: Membership, identity: str, *, on_lost: Callable[[str], None] | None = None) -> None:
        """Wait for all followers; raises GroupError when one is refused or does not come. `on_lost`: see `die`."""
        self._on_lost = on_lost or die
        self._connections: dict[int, Connection] = {}
        self._busy_since = 0.0
        self._is_closed = False
        try:
            self._admit_all(member, identity)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection: the followers end."""
        self._is_closed = True
        for connection in self._connections.values():
            connection.close()

    def _admit_all(self, member: Membership, identity: str) -> None:
        deadline = time.monotonic() + JOIN_S
        with socket.create_server(member.control_address) as server:
            while len(self._connections) < member.num_processes - 1:
                server.settimeout(max(0.1, deadline - time.monotonic()))
                try:
                    sock, _ = server.accept()
                except TimeoutError:
                    raise GroupError(
                        f"{member.num_processes - 1 - len(self._connections)} of {member.num_processes - 1} followers "
                        f"did not come within {JOIN_S:g} s; start them with the same --coordinator and {SECRET}"
                    ) from None
                self._admit(Connection(sock), member, identity)

    def wait_ready(self) -> None:
        """Wait until every follower has compiled its programs, then watch them."""
        for number, connection in self._connections.items():
            connection.set_timeout(JOIN_S * 5)
            message = connection.receive()
            if not isinstance(message, Ready):
                raise GroupError(f"process {number} sent {type(message).__name__}; expected Ready")
            connection.set_timeout(None)
            threading.Thread(target=self._watch, args=(number, connection), name="watch-follower", daemon=True).start()
        threading.Thread(target=self._watch_steps, name="watch-steps", daemon=True).start()

    def send(self, message: Message) -> None:
        """Tell every follower; a lost one ends the process."""
        self._busy_since = time.monotonic()
        for number, connection in self._connections.items():
            try:
                connection.send(message)
            except OSError as error:
                self._on_lost(f"process {number} is lost ({error})")

    def lose(self, reason: str) -> None:
        """End the process: after a call that failed here, nobody knows what it did elsewhere."""
        self._on_lost(reason)

    def done(self) -> None:
        """Note that the call that was sent has returned."""
        self._busy_since = 0.0

    def _admit(self, connection: Connection, member: Membership, identity: str) -> None:
        nonce = secrets.token_bytes(32)
        connection.set_timeout(10.0)
        try:
            connection.send_raw(nonce)
            hello = connection.receive()
        except (GroupError, OSError) as error:
            logger.warning("somebody connected to the control port and said nothing of use: %s", error)
            connection.close()
            return
        if not isinstance(hello, Hello) or not hmac.compare_digest(
            hello.proof, _proof(member.secret, nonce, hello.process)
        ):
            logger.warning("somebody without the group's secret connected to the control port and was sent away")
            connection.close()
            return
        reason = self._why_not(hello, member, identity)
        if reason is not None:
            connection.send(Refusal(reason=reason))
            connection.close()
            raise GroupError(reason)
        connection.send(Welcome())
        self._connections[hello.process] = connection

    def _why_not(self, hello: Hello, member: Membership, identity: str) -> str | None:
        if not 0 < hello.process < member.num_processes or hello.process in self._connections:
            return (
                f"a follower says it is process {hello.process}; expected each of 1 to {member.num_processes - 1} "
                "once; correct its --process"
            )
        if hello.versions != (mine := versions()):
            differing = [
                f"{name} {hello.versions.get(name)} (the leader has {mine[name]})"
                for name in mine
                if hello.versions.get(name) != mine[name]
            ]
            return f"process {hello.process} runs {', '.join(differing)}; install the same versions in every process"
        if hello.identity != identity:
            return (
                f"process {hello.process} has another model or other settings ({hello.identity}); expected "
                f"{identity}; start every process with the same model and the same configuration"
            )
        return None

    def _watch(self, number: int, connection: Connection) -> None:
        try:
            connection.receive_raw(1)
        except GroupError as error:
            if not self._is_closed:
                self._on_lost(f"process {number} is lost: {error}")

    def _watch_steps(self) -> None:
        while True:
            time.sleep(1.0)
            since = self._busy_since
            if since and time.monotonic() - since > STEP_LIMIT_S:
                self._on_lost(f"a step did not end within {STEP_LIMIT_S:g} s: a process of the group stands still")


class LeadingRunner(DeviceRunner):
    """The leader's runner: every call goes to the followers first."""

    def __init__(self, leader: Leader, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._leader = leader

    def warm_up(self, on_progress: Callable[[str], None]) -> dict[Shape, float]:
        self._programs.compile_all(on_progress)
        on_progress("waiting for the other processes")
        self._leader.wait_ready()
        return super().warm_up(on_progress)

    def copy_blocks(self, saves: Rows[BlockCopy], loads: Rows[BlockCopy]) -> None:
        self._leader.send(Copy(saves=[tuple(c) for c in saves], loads=[tuple(c) for c in loads]))
        try:
            super().copy_blocks(saves, loads)
        except StepError as error:
            self._leader.lose(str(error))
            raise
        self._leader.done()

    def reset(self) -> None:
        self._leader.send(Reset())
        super().reset()
        self._leader.done()

    def _call(self, shape: Shape, batch: Batch) -> np.ndarray:
        self._leader.send(
            Run(
                shape=(shape.rows, shape.width, shape.chunk),
                arrays=[np.asarray(array).tobytes() for array in jax.tree.leaves(batch)],
            )
        )
        try:
            chosen = super()._call(shape, batch)
        except StepError as error:
            self._leader.lose(str(error))
            raise
        self._leader.done()
        return chosen


class Follower:
    """A follower's end: joins, then makes the calls that it is told of."""

    def __init__(self, member: Membership, identity: str) -> None:
        """Raises GroupError when the leader is not there or refuses."""
        deadline = time.monotonic() + JOIN_S
        while True:
            try:
                sock = socket.create_connection(member.control_address, timeout=5.0)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise GroupError(
                        f"the leader at {member.coordinator} does not answer ({error}); start it, or correct "
                        "--coordinator"
                    ) from None
                time.sleep(0.2)
        sock.settimeout(JOIN_S)
        self._connection = Connection(sock)
        try:
            self._introduce(member, identity)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the group, which ends it."""
        self._connection.close()

    def _introduce(self, member: Membership, identity: str) -> None:
        nonce = self._connection.receive_raw(32)
        hello = Hello(
            process=member.process,
            versions=versions(),
            identity=identity,
            proof=_proof(member.secret, nonce, member.process),
        )
        try:
            self._connection.send(hello)
            answer = self._connection.receive()
        except (GroupError, OSError):
            raise GroupError(
                f"the leader sent this process away; expected the same {SECRET} in every process of the group"
            ) from None
        if isinstance(answer, Refusal):
            raise GroupError(answer.reason)

    def watch(self, on_lost: Callable[[str], None] | None = None) -> None:
        """End the process as soon as the leader is gone, whatever waits or compiles here by then; `on_lost`: see
        `die`."""
        threading.Thread(target=self._watch, args=(on_lost or die,), name="watch-leader", daemon=True).start()

    def _watch(self, on_lost: Callable[[str], None]) -> None:
        self._connection.wait_closed()
        if not self._connection.is_closed:
            on_lost("the leader is gone: its control connection ended")

    def follow(self, runner: DeviceRunner) -> None:
        """Make calls until the leader is gone; raises GroupError then."""
        self._connection.set_timeout(None)
        try:
            self._connection.send(Ready())
        except OSError as error:
            raise GroupError(f"the control connection broke: {error}") from None
        while True:
            message = self._connection.receive()
            if isinstance(message, Run):
                shape = Shape(*message.shape)
                runner.call(shape, _batch(runner.empty_batch(shape), message.arrays))
            elif isinstance(message, Copy):
                runner.copy_blocks([BlockCopy(*c) for c in message.saves], [BlockCopy(*c) for c in message.loads])
            elif isinstance(message, Reset):
                runner.reset()


def die(reason: str) -> None:
    """End this process at once: what waits inside a collective cannot be interrupted."""
    latest = threading.Timer(_LOG_S, os._exit, (LOST,))
    latest.daemon = True
    latest.start()
    logger.error("%s; this process ends, and the group has to be started again", reason)
    logging.shutdown()
    os._exit(LOST)


def _batch(like: Batch, arrays: list[bytes]) -> Batch:
    leaves, treedef = jax.tree.flatten(like)
    read = [np.frombuffer(data, one.dtype).reshape(one.shape) for data, one in zip(arrays, leaves, strict=True)]
    batch: Batch = jax.tree.unflatten(treedef, read)
    return batch


def _proof(secret: str, nonce: bytes, process: int) -> bytes:
    return hmac.digest(secret.encode(), nonce + struct.pack(">I", process), "sha256")
