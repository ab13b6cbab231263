"""Rewrites of a model that keep its function: rotations, and what has to run beside the weights."""
