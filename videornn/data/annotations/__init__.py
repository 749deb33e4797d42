"""Labelled videos of any list or folder: formats, class names, and where the files are."""
