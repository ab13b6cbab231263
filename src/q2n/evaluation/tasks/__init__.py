"""Tasks of lm-evaluation-harness, in process, on any model that q2n loads."""
