"""Our lists and videos for a pipeline of PyTorchVideo: what its LabeledVideoDataset takes."""

from __future__ import annotations

from typing import Any

from pytorchvideo.data.labeled_video_paths import LabeledVideoPaths
from pytorchvideo.data.video import VideoPathHandler

from videornn.data.annotations.load import load_videos
from videornn.data.video.base import FrameVideo
from videornn.data.video.decoders import open_video


class FrameVideoHandler(VideoPathHandler):
    """Open videos, and folders of frames, as open_video does: `dataset.video_path_handler = FrameVideoHandler()`."""

    def video_from_path(
        self, filepath: str, decode_audio: bool = False, decoder: str = "pyav", fps: float = 30
    ) -> FrameVideo:
        """Open a video, without sound; raises DecodeError, on which a LabeledVideoDataset tries the next one."""
        return open_video(filepath)


def labeled_video_paths(source: str, **options: Any) -> LabeledVideoPaths:
    """Read any list or folder that load_videos knows, with its options, as PyTorchVideo's paths and labels."""
    table = load_videos(source, **options)
    return LabeledVideoPaths([table[index] for index in range(len(table))])
