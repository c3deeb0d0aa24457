"""One tree an image: maps of all cells are clustered, its leaves painted once and measured at every cut."""
