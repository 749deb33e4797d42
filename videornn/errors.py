"""Errors that end a command with a sentence: those that users cause (exit code 2), and lost ranks (exit code 3).

Also a warning that ends nothing.
"""

from __future__ import annotations


class UserError(ValueError):
    """Raised for wrong input of the user; the message, of one or several lines, says what, where, and the way out."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class DecodeError(UserError):
    """Raised if a video cannot be opened or decoded; the message names the file and the reason."""


class Remark(UserWarning):
    """A warning that a user should read about a job that goes on; its message is a sentence of ours."""


class RankFailure(RuntimeError):
    """Raised if one of several ranks died, hangs or was cut off; the message names it."""

    exit_code = 3
    topic = "a rank is lost"  # said once, by the first rank to say it
