"""Measuring a model, full precision or quantized."""
