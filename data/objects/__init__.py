"""Folders of files on this machine or in an object store, read and written whole."""
