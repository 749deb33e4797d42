"""Run networks on any video: whole, window by window, or live; timelines and drawn labels."""
