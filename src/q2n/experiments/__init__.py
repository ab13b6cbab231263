"""Plans of many runs, and what becomes of them: one record a cell."""
