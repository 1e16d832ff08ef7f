"""The errors that a user is meant to read."""


class InputError(ValueError):
    """Something given from outside (a file, a config value, a checkpoint) can't be used.

    The message is one sentence or two: which file or key, what was expected, what was found, and what to do. Entry
    scripts print it without a traceback and exit with status 2.
    """


class EndOfRun(InputError):
    """None of the further items could be done either, as on a full disk: it ends a loop in which an InputError is one
    item's failure."""
