"""The boundary around a video: any error of reading it is blamed on that video and harms nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from videornn.errors import DecodeError, UserError
from videornn.system.memory import lacks_memory


@contextmanager
def errors_of_video(path: str) -> Iterator[None]:
    """Turn any error raised inside into a DecodeError of the video; for code that only files can make fail.

    Files are odd in more ways than libraries have exceptions for: an empty size divides by zero, a time of 64 bits
    overflows, a bomb takes all memory. Errors that are sentences already stay as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DecodeError(f"{path}: {_fault(error)}") from error


@contextmanager
def memory_of_video(path: str) -> Iterator[None]:
    """Turn a lack of memory inside into a DecodeError of the video; other errors pass, as they may be our own fault."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise DecodeError(f"{path}: {_fault(error)}") from error


def _fault(error: Exception) -> str:
    words = (str(error).splitlines() or [""])[0]
    if lacks_memory(error):
        return f"its frames do not fit into memory ({words or 'no more is known'})"
    return f"cannot be decoded ({type(error).__name__}{f': {words}' if words else ''})"
