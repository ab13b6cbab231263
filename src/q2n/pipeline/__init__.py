"""From block inputs to quantized blocks on disk: passes, the sequential loop, resume."""
