"""How a grid is chosen for a weight."""
