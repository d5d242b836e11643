"""The one exception that the command line turns into a single line and exit status 2."""


class BadInput(ValueError):
    """What the user gave cannot work; the message names the offending value and the fix, on one line."""
