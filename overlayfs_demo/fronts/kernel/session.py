"""The front on /dev/fuse without a library: a connection to the kernel, and the threads that serve it.

Threads take turns (see `turns`): one reads requests from the device, lets `Requests` answer them, and writes the
replies. A thread that gets a long request lets another thread take its turn, so that copy-ups do not make the other
callers wait.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts import attach
from overlayfs_demo.fronts.front import View
from overlayfs_demo.fronts.keeper import Keeper, UselessError
from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.agreement import WANTED, agree
from overlayfs_demo.fronts.kernel.asking import Handler, patient
from overlayfs_demo.fronts.kernel.handlers import Requests
from overlayfs_demo.fronts.kernel.in_flight import InFlight, PostponedError, postpone
from overlayfs_demo.fronts.kernel.invalidation import Notices
from overlayfs_demo.fronts.kernel.io_modes import IoModes
from overlayfs_demo.fronts.kernel.ledger import Ledger
from overlayfs_demo.fronts.kernel.overdue import Overdue
from overlayfs_demo.fronts.kernel.patience import Patience
from overlayfs_demo.fronts.kernel.request import Payload, Request
from overlayfs_demo.fronts.kernel.resent import Resent
from overlayfs_demo.fronts.kernel.services import Services
from overlayfs_demo.fronts.kernel.shared_records import DamagedError
from overlayfs_demo.fronts.kernel.turns import ParkedError, Turn, Turns
from overlayfs_demo.fronts.kernel.wire import Opcode
from overlayfs_demo.linux import mountinfo, mounting, syscalls
from overlayfs_demo.linux.passthrough import Passthrough
from overlayfs_demo.linux.read_ahead import set_read_ahead
from overlayfs_demo.overlay import interruption
from overlayfs_demo.overlay.node import Node

_log = logging.getLogger(__name__)

MAX_WRITE = 1 << 20
_SERVING = 1
# A thread takes about 100 KB, and there are only as many as were ever needed at a time.
_LONG = 256
# As many are there from the beginning.
_THREADS = 3
_BACKGROUND = 64
_DESCRIPTORS = 16384
# Seconds to wait before reading the next request if the kernel was out of memory.
_PAUSE = 0.1
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_HEAD, _pack = wire.REPLY.size, wire.REPLY.pack
# How long the threads may take to end, in seconds. One that waits for a layer may never end.
_TIMEOUT = 10.0


class KernelFront:
    """Our own front on /dev/fuse (`--front kernel`)."""

    is_resumable = True

    def serve(self, view: View, ready: Callable[[], None], keeper: Keeper) -> None:
        """Serve the view, see `Front.serve`."""
        with contextlib.ExitStack() as held:
            is_first = must_detach = keeper.device is None
            fd = attach.attach(view) if keeper.device is None else keeper.device
            held.callback(os.close, fd)
            try:
                if is_first:
                    keeper.keep_device(fd)
                session = Session(fd, view, keeper)
                held.callback(session.close)
                session.start()
                if is_first:
                    _read_far_ahead(view.mountpoint)
                ready()
                keeper.serving(resumable=session.is_resumable)
                must_detach = not keeper.is_supervised
                session.wait()
            except BaseException:
                # A mount that nobody serves must not remain, and the threads end only when it is unmounted.
                if must_detach:
                    with contextlib.suppress(OSError, MountError):
                        attach.detach(view.mountpoint, lazy=True)
                raise


def _read_far_ahead(mountpoint: bytes) -> None:
    """Let the kernel ask for as much at once as a reply can hold, which makes reading a large file cheaper.

    FUSE can only lower what the kernel reads ahead by default. Where it cannot be raised, reading is merely slower.
    """
    mounted = mountinfo.top(mountpoint)
    try:
        if mounted is not None and os.geteuid() == 0:
            set_read_ahead(mounted.device, MAX_WRITE)
    except OSError as error:
        _log.debug("the kernel reads ahead as far as it does by default: %s", error)


class _Buffers:
    """The memory of one serving thread. Raises MemoryError.

    It is mapped, not a bytearray: the kernel provides a page only when it is first used, and most requests are short.
    """

    __slots__ = ("reply", "request")

    def __init__(self) -> None:
        try:
            self.request = memoryview(mmap.mmap(-1, MAX_WRITE + 4096, _PRIVATE))
            self.reply = memoryview(mmap.mmap(-1, MAX_WRITE, _PRIVATE))
        except OSError as error:
            raise MemoryError from error


class Session:
    """One connection to the kernel. The caller that created it closes the device."""

    def __init__(self, fd: int, view: View, keeper: Keeper | None = None) -> None:
        """Prepare to serve. The kernel may have talked to another process before, which has left its ledger.

        Raises MountError if that is damaged.
        """
        self._device = fd
        keeper = keeper or Keeper()
        try:
            self._ledger = Ledger(keeper.memory)
        except DamagedError as error:
            raise UselessError(f"the ledger of the daemon before is damaged: {error}") from error
        # With FUSE_POSIX_ACL the kernel checks permissions even if default_permissions was not given.
        self._wanted = WANTED if view.checked else WANTED & ~wire.POSIX_ACL
        if not view.passthrough:
            self._wanted &= ~wire.PASSTHROUGH
        if view.flags & mounting.MS_STRICTATIME:
            self._wanted &= ~wire.CACHE_SYMLINKS  # Each reading must be noted, so it must reach us.
        self._asked = view.asked
        self._turns = Turns(_SERVING, _LONG, self._start_thread)
        self._in_flight = InFlight(self._turns, self._fail)
        self._overdue = Overdue(self._turns, self._in_flight)
        self._polling = view.polling
        # Before the handlers are set up, because their cache policy depends on whether changes are noticed.
        follows = view.timeout is None and view.overlay.external_changes.start()
        self._io_modes = IoModes()
        services = Services(
            self._turns.pass_on,
            lambda: self._turns.any_long,
            postpone,
            self._store,
            self._refresh,
            self._distrust,
            self._io_modes,
        )
        self._requests = Requests(view, services, self._ledger, keeper)
        self._answer_resent: Handler = Resent(self._requests, view.overlay, self._ledger).answer
        self._notices: Notices | None = None
        if follows:
            self._notices = Notices(fd, view.overlay.external_changes, self._requests.nodes, self._requests.directories)
        self._names = {opcode: handler.__name__ for opcode, handler in self._requests.handlers.items()}
        if view.overlay.may_stall:
            handlers = self._requests.handlers
            handlers.update({opcode: patient(handler) for opcode, handler in handlers.items()})
            self._answer_resent = patient(self._answer_resent)
        self._numbers = count(1)
        self._threads: set[threading.Thread] = set()
        self._failure: BaseException | None = None

    def close(self) -> None:
        """Send nothing more, and release what the kernel did not release. The view is already unmounted."""
        self._overdue.close()
        self._turns.end()
        for turn in self._turns.all:
            turn.call.leave(turn.call.number)  # Nobody waits for a copy-up any more.
        end = time.monotonic() + _TIMEOUT
        for thread in list(self._threads):
            thread.join(max(0.0, end - time.monotonic()))
        if self._notices is not None:
            self._notices.close()
        self._requests.close()

    def start(self) -> None:
        """Answer the first request, INIT, which settles the protocol, or go on where another process ended; then serve.

        On return the memory for serving one caller after the other has been allocated. Raises MountError.
        """
        before = self._ledger.protocol
        agreed = before or self._begin()
        if agreed.flags & wire.PASSTHROUGH:
            self._io_modes.allow(Passthrough(self._device))
        if before is not None:
            self._requests.files.open_files.resume()
            # What the process before has read and not answered. This comes before the first reading, because what this
            # process has read would be sent again, too.
            self._send(wire.notice_head(wire.NOTIFY_RESEND, 0))

        os.set_blocking(self._device, False)
        syscalls.reserve_descriptors(_DESCRIPTORS)
        self._start_threads(is_first=before is None)

    @property
    def is_resumable(self) -> bool:
        """Whether another process can go on where this one ends, because the kernel can send its requests again."""
        agreed = self._ledger.protocol
        return agreed is not None and bool(agreed.flags & wire.HAS_RESEND)

    def _begin(self) -> wire.Protocol:
        buffer = _Buffers().request
        size = os.readv(self._device, [buffer])
        header = wire.HEADER.unpack_from(buffer)
        body = buffer[wire.HEADER.size : size]
        if header[1] != Opcode.INIT:
            raise MountError(f"the kernel began with FUSE request {header[1]} instead of INIT")
        agreed = agree(body, self._wanted)
        self._ledger.protocol = agreed
        self._reply(header[2], wire.init_reply(agreed, _BACKGROUND, MAX_WRITE))
        return agreed

    def _start_threads(self, *, is_first: bool) -> None:
        if not self._turns.start(_THREADS):
            raise MountError("not enough memory to serve a view", "see 'ulimit -v' and 'ulimit -u'")
        self._overdue.start()
        if self._notices is not None:
            self._notices.start(taken_over=not is_first)

    def wait(self) -> None:
        """Return when the view is unmounted. Raises what ended a thread."""
        self._turns.wait_for_end()
        if self._failure is not None:
            raise self._failure

    def _start_thread(self) -> bool:
        """Start one more thread; return False if there is no memory for it."""
        try:
            thread = threading.Thread(
                target=self._loop, args=(_Buffers(),), name=f"fuse-{next(self._numbers)}", daemon=True
            )
            self._threads.add(thread)
            thread.start()
        except (MemoryError, RuntimeError) as error:  # RuntimeError is "can't start new thread".
            _log.warning("cannot start another thread: %s", error)
            return False
        return True

    def _loop(self, buffers: _Buffers) -> None:
        turn = self._turns.enter()
        interruption.adopt(turn.call)
        try:
            self._serve(turn, buffers)
        except BaseException as error:
            # If a thread died silently, callers would wait for ever.
            self._failure = error
            self._turns.end()
            raise
        finally:
            self._turns.leave()
            self._threads.discard(threading.current_thread())

    def _serve(self, turn: Turn, own: _Buffers) -> None:
        buffer, room = own.request, own.reply
        buffers = [buffer]
        fd, unpack, start = self._device, wire.HEADER.unpack_from, wire.HEADER.size
        resume, take = partial(self._resume, room), self._turns.take
        # For a moment, a thread that was relieved of its turn may wait beside the one that has it.
        wait = Patience(fd, polling=self._polling).wait
        while take(resume):
            slept = wait()
            try:
                size = os.readv(fd, buffers)
            except BlockingIOError:
                continue  # A thread that has just been relieved of its turn was quicker.
            except OSError as error:
                if error.errno == errno.ENODEV:
                    self._turns.end()
                    return  # Unmounted.
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # The request was interrupted before we saw it.
                if error.errno not in (errno.ENOMEM, errno.EIO):
                    raise
                _log.warning("cannot read a request: %s", error.strerror)
                time.sleep(_PAUSE)
                continue
            request = Request(unpack(buffer), buffer[start:size], room)
            turn.begin(request)
            if slept:
                self._overdue.wake()
            self._answer(request)

    def _answer(self, request: Request) -> None:
        handler = self._handler(request)
        if handler is None:
            if request.opcode == Opcode.INTERRUPT:
                self._in_flight.interrupt(*wire.INTERRUPT_IN.unpack_from(request.body))
            elif request.opcode != Opcode.DESTROY:
                # The kernel stops sending what gets ENOSYS.
                self._fail(request.unique, errno.ENOSYS)
            return
        self._asked[self._names[request.opcode]] += 1
        self._carry_out(request, handler)

    def _handler(self, request: Request) -> Callable[[Request], Payload | None] | None:
        handler = self._requests.handlers.get(request.opcode)
        return handler if handler is None or not request.is_resent else self._answer_resent

    def _resume(self, room: memoryview, request: Request) -> None:
        """Begin a parked request again, with this thread's `room`."""
        request.room = room
        handler = self._handler(request)
        assert handler is not None
        self._carry_out(request, handler)

    def _carry_out(self, request: Request, handler: Callable[[Request], Payload | None]) -> None:
        try:
            payload = handler(request)
        except ParkedError:
            request.own_body()
            if not self._turns.park(request):
                self._carry_out(request, handler)
            return
        except PostponedError as postponed:
            request.own_body()
            self._in_flight.put_aside(request, postponed.copy)
            return
        except OSError as error:
            if not interruption.current().has_left:  # Then it was told so.
                self._fail(request.unique, error.errno or errno.EIO)
        except Exception:  # noqa: BLE001 - whatever went wrong, the caller must get an answer
            _log.exception("FUSE request %s failed", request.opcode)
            self._fail(request.unique, errno.EIO)
        else:
            if payload is not None:
                self._reply(request.unique, payload)
        if request.afterwards is not None and self._turns.try_pass_on():
            request.afterwards()

    def _reply(self, unique: int, payload: Payload) -> None:
        head = _pack(_HEAD + len(payload), 0, unique)
        if not (self._send(head + payload) if type(payload) is bytes else self._send_parts([head, payload])):
            # The caller must get an answer. (It already has EIO if the kernel found ours invalid.)
            self._fail(unique, errno.EIO)

    def _fail(self, unique: int, code: int) -> None:
        self._send(_pack(_HEAD, -code, unique))

    def _store(self, nodeid: int, data: memoryview) -> None:
        """Put the first bytes of a file into the kernel's page cache: FUSE_NOTIFY_STORE."""
        store = wire.NOTIFY_STORE_OUT.pack(nodeid, 0, len(data))
        self._send_parts([wire.notice_head(wire.NOTIFY_STORE, len(store) + len(data)), store, data])

    def _refresh(self, node: Node) -> None:
        """Make the kernel ask again for a node's attributes.

        Any thread may send this, because the kernel takes no lock for it that a caller may hold.
        """
        nodeid = self._requests.nodes.id_of(node)
        if nodeid is not None:
            body = wire.inval_inode(nodeid, data=False)
            self._send(wire.notice_head(wire.NOTIFY_INVAL_INODE, len(body)) + body)

    def _distrust(self, nodeid: int) -> None:
        """Make the kernel forget what it has cached of a node."""
        if self._notices is not None:
            self._notices.distrust(nodeid)

    def _send(self, message: bytes) -> bool:
        """Write one message; return False, and log it, if the kernel does not accept it. Serving continues."""
        try:
            os.write(self._device, message)
        except OSError as error:
            return _is_harmless(error)
        return True

    def _send_parts(self, parts: list[Payload]) -> bool:
        """Do the same for a message in parts. Its data is not copied, but a short message costs more this way."""
        try:
            os.writev(self._device, parts)
        except OSError as error:
            return _is_harmless(error)
        return True


def _is_harmless(error: OSError) -> bool:
    """Return whether the kernel did not need a message. If it did, log why it does not accept the message."""
    # ENOENT: the caller was interrupted and no longer waits. ENODEV: the view was unmounted in the meantime.
    if error.errno in (errno.ENOENT, errno.ENODEV):
        return True
    _log.warning("cannot write to %s: %s", attach.DEVICE, error.strerror)
    return False
