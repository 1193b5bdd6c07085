"""Errors that are the user's to fix: one clear line, and exit code 2 from the command line."""


class UserError(ValueError):
    """Bad input or a bad combination of options; the message says what to change.

    The command line prints the message without a traceback and exits with 2. In Python it is a `ValueError`.
    """
