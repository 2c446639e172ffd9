"""What `make` runs before anything is installed; no part of the package."""
