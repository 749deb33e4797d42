"""The one exception that a user can cause; the command line turns it into a sentence and exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Something in the user's input is wrong: the message says what, where, and the way out."""


class DecodeError(UserError):
    """A video could not be opened or decoded; the message names the file and the reason."""
