"""One live subprocess: its process group, its frames, the last lines of its stderr."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import anyio
import anyio.abc

from emiliad.executor.stacks import readable
from emiliad.wire import Decoder, Message, encode

REAP_S = 10.0  # a process in an uninterruptible call (a sick GPU, a dead disk) is not waited for
STDERR_LINES = 500  # holds the stacks of a hundred threads, and what came before
LINE_BYTES = 2_000  # longer lines (a tensor, a progress bar) are cut

_READ_BYTES = 65536  # a pipe's capacity on Linux
_LAST_READS = 16  # after the end: what the pipe still holds, even if someone keeps writing


class Child:
    """A subprocess that speaks `emiliad.wire` on its stdin and stdout.

    The pipes are our own, not asyncio's: with asyncio's, waiting for the process also waits for
    whoever inherited its stdout. The fork happens in the thread of the event loop, which must be
    one that lives as long as the child (PR_SET_PDEATHSIG follows the thread): the main one.
    """

    def __init__(self, process: anyio.abc.Process, stdin: int, stdout: int, log: _Log) -> None:
        self._process = process
        self._stdin: int | None = stdin
        self._stdout: int | None = stdout
        self._log = log
        self._decoder = Decoder()
        self._messages: Iterator[Message] = iter(())  # of what was read last

    @classmethod
    async def spawn(
        cls, command: Sequence[str], env: Mapping[str, str], on_line: Callable[[str], None] | None
    ) -> Self:
        """Starts a process in a session of its own. Raises OSError."""
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        ours_err, theirs_err = os.pipe()
        try:
            with anyio.CancelScope(shield=True):  # a process is either ours or not there
                process = await anyio.open_process(
                    command,
                    stdin=theirs_in,
                    stdout=theirs_out,
                    stderr=theirs_err,
                    env=env,
                    start_new_session=True,
                )
        except BaseException:
            for ours in (ours_in, ours_out, ours_err):
                os.close(ours)
            raise
        finally:
            for theirs in (theirs_in, theirs_out, theirs_err):
                os.close(theirs)
        os.set_blocking(ours_in, False)
        os.set_blocking(ours_out, False)
        return cls(process, ours_in, ours_out, _Log(ours_err, on_line))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Of the process once it has ended; negative: the signal that killed it."""
        return self._process.returncode

    @property
    def tail(self) -> str:
        """The end of its stderr, made readable; complete once `kill` has returned."""
        return readable(self._log.lines)

    async def send(self, message: Message) -> None:
        """Writes one frame; a child that is gone is found out by `receive`."""
        frame = memoryview(encode(message))
        with suppress(BrokenPipeError):
            while frame and self._stdin is not None:
                try:
                    frame = frame[os.write(self._stdin, frame) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._stdin)

    async def receive(self) -> Message | None:
        """The next message; None when the child is gone, or its stdout is closed.

        Raises ProtocolError.
        """
        while (message := next(self._messages, None)) is None:
            data = await self._read()
            if not data:
                return None
            self._messages = self._decoder.feed(data)
        return message

    async def _read(self) -> bytes:
        if self._stdout is None:
            return b""
        async with anyio.create_task_group() as group:

            async def until_exit() -> None:
                await self._process.wait()
                group.cancel_scope.cancel()

            group.start_soon(until_exit)
            with suppress(anyio.ClosedResourceError):
                await anyio.wait_readable(self._stdout)
            group.cancel_scope.cancel()
        return self._taken()

    def _taken(self) -> bytes:
        if self._stdout is None:  # closed by `kill` meanwhile
            return b""
        try:
            return os.read(self._stdout, _READ_BYTES)
        except BlockingIOError:  # gone, but a fork of it still holds the pipe
            return b""

    @property
    def memory_bytes(self) -> int:
        """Its resident memory; 0 when it is gone, or where the system does not tell."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):  # a zombie's file is empty
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    async def wait(self) -> None:
        """Waits for the process to end."""
        await self._process.wait()

    def hang_up(self) -> None:
        """Ends its stdin: it finishes its task and exits."""
        if self._stdin is not None:
            anyio.notify_closing(self._stdin)
            os.close(self._stdin)
            self._stdin = None

    def dump(self) -> None:
        """Makes it write the stack of each thread to stderr, even while a C call blocks it."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    async def kill(self) -> None:
        """Kills its whole process group, reaps it and closes the pipes; cannot be cancelled."""
        # Its programs (ffmpeg) may outlive it, so the group is killed in any case. The group's
        # number is not given to another process while it has members.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with anyio.move_on_after(REAP_S, shield=True):
            await self._process.wait()
        self._release()

    def _release(self) -> None:
        self.hang_up()
        if self._stdout is not None:
            anyio.notify_closing(self._stdout)
            os.close(self._stdout)
            self._stdout = None
        self._log.close()


class _Log:
    """Drains a pipe into its last lines, whatever the tasks of the event loop are doing."""

    def __init__(self, pipe: int, on_line: Callable[[str], None] | None) -> None:
        self._pipe: int | None = pipe
        self._on_line = on_line
        self.lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(pipe, False)
        self._loop.add_reader(pipe, self._drain)

    def _drain(self) -> bool:
        """Takes what is there; returns whether there may be more."""
        if self._pipe is None:
            return False
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._pipe)
            return False
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) > LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        self._add(lines)
        return True

    def _add(self, lines: list[bytes]) -> None:
        for line in lines:
            text = line[:LINE_BYTES].decode(errors="replace").rstrip()
            if text:
                self.lines.append(text)
                if self._on_line is not None:
                    self._on_line(text)

    def close(self) -> None:
        """Takes what is still in the pipe and closes it."""
        if self._pipe is None:
            return
        for _ in range(_LAST_READS):
            if not self._drain():
                break
        self._add([self._rest])
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)
        self._pipe = None
