"""Do libraries stay silent about what nobody can act on, and only about that?"""

import logging

import pytest

from quantkit.environment import NOISE, quiet_libraries


def test_only_the_named_lines_of_libraries_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    quiet_libraries()
    for name, beginning in NOISE.items():
        logging.getLogger(name).warning(beginning, *(["it"] if "%s" in beginning else []))
        logging.getLogger(name).warning("weights are wrong")
    assert {record.getMessage() for record in caplog.records} == {"weights are wrong"}
    assert len(caplog.records) == len(NOISE)
