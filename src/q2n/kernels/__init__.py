"""The inner loops: one operation a file, for CPUs and for other devices."""
