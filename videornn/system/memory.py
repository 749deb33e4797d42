"""Tell a lack of memory, on this machine or a GPU, from other errors."""

from __future__ import annotations

# messages of libraries that ask a full GPU for memory without torch's allocator
LACK_OF_MEMORY = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED")


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether an error says that the memory of this machine is not enough."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU, or of the host, is not enough."""
    import torch  # on demand: reading videos needs none of it

    if isinstance(error, torch.OutOfMemoryError) or lacks_memory(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LACK_OF_MEMORY)
