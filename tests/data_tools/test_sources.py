"""The table of sources and the names that the command offers are the same."""

from vitscale_data_tools.cli import SourceName
from vitscale_data_tools.sources import SOURCES


def test_the_command_offers_every_source() -> None:
    assert [name.value for name in SourceName] == list(SOURCES)
