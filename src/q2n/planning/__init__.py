"""What a run will need: memory, disk and time by stage, from shapes and settings alone."""
