"""Maps from the classes of one data set to those of another, as text files."""

from pathlib import Path

from vitscale.config import ConfigError


def read_class_map(path: str) -> tuple[int, ...]:
    """The numbers in a file with one on each line; the last line may end without a line break.

    Raises `ConfigError` where it cannot be read, is empty, or holds something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"init_from.class_map: {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"init_from.class_map: {path} is no text; it has the number of a class on each line") from None
    wrong = next((number for number, line in enumerate(lines, start=1) if not line.strip().isdecimal()), None)
    if wrong is not None:
        raise ConfigError(f"init_from.class_map: line {wrong} of {path} is {lines[wrong - 1]!r}, and each is the number of a class, from 0")
    if not lines:
        raise ConfigError(f"init_from.class_map: {path} is empty; it has the number of a class on each line")
    return tuple(int(line) for line in lines)
