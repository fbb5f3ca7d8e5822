"""Counts the pixels of a tissue section in which an antibody stained brown: a small but real analysis."""
