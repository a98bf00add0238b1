"""An index of shards: where each sample lies and what is known of it, so that a training reads what it asks for."""

from aligntok.data.index.format import Index, ShardTable, domain_of, host_of

__all__ = ["Index", "ShardTable", "domain_of", "host_of"]
