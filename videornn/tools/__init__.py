"""What surrounds training: foreign weights, exports, tables of networks, timing, the page of this installation."""

from typing import Literal

ExportFormat = Literal["onnx", "torch"]
