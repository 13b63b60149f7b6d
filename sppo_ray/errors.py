"""The one error a user can make: a message with the culprit and the remedy, printed without a stack trace."""

from __future__ import annotations

import errno


class UserError(Exception):
    """Bad input, impossible setting or missing resource.

    The text names the file, row, setting or worker at fault and says what to do. The command line prints it
    and exits with `exit_code`; it never prints the stack.
    """

    exit_code = 2


class DiskFull(UserError):
    """No space, or no quota, is left where something has to be written."""

    exit_code = 4


def is_disk_full(error: BaseException) -> bool:
    """Whether the operating system refused a write for want of space or of quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
