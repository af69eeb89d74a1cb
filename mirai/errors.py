"""The one exception a user is meant to read: a sentence, no traceback, exit code 2."""


class UserError(Exception):
    """A mistake in an input (file, key, value, what is allowed), told in one sentence."""
