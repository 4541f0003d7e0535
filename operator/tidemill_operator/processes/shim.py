"""Prepares a child process: changes the user, sets the death signal, and starts the child's program.

This is a separate program, because a `preexec_fn` can deadlock if the parent has threads. With `python -I -S`,
`PYTHON*` variables and site-packages do not affect the program. The user is changed first, because a change of
credentials clears the death signal on Linux.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Replace this process by a command, given as PARENT_PID DEATH_SIGNAL USER-or-empty COMMAND…."""
    parent, death_signal, user, *command = arguments
    if user:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        os.environ["HOME"] = entry.pw_dir
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):  # if the parent died before prctl(), the death signal never comes
        sys.exit(1)
    # Python ignores these two signals, and child programs inherit ignored signals
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
