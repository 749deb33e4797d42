"""What ends a command with a sentence: what the user can cause (exit code 2), and ranks that are lost (exit code 3).

And a sentence that ends nothing.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something in the user's input is wrong: the message, of one line or several, says what, where, and the way out."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class DecodeError(UserError):
    """A video could not be opened or decoded; the message names the file and the reason."""


class Remark(UserWarning):
    """Something that a user should know of a job that goes on; warnings of this category are sentences of ours."""


class RankFailure(RuntimeError):
    """A process of several died, hangs or was cut off: the message names it."""

    exit_code = 3
    topic = "a rank is lost"  # said once, by whichever rank is first
