"""Labelled videos of any list or folder: which formats there are, what the classes are called, where the files lie."""
