"""Which videos are sound, and videos encoded anew so that clips of them are cheap."""
