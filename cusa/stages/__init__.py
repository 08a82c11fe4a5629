"""The three stages as functions; the command lines parse options, call them, and print."""
