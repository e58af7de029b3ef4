"""Do libraries stay silent about what nobody can act on, and only about that?"""

import logging

from quantkit.environment import NOISE, quiet_libraries


def test_only_the_named_lines_of_libraries_are_dropped() -> None:
    """Asked of the loggers themselves: what other tests import may have silenced their parents."""
    quiet_libraries()
    for name, beginning in NOISE.items():
        logger = logging.getLogger(name)

        def passes(message: str, logger: logging.Logger = logger) -> bool:
            record = logger.makeRecord(
                logger.name, logging.WARNING, "library.py", 1, message, ("it",) * message.count("%s"), None
            )
            return bool(logger.filter(record))

        assert not passes(beginning)
        assert passes("weights are wrong")
