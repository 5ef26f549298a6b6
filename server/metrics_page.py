"""The page that Prometheus reads, over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from quantization.errors import ConfigurationError


@contextmanager
def serving_metrics(metrics: CollectorRegistry, address: str) -> Iterator[str]:
    """Serve metrics while the block runs; yields host and port.

    Args:
        metrics: What the page shows.
        address: Host and port; port 0 takes a free one.

    Raises:
        ConfigurationError: The address cannot be served.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        server, thread = start_http_server(int(port), host, metrics)
    except OSError as error:
        raise ConfigurationError(f"'{address}' cannot be served: {error.strerror or error}") from error
    try:
        yield f"{address.rpartition(':')[0]}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)
