"""The towers of a student: models that map pictures, captions or stored rows to features."""
