"""Archives that cannot be read."""

import io
import zipfile

_LZMA_PROPERTIES = b"\x09\x04\x05\x00\x5d\x00\x00\x80\x00"
"""Version, size of what follows, and the decoder's five bytes: healthy, so that it is the content that fails."""


def damaged_lzma(name: str) -> bytes:
    """Return an archive whose one array is packed by LZMA, whose decoder has an error of its own for such content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.npy", _LZMA_PROPERTIES + b"\xff" * 64)
    content = bytearray(buffer.getvalue())
    content[content.index(b"PK\1\2") + 10] = zipfile.ZIP_LZMA
    return bytes(content)
