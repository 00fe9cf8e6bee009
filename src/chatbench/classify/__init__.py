"""Texts in, labels and confidences out."""
