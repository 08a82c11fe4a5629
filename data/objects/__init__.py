"""Folders of object stores, whose files are read and written whole."""
