"""Training: the loop, its step, its optimizer, what is checked before it and what is written down."""
