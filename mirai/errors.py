"""What a user is meant to read: a sentence, no traceback. Exit code 2 for a mistake, 130 for an interruption."""


class UserError(Exception):
    """A mistake in an input (file, key, value, what is allowed), told in one sentence."""


class Interrupted(KeyboardInterrupt):
    """Asked to stop by a signal; what was made is saved and the same command goes on from it."""

    def __init__(self, sentence: str, signals: tuple[int, ...] = ()) -> None:
        super().__init__(sentence)
        self.signals = signals  # that this process received; the ranks of a job stop together when one of them did
