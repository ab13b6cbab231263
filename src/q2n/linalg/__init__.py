"""Mathematics only: statistics of layer inputs, factorisations, closed forms, orthogonal matrices,
levels. The docstring of each file holds its derivation."""
