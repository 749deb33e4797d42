"""The embedded data sets: videos of drawn shapes with known classes and masks."""

from typing import Literal

TaskName = Literal["motion", "context", "objects"]
