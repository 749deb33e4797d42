"""Checkpoints, the run folder that holds them, and networks loaded from them."""
