"""How much of a picture each layer needs, searched for."""
