"""Text from files, devices and servers, as it may be shown on a terminal."""


def printable(text: str) -> str:
    """Return `text` on one line, with every character that could steer a terminal replaced."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
