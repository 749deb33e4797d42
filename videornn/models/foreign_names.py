"""Names that other projects give the parts of a network: a format is a table of substitutions that turn them into ours.

Foreign names, of tensors and of anything else in foreign files, are known to this module alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

OUR_NAMES = r"(stem\.\d|res[2-5]\.\d+\.(conv\d|shortcut|attention))\..+|head\.(weight|bias)"
TWO_PATHWAYS = r"s\d\.pathway1_|t_(res|conv)|blocks\.\d\.multipathway_|(backbone\.)?(slow|fast)_path\."

Renames = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Format:
    """Names of one project: mark matches how a name starts in no other format; renames are applied one after another."""

    name: str
    mark: str
    renames: Renames

    def to_our_name(self, name: str) -> str:
        """Return our name of a tensor; the name of one that we do not have comes out half changed."""
        for pattern, ours in self.renames:
            name = re.sub(pattern, ours, name)
        return name


_LAYERS: Renames = tuple((rf"^layer{n}\.", f"res{n + 1}.") for n in (1, 2, 3, 4))
_DOWNSAMPLE: Renames = ((r"\.downsample\.0\.", ".shortcut.conv."), (r"\.downsample\.1\.", ".shortcut.norm."))
_NON_LOCAL: Renames = tuple(
    (rf"\.(conv_)?{theirs}(\.0)?(\.conv)?([._])", rf".{ours}\4")
    for theirs, ours in (("theta", "query"), ("phi", "key"), ("g", "value"), ("out", "out"))
)
_LETTERS = (("a", 1), ("b", 2), ("c", 3))


def _pytorchvideo(stages: Mapping[int, int]) -> Renames:
    return (
        *((rf"^blocks\.{block}\.res_blocks\.", f"res{stage}.") for block, stage in stages.items()),
        (r"^blocks\.0\.", "stem.0."),
        (r"^blocks\.\d\.proj\.", "head."),
        *((rf"\.branch2\.(conv|norm)_{letter}\.", rf".conv{n}.\1.") for letter, n in _LETTERS),
        (r"\.branch1_(conv|norm)\.", r".shortcut.\1."),
    )


def slowfast_clip(config: object) -> dict[str, int] | None:
    """Read the clips that a SlowFast config asks for, as our settings; None if it names none.

    Its frames are spread over NUM_FRAMES x SAMPLING_RATE, first and last included.
    """
    if not isinstance(config, str):
        return None
    found = [re.search(rf"(?m)^  {key}: (\d{{1,4}})$", config) for key in ("NUM_FRAMES", "SAMPLING_RATE")]
    frames, rate = (int(match[1]) if match else 0 for match in found)
    if not frames or not rate:
        return None
    apart = rate if frames == 1 else max(round((frames * rate - 1) / (frames - 1)), 1)
    return {"num_frames": frames, "temporal_stride": apart}


VIDEORNN = Format("videornn", r"res2\.0\.conv1\.(conv|norm)\.", ())
MMACTION2 = Format(
    "MMAction2",
    r"(backbone\.)?layer1\.0\.conv1\.conv\.",
    (
        (r"^backbone\.", ""),
        *_LAYERS,
        (r"^conv1\.", "stem.0."),
        (r"\.downsample\.", ".shortcut."),
        (r"\.non_local_block\.", ".attention."),
        (r"(\.conv_out)?\.bn\.", ".norm."),
        *_NON_LOCAL,
        (r"^cls_head\.fc_cls\.", "head."),
    ),
)
SLOWFAST = Format(
    "SlowFast",
    r"s2\.pathway0_res0\.",
    (
        (r"^s1\.pathway0_stem\.", "stem.0."),
        (r"^s(\d)\.pathway0_res(\d+)\.", r"res\1.\2."),
        (r"^s(\d)\.pathway0_nonlocal(\d+)\.", r"res\1.\2.attention."),
        *((rf"\.branch2\.{letter}(_bn)?\.", rf".conv{n}.conv\1.") for letter, n in _LETTERS),
        (r"\.branch1(_bn)?\.", r".shortcut.conv\1."),
        (r"\.(conv_)?bn\.", ".norm."),
        *_NON_LOCAL,
        (r"^head\.projection\.", "head."),
    ),
)
FORMATS = (
    VIDEORNN,
    Format(
        "torchvision image ResNet",
        r"layer1\.0\.conv1\.weight",
        (
            (r"^conv1\.", "stem.0.conv."),
            (r"^bn1\.", "stem.0.norm."),
            *_LAYERS,
            (r"\.conv(\d)\.", r".conv\1.conv."),
            (r"\.bn(\d)\.", r".conv\1.norm."),
            *_DOWNSAMPLE,
            (r"^fc\.", "head."),
        ),
    ),
    Format(
        "torchvision video ResNet",
        r"layer1\.0\.conv1\.0\.",
        (
            (r"^stem\.0\.", "stem.0.conv."),
            (r"^stem\.1\.", "stem.0.norm."),
            (r"^stem\.3\.", "stem.2.conv."),
            (r"^stem\.4\.", "stem.2.norm."),
            *_LAYERS,
            (r"\.conv(\d)\.0\.0\.", r".conv\1.conv.spatial."),
            (r"\.conv(\d)\.0\.1\.", r".conv\1.conv.norm."),
            (r"\.conv(\d)\.0\.3\.", r".conv\1.conv.temporal."),
            (r"\.conv(\d)\.0\.", r".conv\1.conv."),
            (r"\.conv(\d)\.1\.", r".conv\1.norm."),
            *_DOWNSAMPLE,
            (r"^fc\.", "head."),
        ),
    ),
    # in C2D and I3D a pool stands between blocks 1 and 3
    Format("PyTorchVideo C2D or I3D", r"blocks\.5\.res_blocks\.", _pytorchvideo({1: 2, 3: 3, 4: 4, 5: 5})),
    Format("PyTorchVideo Slow", r"blocks\.2\.res_blocks\.", _pytorchvideo({1: 2, 2: 3, 3: 4, 4: 5})),
    SLOWFAST,
    Format(
        "caffe2",
        r"res2_0_branch2a_w",
        (
            (r"^(res_)?conv1_", "stem.0.conv_"),
            (r"^nonlocal_conv(\d)_(\d+)_", r"res\1.\2.attention."),
            *((rf"^res(\d)_(\d+)_branch2{letter}_", rf"res\1.\2.conv{n}.conv_") for letter, n in _LETTERS),
            (r"^res(\d)_(\d+)_branch1_", r"res\1.\2.shortcut.conv_"),
            (r"\.(conv_)?bn_", ".norm_"),
            *_NON_LOCAL,
            (r"^pred_", "head_"),
            (r"_[ws]$", ".weight"),
            (r"_b$", ".bias"),
            (r"_rm$", ".running_mean"),
            (r"_riv$", ".running_var"),
        ),
    ),
    MMACTION2,
)
