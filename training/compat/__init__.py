"""Published generators: their weights under our names, and the settings they were made with."""
