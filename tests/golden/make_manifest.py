"""Writes manifest_v1.bin: run it from the repository's root only when the format gets a new version.

python tests/golden/make_manifest.py
"""

from pathlib import Path

from quantization.manifest import BlobRef, Manifest, ObservedLayer, ReferenceSlot, Stage, TensorSpec


def blob(location: str, fill: str, dtype: str, shape: tuple[int, ...], *sizes: int) -> BlobRef:
    """Return a reference to content that exists nowhere; sizes are its bit-width and its stored bytes."""
    return BlobRef(location, fill * 64, dtype, shape, *sizes)


def golden_manifest() -> Manifest:
    """Return a manifest in which every field of the format is used."""
    stage = Stage(
        name="main",
        input=TensorSpec("x", (None, 3, 32, 32)),
        outputs=("logits",),
        skeleton=blob("", "a", "bytes", (3000,), 8, 900),
        files=(
            blob("channels", "b", "float32", (32,), 32, 136),
            blob("conv.weight", "c", "int8", (8, 3, 3, 3), 4, 116),
            blob("ranges", "d", "bytes", (15,), 8, 23),
        ),
        plain=blob("", "e", "bytes", (4000,), 8, 1000),
        normalizing=blob("", "f", "bytes", (3500,), 8, 950),
        reference_files=(blob("reference", "0", "uint8", (264,), 8, 272),),
        layers=(ObservedLayer("conv", 8, ReferenceSlot(128, 192, 256)), ObservedLayer("bare", 4)),
        sites=("x", "relu"),
    )
    return Manifest("1" * 64, "x86-vnni", 7, (stage,))


if __name__ == "__main__":
    Path(__file__).with_name("manifest_v1.bin").write_bytes(golden_manifest().to_bytes())
