from quantization.arrays import AnyArray

def expand_into(
    source: bytes | memoryview | AnyArray, bit_width: int, target: bytearray | memoryview | AnyArray, /
) -> None:
    """Write the codes of 2 to 7 bits packed in `source` to `target`, one int8 each, as many as it holds.

    Raises:
        ValueError: If the sizes do not fit.
    """
