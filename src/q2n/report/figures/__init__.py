"""Figures: one style, one question a file."""
