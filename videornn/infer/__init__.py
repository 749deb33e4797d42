"""`videornn infer`: videos whole, window by window, live."""

from videornn.infer.job import Job, Wanted
from videornn.infer.screen import Screen

__all__ = ["Job", "Screen", "Wanted"]
