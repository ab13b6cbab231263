"""Gradient steps on what a quantized model stores in full precision: scales and norm weights."""
