"""sidecert."""
