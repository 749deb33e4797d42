"""What surrounds training: foreign weights, exports, tables of networks, timing, the page of this installation."""
