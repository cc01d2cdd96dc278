"""
embedkit makes the embedding model a setting instead of a schema.

    import embedkit

    embedder = embedkit.get_embedder()
    documents = embedder.embed_documents(["…", "…"])
    query = embedder.embed_query("…")
"""

from embedkit.api import get_embedder, get_reranker, list_profiles, list_providers
from embedkit.embedder import Embedder
from embedkit.errors import EmbedkitError
from embedkit.hookspecs import hookimpl
from embedkit.profile import Profile
from embedkit.reranker import Reranker
from embedkit.space import Space
from embedkit.vectors import Embeddings, join, read_vectors, write_vectors

__version__ = "0.1.0"

__all__ = [
    "Embedder",
    "Embeddings",
    "EmbedkitError",
    "Profile",
    "Reranker",
    "Space",
    "get_embedder",
    "get_reranker",
    "hookimpl",
    "join",
    "list_profiles",
    "list_providers",
    "read_vectors",
    "write_vectors",
]
