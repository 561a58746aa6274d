"""The exit codes that scripts and schedulers rely on."""

import pytest

from vitscale import config


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UserError", 1),
        ("UsageError", 2),
        ("ConfigError", 3),
        ("DataError", 10),
        ("CheckpointError", 20),
        ("NonFiniteLossError", 20),
        ("StopRequested", 75),
    ],
)
def test_exit_code(name: str, code: int) -> None:
    error = getattr(config, name)("what, where, how to mend it")
    assert isinstance(error, config.UserError)
    assert error.exit_code == code
    assert str(error) == "what, where, how to mend it"
