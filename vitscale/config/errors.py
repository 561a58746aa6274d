"""The errors a user can cause, each with the process exit code that scripts and schedulers rely on."""


class UserError(Exception):
    """Base of every error that the user can mend: shown as one paragraph (what, where, how to mend it), without a trace.

    Anything that is not a `UserError` is a bug of ours: exit code 1, trace shown.
    """

    exit_code = 1


class UsageError(UserError):
    """The command line does not make sense, or a run directory is in use by another process."""

    exit_code = 2


class ConfigError(UserError):
    """The configuration is wrong: an unknown key, a wrong type, values that contradict each other."""

    exit_code = 3


class DataError(UserError):
    """A data set is missing, incomplete, changed since it was packed, or cannot be decoded."""

    exit_code = 10


class CheckpointError(UserError):
    """No usable checkpoint, one that fits another model, or one that must not be continued with this configuration."""

    exit_code = 20


class NonFiniteLossError(CheckpointError):
    """Training reached a loss that is NaN or infinite and stopped; nothing after the last good checkpoint was kept."""


class StopRequested(UserError):
    """The run was asked to stop and did, with everything saved: start the same command again to go on."""

    exit_code = 75
