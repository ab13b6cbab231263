"""The inner loops, one operation a file: plain torch, and faster code by device (dispatch.py)."""
