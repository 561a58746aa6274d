"""The table of sources and the names that the command offers are the same."""

from dataclasses import fields

from vitscale_data_tools.options import SourceOptions
from vitscale_data_tools.pack_cli import SourceName
from vitscale_data_tools.sources import SOURCES


def test_the_command_offers_every_source() -> None:
    assert [name.value for name in SourceName] == list(SOURCES)


def test_every_option_of_a_source_exists() -> None:
    known = {option.name for option in fields(SourceOptions)}
    assert all(source.options <= known for source in SOURCES.values())
