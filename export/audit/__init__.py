"""How much the features that leave the device give away: attacks on exactly what ships."""
