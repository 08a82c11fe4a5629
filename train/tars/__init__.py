"""Training on sets of WebDataset tars: batches of their pairs, read tar by tar."""
