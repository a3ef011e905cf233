"""A block that travels: taken apart here, run there, its values brought back."""
