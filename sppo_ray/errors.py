"""UserError: an error that the user can fix, printed without a stack trace."""

from __future__ import annotations

import errno


class UserError(Exception):
    """Bad input, impossible setting or missing resource.

    The message names the file, row, setting or worker and says what to do. The command line prints
    it and exits with `exit_code`; it never prints the stack.
    """

    exit_code = 2


class DiskFull(UserError):
    """A write failed because the disk or the quota is full."""

    exit_code = 4


def is_disk_full(error: BaseException) -> bool:
    """Whether the operating system refused a write because the disk or the quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
