"""Ranks: their numbers, what they exchange, which of them is lost, and the signals that stop them."""
