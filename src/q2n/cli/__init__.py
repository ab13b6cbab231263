"""Commands: thin, they parse, call `q2n.api` and print."""
