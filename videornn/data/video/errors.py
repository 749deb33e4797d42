"""The boundary around a video: whatever reading it raises is that video's fault, and costs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from videornn.errors import DecodeError, UserError
from videornn.system.memory import lacks_memory


@contextmanager
def errors_of_video(path: str) -> Iterator[None]:
    """Turns whatever is raised inside into a DecodeError of the video; for code that only files can make fail.

    Files are odd in more ways than libraries have exceptions for: a size of nothing divides by zero, a time of 64 bits
    overflows, a bomb takes all memory. What is a sentence already stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DecodeError(f"{path}: {_fault(error)}") from error


@contextmanager
def memory_of_video(path: str) -> Iterator[None]:
    """Turns a lack of memory inside into a DecodeError of the video; all else is raised, for it may be a fault of ours."""
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
