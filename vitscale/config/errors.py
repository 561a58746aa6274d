"""The errors a user can cause, each with the process exit code that scripts and schedulers rely on."""

from typing import Literal, Self

Scope = Literal["rank", "node", "run"]
"""Which processes of a run raise the same error: this one alone, those of its machine, or all."""


class UserError(Exception):
    """Base of every error that the user can mend: shown as one paragraph (what, where, how to mend it), without a trace.

    Anything that is not a `UserError` is a bug of ours: exit code 1, trace shown.
    """

    exit_code = 1
    scope: Scope = "rank"
    """Of the processes that raise the same error, one shows it."""

    def retold(self, message: str) -> Self:
        """The same error in other words."""
        error = type(self)(message)
        error.scope = self.scope
        return error


class UsageError(UserError):
    """The command line does not make sense, or a run directory is in use by another process."""

    exit_code = 2


class ConfigError(UserError):
    """The configuration is wrong: an unknown key, a wrong type, values that contradict each other."""

    exit_code = 3
    scope: Scope = "node"
    """Each process reads the configuration itself, and those of a machine read the same files."""


class DataError(UserError):
    """A data set is missing, incomplete, changed since it was packed, or cannot be decoded."""

    exit_code = 10


class CheckpointError(UserError):
    """No usable checkpoint, one that fits another model, or one that must not be continued with this configuration."""

    exit_code = 20


class NonFiniteLossError(CheckpointError):
    """Training reached a loss that is NaN or infinite and stopped; nothing after the last good checkpoint was kept."""

    scope: Scope = "run"


class CorruptionError(CheckpointError):
    """The memory of a rank changed by itself, and training stopped; the newest checkpoint is good."""

    scope: Scope = "run"
    ranks: tuple[int, ...] = ()
    """Those it was found on; where nothing tells which of several is right, all of them."""


class StopRequested(UserError):
    """The run was asked to stop and did, with everything saved: start the same command again to go on."""

    exit_code = 75
    scope: Scope = "run"
