"""Stage one over WebDataset tars."""
