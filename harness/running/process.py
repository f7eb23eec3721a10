"""The parent's end of a worker: start it, ask it, wait no longer than agreed, and be rid of it for certain."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.record import Status

_LOG_TAIL_LINES = 3
_DEATH_S = 5.0  # a process that closed its pipe gets this long to end by itself, for its exit code's sake
_HEARTBEAT_S = 0.25  # how often to look whether a silent worker still lives: its children may hold the pipe open


class WorkerFailure(Exception):
    """A worker that is no more: with the status and the reason that its row gets."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Origin:
    """Where a worker's interpreter and modules come from, if not from this process's (`harness.gate`)."""

    python: str  # the interpreter, whose environment has the libraries
    search_path: tuple[str, ...]  # directories that modules are looked for in, before that environment's

    def command(self) -> list[str]:
        """Without the current directory in the search path, which belongs to another tree."""
        return [self.python, "-P", "-m", "harness.worker"]

    def environment(self) -> dict[str, str]:
        """This process's variables, but for the search path."""
        return {**os.environ, "PYTHONPATH": os.pathsep.join(self.search_path)}


class Worker:
    """A process of its own group, which answers one request at a time. After any failure it is killed, never reused."""

    def __init__(self, log: Path, origin: Origin | None = None) -> None:
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0  # earlier workers' words
        self._received = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                origin.command() if origin else [sys.executable, "-m", "harness.worker"],
                env=origin.environment() if origin else None,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # so that its group, with whatever it started, can be killed
            )
        self._requests = _pipe(self._process.stdin)
        self._answers = _pipe(self._process.stdout)
        os.set_blocking(self._answers.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process.poll() is None

    def request(self, what: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer. Raises WorkerFailure, after which the worker is gone."""
        self.send(what, **arguments)
        return self.receive(what, timeout_s)

    def send(self, what: str, **arguments: Any) -> None:
        """Sends a request without waiting, so that several workers can be busy at once."""
        with suppress(BrokenPipeError):  # it died; receive says how
            self._requests.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            self._requests.flush()

    def tell(self, what: str, **arguments: Any) -> None:
        """Sends a request that gets no answer; its failure is in the log alone."""
        self.send(what, answered=False, **arguments)

    def receive(self, what: str, timeout_s: float) -> dict[str, Any]:
        """The answer to the last request. Raises WorkerFailure."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            dead = self._process.poll() is not None  # asked before reading, so that its last words are not missed
            left = deadline - time.monotonic()
            block = self._answers.read(1 << 16) if self._selector.select(max(0.0, min(left, _HEARTBEAT_S))) else None
            if block:
                self._received += block
            elif dead or block == b"":
                raise WorkerFailure(Status.CRASHED, self._obituary(what))
            elif left <= 0:
                self.kill()
                raise WorkerFailure(Status.TIMEOUT, f"no answer to '{what}' within {timeout_s:g} s")
        line, _, self._received = self._received.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as error:
            self.kill()
            raise WorkerFailure(Status.CRASHED, f"answered '{what}' with something else than JSON") from error
        if "error" in answer:
            self.kill()
            raise WorkerFailure(Status(answer["error"]["status"]), answer["error"]["reason"])
        result: dict[str, Any] = answer["result"]
        return result

    def kill(self) -> None:
        """Ends the worker and everything in its process group. Safe to call twice."""
        with suppress(ProcessLookupError):  # the group may be gone already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        for pipe in (self._requests, self._answers):
            with suppress(BrokenPipeError):  # closing flushes what nobody will read
                pipe.close()

    close = kill  # so that contextlib.closing ends it

    def _last_words(self) -> str:
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    def _obituary(self, what: str) -> str:
        """How it died, and its last words."""
        with suppress(subprocess.TimeoutExpired):  # it may have closed the pipe and live on
            self._process.wait(_DEATH_S)
        self.kill()
        code = self._process.returncode
        if code < 0:
            name = signal.Signals(-code).name
            how = f"killed by {name}" + (", which may be the kernel's out-of-memory killer" if code == -9 else "")
        else:
            how = f"exited with code {code}"
        tail = [line for line in self._last_words().splitlines() if line.strip()][-_LOG_TAIL_LINES:]
        return f"{how} during '{what}'" + (f"; its last lines: {' | '.join(tail)[-300:]}" if tail else "")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:  # Popen was asked for pipes; this convinces the type checker
        raise AssertionError("no pipe")
    return stream
