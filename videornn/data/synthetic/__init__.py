"""The embedded data sets: videos of drawn shapes whose class, and whose masks, are known."""

from typing import Literal

TaskName = Literal["motion", "context", "objects"]
