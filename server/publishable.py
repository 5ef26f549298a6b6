"""Whether an artifact is whole, and for whom it says that it is."""

from quantization.blob import decode_blob_content
from quantization.errors import ConfigurationError, DigestMismatchError, MalformedError, NotFoundError
from quantization.manifest import Manifest
from server.blob_store import BlobStore
from server.registry import Registry


def check_publishable(manifest_digest: str, registry: Registry, blobs: BlobStore) -> Manifest:
    """Return the manifest, once everything that devices will ask for is found whole.

    Raises:
        NotFoundError: The manifest, a blob, or the model for this class is not there.
        DigestMismatchError: A blob is damaged.
        ConfigurationError: The class cannot afford it.
    """
    try:
        manifest = Manifest.from_bytes(decode_blob_content(blobs.get(manifest_digest), manifest_digest))
    except NotFoundError as error:
        raise NotFoundError(f"manifest {manifest_digest} is not in the blob store") from error
    except MalformedError as error:
        raise MalformedError(f"{manifest_digest} is not a manifest: {error}") from error
    classes = {known.name: known for known in registry.device_classes(manifest.model_digest)}
    if manifest.device_class not in classes:
        prepared = ", ".join(sorted(classes)) or "none"
        raise NotFoundError(
            f"manifest {manifest_digest[:12]} is for model {manifest.model_digest[:12]} on device class "
            f"'{manifest.device_class}', for which the model was not prepared; prepared: {prepared}"
        )
    for digest in manifest.blobs:
        try:
            blobs.get(digest)
        except (NotFoundError, DigestMismatchError) as error:
            raise type(error)(f"manifest {manifest_digest[:12]} cannot be published: {error}") from error
    budget = classes[manifest.device_class].size_budget_bytes
    size_bytes = sum(ref.stored_size_bytes for ref in manifest.blobs.values())
    if budget is not None and size_bytes > budget:
        raise ConfigurationError(
            f"the artifact takes {size_bytes} bytes; device class '{manifest.device_class}' can afford {budget}"
        )
    return manifest
