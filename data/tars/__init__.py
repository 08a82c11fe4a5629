"""WebDataset tars: their samples, the sealed files of their pairs, and the manifest of a set."""
