"""Training: the loop, its step, its optimizer, the checks before it and the records of it."""
