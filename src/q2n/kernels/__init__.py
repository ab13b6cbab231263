"""The inner loops, one operation per file: plain torch, and faster code by device (dispatch.py)."""
