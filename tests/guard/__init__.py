"""The guard of a change that must not change a number: see `__main__`."""
