"""What is durable: objects, their paths, and the documents that name the rest.

Bytes and documents come in, objects go out; `index_part.json` is the truth about a timeline (remote-storage.md 20),
local files are a cache of what it names. This room knows stores, paths, generations and encodings; it decides nothing
about tenants or timelines.
"""

from pageserver.remote.generations import GenerationClaim, claim_generation, find_generationed
from pageserver.remote.index_part import IndexDecodeError, IndexPart, LayerEntry, TimelineMetadata
from pageserver.remote.layer_name import LayerName, LayerNameError
from pageserver.remote.local_store import LocalStore
from pageserver.remote.storage import ObjectExistsError, ObjectNotFoundError, ObjectStorage, StoredObject

__all__ = [
    "GenerationClaim",
    "IndexDecodeError",
    "IndexPart",
    "LayerEntry",
    "LayerName",
    "LayerNameError",
    "LocalStore",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "ObjectStorage",
    "StoredObject",
    "TimelineMetadata",
    "claim_generation",
    "find_generationed",
]
