"""The version of q2n."""

__version__ = "0.1.0"
