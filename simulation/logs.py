"""Logs of a simulation: events with fields on stderr, silent unless asked for."""

import logging
import sys
import warnings

import structlog


def configure_logs(*, is_verbose: bool) -> None:
    """Send this process's logs to stderr: from level info if verbose, else errors alone.

    That goes for the libraries' logs and warnings too; stdout is left to results.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if is_verbose else logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.disable(logging.NOTSET if is_verbose else logging.WARNING)
    if not is_verbose and not sys.warnoptions:
        warnings.simplefilter("ignore")
