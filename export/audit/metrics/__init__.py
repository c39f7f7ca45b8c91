"""How much of the image the features carry, without rebuilding it."""
