"""The one exception this package raises for input it cannot use."""


class BokehError(ValueError):
    """Input that cannot be used. The message says what was found, what was expected and what to do."""
