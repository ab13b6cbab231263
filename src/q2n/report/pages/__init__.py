"""Pages: one HTML file each, that needs nothing outside itself."""
