"""The settings of what a node keeps on its disk: blobs, and the database.

Knows: keys, types, defaults and meanings. Must not know: how the node obeys them.
Source: docs/operations.md, room on the disk; docs/blobs.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from converge_p2p.core import limits


class BlobsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents that are too large for a task."""

    max_bytes: Annotated[
        int,
        Meta(
            ge=limits.BLOB_CHUNK_BYTES, le=2**53, description="Bytes of all blobs; fetched ones make room for others."
        ),
    ] = limits.BLOB_STORE_BYTES_MAX


class StoreSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The database, and for how long is kept what no protocol asks for."""

    max_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=2**53,
            description="Bytes that it may hold before the node submits, founds and joins nothing more; 0 is no bound.",
        ),
    ] = 0
    results_days: Annotated[
        int,
        Meta(
            ge=0,
            le=limits.RETENTION_DAYS_MAX,
            description="Days to keep results of own tasks once a checkpoint took them from the log; 0 is for ever.",
        ),
    ] = 0
    left_pools_days: Annotated[
        int,
        Meta(
            ge=0,
            le=limits.RETENTION_DAYS_MAX,
            description="Days to keep what was written in pools that were left, but not as an elector; 0 is for ever.",
        ),
    ] = 0
    blobs_days: Annotated[
        int,
        Meta(
            ge=0,
            le=limits.RETENTION_DAYS_MAX,
            description="Days to keep unpinned blobs that nobody used; 0 is until their room is needed.",
        ),
    ] = 0
    records_days: Annotated[
        int,
        Meta(
            ge=0,
            le=limits.RETENTION_DAYS_MAX,
            description="Days to keep recorded turns of agents; 0 is as long as their log has room.",
        ),
    ] = 0
