"""The one error a user can make: a message with the culprit and the remedy, printed without a stack trace."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, impossible setting or missing resource.

    The text names the file, row, setting or worker at fault and says what to do. The command line prints it
    and exits with `exit_code`; it never prints the stack.
    """

    exit_code = 2
