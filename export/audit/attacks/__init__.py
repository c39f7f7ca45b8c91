"""Attackers who see what a server sees and rebuild the image."""
