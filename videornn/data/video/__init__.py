"""Videos as frames: opening files and streams, which frames are shown when, their pictures, and writing videos."""
