"""What is durable: objects, their paths, and the documents that name the rest.

Bytes and documents come in, objects go out; `index_part.json` is the truth about a timeline (remote-storage.md 20),
local files are a cache of what it names. This room knows stores, paths, generations and encodings; it decides nothing
about tenants or timelines.
"""

from pageserver.remote.generations import (
    GenerationClaim,
    GenerationRecord,
    claim_generation,
    find_generationed,
    read_generations,
)
from pageserver.remote.index_part import IndexDecodeError, IndexPart, LayerEntry, TimelineMetadata
from pageserver.remote.layer_name import LayerName, LayerNameError
from pageserver.remote.local_store import LocalStore
from pageserver.remote.open_store import open_object_storage
from pageserver.remote.retry import RetryingStorage, RetryPolicy
from pageserver.remote.storage import (
    FetchedObject,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStorage,
    StoredObject,
    StoreRefusedError,
    StoreUnavailableError,
    UnknownOutcomeError,
    delete_prefix,
)

__all__ = [
    "FetchedObject",
    "GenerationClaim",
    "GenerationRecord",
    "IndexDecodeError",
    "IndexPart",
    "LayerEntry",
    "LayerName",
    "LayerNameError",
    "LocalStore",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "ObjectStorage",
    "RetryPolicy",
    "RetryingStorage",
    "StoreRefusedError",
    "StoreUnavailableError",
    "StoredObject",
    "TimelineMetadata",
    "UnknownOutcomeError",
    "claim_generation",
    "delete_prefix",
    "find_generationed",
    "open_object_storage",
    "read_generations",
]
