"""The two programs inside the sandbox: one builds its walls, the other runs the code of a model between them.

``sandbox.py`` starts this file as a program with the standard library alone, so it imports nothing of ours. ``build``
leaves the namespaces of the machine for new ones and becomes ``serve``, which is this file again without any way
back: its source comes as an argument, since the folder it lies in is not visible there.

    build   new namespaces (network, mounts, processes, IPC, host name; users, unless root starts it), in which the
            file system has the Python installation and system libraries, read-only, and an empty folder in memory.
            Its child is the first process of the new process namespace, only waits, and is killed with its parent,
            as that is with the process of ours that started it. With the first process, the kernel kills every other.
    serve   reads {"code", "function", "calls"}, runs the code, calls the function, and writes a line for each result

The expected results are never here, so that no code can look them up.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO

NOBODY = 65534
NEW_NS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    *(0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000),
)
NOSUID, NODEV, BIND, RECURSIVE, PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MOUNT_SETATTR = 442  # the number of this system call on every architecture (Linux 5.12)
AT_FDCWD, AT_RECURSIVE, ATTR_READ_ONLY = -100, 0x8000, 0x1
SET_DEATH_SIGNAL, SET_DUMPABLE, SET_NO_NEW_PRIVILEGES = 1, 4, 38  # of prctl
WORK = "/tmp"  # the only folder that code may write to
WORK_BYTES, WORK_FILES = 16 << 20, 256
LIMITS = {  # of each process, soft and hard
    resource.RLIMIT_CPU: 2,  # seconds; right code takes milliseconds
    resource.RLIMIT_AS: 512 << 20,
    resource.RLIMIT_FSIZE: 1 << 20,
    resource.RLIMIT_NOFILE: 32,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NPROC: 1,  # no further processes and no threads, so that the other limits are those of the whole
}
# A clean environment and -P -s are what -I means, but -I would ignore the seed, and sets would differ in order.
FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8", "-c")
ENVIRONMENT = {"HOME": WORK, "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "TMPDIR": WORK}
SHARED_MEMORY = Path("/proc/sys/kernel/shmmni")  # of System V, which no limit of a process counts
MAX_TEXT = 200  # characters of an error
MAX_LINE = 100_000  # characters of a result

libc = ctypes.CDLL(None, use_errno=True)


def build(parent: int, top: str, interpreter: str, source: str, folders: Sequence[str]) -> NoReturn:
    """Enter new namespaces below the empty folder ``top`` and run ``serve`` with ``interpreter`` in them.

    ``parent``: the process of ours that waits; nothing in the namespaces outlives it. ``folders``: what is visible
    there, read-only, at the same paths. Exits with 1 and a line on stderr if a wall cannot be built.
    """
    root = os.geteuid() == 0
    user, group = os.geteuid(), os.getegid()
    _checked("new namespaces", libc.unshare, NEW_NS | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET | NEW_USER * (not root))
    if not root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")
    _checked("prctl", libc.prctl, SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)
    watched, kept = os.pipe()  # ends with this process, whose id the first of the namespace does not see
    first = os.fork()
    if first:
        os._exit(_ended(first))
    os.close(kept)
    _first(watched, top, folders)
    code = os.fork()
    if code:
        os._exit(_ended(code))
    if root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _checked("prctl", libc.prctl, SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for limit, value in LIMITS.items():
        resource.setrlimit(limit, (value, value))
    # With another user than root, the capabilities that mounting took are gone after this.
    os.execve(interpreter, [interpreter, *FLAGS, source, "serve"], ENVIRONMENT)


def _first(watched: int, top: str, folders: Sequence[str]) -> None:
    """Build the walls as the first process of the namespace, which nothing that the code does can free or stop."""
    _checked("prctl", libc.prctl, SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if select.select([watched], [], [], 0)[0]:  # the parent ended before that
        os._exit(1)
    socket.sethostname("sandbox")
    with suppress(OSError):  # older kernels let only root set it
        SHARED_MEMORY.write_text("0")
    _mount(top, folders)
    os.chroot(top)
    os.chdir(WORK)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # signals from inside reach a first process only if it handles them
    _checked("prctl", libc.prctl, SET_DUMPABLE, 0, 0, 0, 0)  # no process of the same user can trace it


def _ended(child: int) -> int:
    """Wait for ``child``; its exit code, or the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0x7F


def _mount(top: str, folders: Sequence[str]) -> None:
    """A small file system in memory at ``top``, with ``folders`` of the real one in it, read-only."""
    _checked("mounts of its own", libc.mount, None, b"/", None, RECURSIVE | PRIVATE, None)
    options = f"size={WORK_BYTES},nr_inodes={WORK_FILES},mode=755".encode()
    _checked("a file system in memory", libc.mount, b"tmpfs", top.encode(), b"tmpfs", NOSUID | NODEV, options)
    for folder in folders:
        place = top + folder
        if os.path.islink(folder):
            os.symlink(os.readlink(folder), place)
            continue
        if os.path.isdir(folder):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            Path(place).touch()
        _checked(f"a view of {folder}", libc.mount, folder.encode(), place.encode(), None, BIND | RECURSIVE, None)
        # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
        attributes = (ctypes.c_uint64 * 4)(ATTR_READ_ONLY | NOSUID | NODEV, 0, 0, 0)
        _checked(
            f"a read-only view of {folder} (Linux 5.12)", libc.syscall, ctypes.c_long(MOUNT_SETATTR), AT_FDCWD,
            place.encode(), AT_RECURSIVE, attributes, ctypes.c_size_t(32),
        )  # fmt: skip
    os.makedirs(top + WORK, exist_ok=True)
    os.chmod(top + WORK, 0o1777)


def _checked(what: str, call: Callable[..., int], *arguments: Any) -> None:
    if call(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def serve(asked: str, out: TextIO) -> None:
    """Run the code in ``asked`` and write a line for its start, and one for each call."""
    work = json.loads(asked)
    _tell(out, {"ready": True})
    module = sys.modules["answer"] = ModuleType("answer")  # which dataclasses look up
    names = vars(module)
    sys.stdout = sys.stderr = _Nothing()
    try:
        exec(compile(work["code"], "answer.py", "exec"), names)
        function = names.get(work["function"])
        if not callable(function):
            _tell(out, {"failed": f"it does not define {work['function']}"})
            return
    except BaseException as error:
        _tell(out, {"failed": _words(error)})
        return
    for arguments in work["calls"]:
        try:
            _tell(out, {"value": function(*arguments)})
        except BaseException as error:
            classes = [each.__name__[:MAX_TEXT] for each in type(error).__mro__]
            _tell(out, {"raised": classes, "text": _words(error)})


def _tell(out: TextIO, said: dict[str, Any]) -> None:
    line = json.dumps(said)
    if len(line) > MAX_LINE:
        line = json.dumps({"raised": ["object"], "text": "its result is too long"})
    out.write(f"{line}\n")
    out.flush()


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:MAX_TEXT]
    except BaseException:
        return "an error without a text"


class _Nothing:
    """A file that keeps nothing of what is printed."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.stdin.read(), os.fdopen(os.dup(1), "w", encoding="utf-8"))
        os._exit(0)  # whatever the code has registered for the end
    try:
        build(int(sys.argv[2]), sys.argv[3], sys.argv[4], Path(__file__).read_text(encoding="utf-8"), sys.argv[5:])
    except OSError as error:
        sys.exit(printed if (printed := error.strerror or str(error)).isprintable() else "the sandbox failed")
