"""Mathematics only: statistics of layer inputs, their spectra and factors, and the step's alpha."""
