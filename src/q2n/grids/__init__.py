"""Real numbers to codes and back."""
