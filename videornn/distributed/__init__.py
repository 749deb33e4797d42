"""Ranks: who they are, what they tell one another, which of them is lost, and the signals that stop them."""
