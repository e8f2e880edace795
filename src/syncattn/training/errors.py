"""The errors that a user can mend; the command line prints them as one line, without a traceback."""


class UserError(ValueError):
    """Something given by the user cannot be used; the message says what, and what is expected instead."""


class Diverged(UserError):
    """The loss stopped being a finite number."""


class Interrupted(UserError):
    """Training was stopped from outside; the message says how to go on.

    Attributes:
        step: the last step that was done; None if that is not known.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class DiskError(UserError):
    """Something cannot be written: no permission, no space, no such folder."""
