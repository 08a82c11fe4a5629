"""The one exception that means "the user can fix this"; command lines print it as one line."""


class CusaError(ValueError):
    """A mistake in what the user gave: what it was, what is legal, what to do next, in one line."""
