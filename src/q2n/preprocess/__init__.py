"""What changes a model's full-precision weights before it is quantized."""
