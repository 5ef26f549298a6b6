"""What other ways to send an upgrade would take, with everything that they could know."""

import bsdiff4
import zstandard

from quantization.artifact import Artifact
from quantization.blob import decode_blob_content

_WINDOW_LOG = 27  # 128 MiB: the old content and the new one lie in it together
_AFFORDABLE_BYTES = 64 << 20  # bsdiff4 sorts all suffixes of the old content


def peer_sizes(old: Artifact, new: Artifact) -> dict[str, int]:
    """Return bytes by the name of the way; manifests and skeletons are part of what is sent.

    Whole artifacts are sent as one file, stored blobs or decoded contents in the order of the manifest, whichever is
    smaller; or each content apart, against what stood in its place, by whichever way is smallest for it.
    """
    sizes = {"full": new.size_bytes}
    pairs = [(serialized(old, is_decoded=d), serialized(new, is_decoded=d)) for d in (True, False)]
    sizes["zstd --patch-from"] = min(patch_from(*pair) for pair in pairs)
    sizes["bsdiff"] = min(len(bsdiff4.diff(*pair)) for pair in pairs if len(pair[0]) < _AFFORDABLE_BYTES)
    sizes["best for each content"] = best_of_each(old, new)
    return sizes


def serialized(artifact: Artifact, *, is_decoded: bool) -> bytes:
    """Return the manifest and all contents behind one another."""
    parts = [artifact.manifest.to_bytes()]
    for digest in artifact.manifest.blobs:
        stored = artifact.blobs[digest]
        parts.append(decode_blob_content(stored, digest) if is_decoded else stored)
    return b"".join(parts)


def patch_from(old: bytes, new: bytes) -> int:
    """Return the size of `zstd -19 --long=27 --patch-from`: the old content is where the window starts."""
    known = zstandard.ZstdCompressionDict(old or b"\0" * 8, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    settings = zstandard.ZstdCompressionParameters.from_level(
        19,
        source_size=len(old) + len(new),
        window_log=_WINDOW_LOG,
        enable_ldm=True,
        write_checksum=False,
    )
    return len(zstandard.ZstdCompressor(compression_params=settings, dict_data=known).compress(new))


def best_of_each(old: Artifact, new: Artifact) -> int:
    """Return the sum of the least that each content takes, its manifest's included."""
    before = contents_by_place(old)
    total = 0
    for place, (content, stored) in contents_by_place(new).items():
        base, _ = before.get(place, (b"", 0))
        if base == content:
            continue
        ways = [stored, patch_from(base, content)]
        if len(content) < 4 << 20:  # larger ones take minutes, and are random
            ways.append(len(bsdiff4.diff(base, content)))
        total += min(ways)
    return total


def contents_by_place(artifact: Artifact) -> dict[str, tuple[bytes, int]]:
    """Return each content and its stored size, by where it stands."""
    found = {"manifest": (artifact.manifest.to_bytes(), len(artifact.manifest.to_bytes()))}
    for stage in artifact.manifest.stages:
        for number, ref in enumerate(stage.blobs):
            place = f"{stage.name}/{ref.location or number}/{ref in stage.reference_files}"
            stored = artifact.blobs[ref.digest]
            found[place] = decode_blob_content(stored, ref.digest), len(stored)
    return found
