"""The errors that a user can mend; the command line prints them as one line, without a traceback."""


class UserError(ValueError):
    """Something given by the user cannot be used; the message says what, and what is expected instead."""


class Diverged(UserError):
    """The loss stopped being a finite number."""


class Interrupted(UserError):
    """Training was stopped from outside, and left a checkpoint; the message says how to go on."""


class DiskError(UserError):
    """Something cannot be written: no permission, no space, no such folder."""
