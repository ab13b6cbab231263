"""What the package does to disks besides the formats of its files."""
