"""The one error type that users meet: a single line that says what, where and what to do."""


class UserError(ValueError):
    """Bad input from outside the program (file, record, option, checkpoint); never a bug of ours.

    The command line prints the message as one line and exits with status 1 (`--debug` shows the traceback).
    """
