"""The sandbox's first process, which becomes the command.

`python -m overlayfs_demo.explain.sandbox_entry READY VIEW COMMAND [ARG…]`

It gives up writing outside the view, which is possible only after bubblewrap has mounted everything. Then it reports
on the descriptor READY that the sandbox is complete.
"""

from __future__ import annotations

import os
import signal
import sys

from overlayfs_demo.linux import confinement, landlock


def main() -> None:
    """Become the command. If that fails, exit with a shell's status: 126, or 127 if there is no such program."""
    ready, view, *command = sys.argv[1:]
    os.set_inheritable(int(ready), False)
    # /dev is harmless: it has only pseudo-terminals, and nodes that store no data.
    landlock.write_only_beneath([os.fsencode(view), b"/dev"])
    # A core dump handler would leave a report of a crash outside the sandbox.
    confinement.make_no_core_dumps()
    # Python ignores these signals, and ignored signals stay ignored across execve(2).
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.write(int(ready), b"ready\n")
    os.close(int(ready))
    try:
        os.execvp(command[0], command)
    except OSError as failure:
        print(f"{command[0]}: {failure.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(failure, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
