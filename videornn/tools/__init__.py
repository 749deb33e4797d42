"""Tools around training: foreign weights, exports, tables of networks, timing, a check of the installation."""

from typing import Literal

ExportFormat = Literal["onnx", "torch"]
