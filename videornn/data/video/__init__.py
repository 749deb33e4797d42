"""Videos as frames: what opens a file or a stream, which frames are shown when, their pictures, and how one is written."""
