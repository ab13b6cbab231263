"""Settings of a quantization: what there is, what presets stand for, how they are read.

Nothing here but `owners` and `catalogue` imports torch: the command line answers usage errors from
the table of options (table.json, written by `catalogue`) before the work's libraries are loaded.
"""
