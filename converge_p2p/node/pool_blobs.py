"""Large inputs and results of a pool's tasks: moved into blobs when they are written, and back when they are read.

Knows: how much fits into an operation, and which parts of a value are moved. Must not know: how a blob is fetched or
kept (see `blobs`).
Source: `docs/blobs.md`; `docs/protocol.md`, blobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value, encode_value, may_refer
from converge_p2p.core.errors import CodecError, LimitExceeded
from converge_p2p.core.model.task import Task, TaskSpec, TaskView
from converge_p2p.core.oplog.sealing import SEALED_INPUT_BYTES_MAX, SEALED_RESULT_BYTES_MAX
from converge_p2p.core.types import BlobForm, BlobRef, PublicKey
from converge_p2p.store.blobs import Hold

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle
    from converge_p2p.node.main import Node

_REFERENCE_BYTES = 160
"""More than a reference has in a value."""

_FRAME_BYTES = 64
"""What objective, inputs and topic have beside their own bytes when they are sealed together."""


class PoolBlobs:
    """The blobs of one pool's tasks (`runtime.ports.ContentPort`). Those of a private pool are sealed."""

    def __init__(self, node: Node, pool: PoolHandle) -> None:
        self._node = node
        self._pool = pool

    @property
    def _sealed(self) -> bool:
        return self._pool.driver.replica.contents.on

    # ------------------------------------------------------------ by hand

    async def put(self, content: bytes | str | Path, *, form: BlobForm = BlobForm.HANDLE) -> BlobRef:
        """Keep a content for a task, and return a reference to it. See `Blobs.put`.

        It is kept until it was unused for `limits.BLOB_KEEP_S` and its room is needed.
        """
        return await self._node.blobs.put(content, sealed=self._sealed, form=form, hold=Hold.KEPT)

    async def get(self, reference: BlobRef) -> bytes:
        """Return a content. Members of the pool are asked for it, too. See `Blobs.get`."""
        return await self._node.blobs.get(reference, providers=self._providers())

    async def fetch(self, reference: BlobRef, to: str | Path) -> None:
        """Write a content to a file. See `Blobs.fetch`."""
        await self._node.blobs.fetch(reference, to, providers=self._providers())

    def _providers(self, *first: PublicKey) -> tuple[PublicKey, ...]:
        """Who may have what belongs to the pool: whoever is named, then the members that are connected."""
        connected = self._node.connected_keys()
        members = (member.public_key for member in self._pool.members() if member.public_key in connected)
        return (*first, *members)

    # ------------------------------------------------------------ writing

    async def spec_of(self, task: Task, key: bytes) -> TaskSpec:
        """Return a task as it is signed; inputs that are too large for it are moved into blobs.

        Raises:
            CodecError, LimitExceeded, LocalError: see `Task.to_spec` and `Blobs.put`.
        """
        room = limits.TASK_INPUT_BYTES_MAX
        if self._sealed:
            room = SEALED_INPUT_BYTES_MAX - len(task.objective.encode()) - len(task.topic) - _FRAME_BYTES
        encoded = encode_value(dict(task.inputs))
        if len(encoded) <= room:
            return task.to_spec(key=key)
        # checked before anything is kept
        spec = replace(task, inputs={}).to_spec(key=key)
        return replace(spec, inputs=await self._moved(encoded, room))

    async def keep_result(self, result: bytes) -> bytes:
        """Return an encoded result as it is reported; what is too large for it is moved into blobs.

        Raises:
            LimitExceeded: too large even so, or no room for it.
            StoreError: the disk fails.
        """
        room = SEALED_RESULT_BYTES_MAX if self._sealed else limits.RESULT_BYTES_MAX
        return result if len(result) <= room else await self._moved(result, room)

    async def _moved(self, encoded: bytes, room: int) -> bytes:
        """Move the largest entries of a map, or the whole value."""
        if len(encoded) > limits.BLOB_VALUE_BYTES_MAX:
            raise LimitExceeded(
                "BLOB_VALUE_BYTES_MAX",
                f"the value has {len(encoded)} bytes encoded; at most {limits.BLOB_VALUE_BYTES_MAX} are allowed",
                hint="put it as a blob, and give the reference",
            )
        value, parts = await trio.to_thread.run_sync(_parts_of, encoded, room)
        for name in parts:
            value[name] = await self._move(value[name])
        return encode_value(value if parts else await self._move(value))

    async def _move(self, value: Any) -> BlobRef:
        if isinstance(value, bytes):
            return await self.put(value, form=BlobForm.BYTES)
        return await self.put(await trio.to_thread.run_sync(encode_value, value), form=BlobForm.VALUE)

    # ------------------------------------------------------------ reading

    async def bring(self, view: TaskView, bytes_max: int = limits.BLOB_VALUE_BYTES_MAX) -> TaskView:
        """Return a task with the contents of its inputs in place of references to them.

        Args:
            view: the task.
            bytes_max: of all contents together; what is larger stays a reference.

        Raises:
            NetworkError, CodecError, LimitExceeded, StoreError: a content cannot be had, see `Blobs.get`.
        """
        inputs = await self._brought(view.spec.inputs, (view.submitter,), bytes_max)
        return view if inputs is view.spec.inputs else replace(view, spec=replace(view.spec, inputs=inputs))

    async def bring_result(self, view: TaskView) -> TaskView:
        """Return a settled task with the contents of its result in place of references to them. Raises as `bring`."""
        if view.value is None:
            return view
        result = await self._brought(view.value.result, (view.value.worker,))
        if result is view.value.result:
            return view
        return replace(view, value=replace(view.value, result=result, voted=view.value.hash))

    async def bring_value(self, result: bytes, worker: PublicKey) -> Any:
        """Return a reported result, decoded, with the contents in place of references. Raises as `bring`."""
        return decode_value(await self._brought(result, (worker,)))

    async def _brought(
        self, encoded: bytes, first: Iterable[PublicKey], bytes_max: int = limits.BLOB_VALUE_BYTES_MAX
    ) -> bytes:
        if not may_refer(encoded):
            return encoded
        try:
            value = decode_value(encoded)
        except CodecError:
            # whoever reads it is told
            return encoded
        wanted = references_in(value, bytes_max)
        if not wanted:
            return encoded
        providers = self._providers(*first)
        for place, reference in wanted:
            content: Any = await self._node.blobs.get(reference, providers=providers)
            if reference.form is BlobForm.VALUE:
                content = await trio.to_thread.run_sync(decode_value, content)
            if place is None:
                value = content
            else:
                value[place] = content
        return await trio.to_thread.run_sync(encode_value, value)


def _parts_of(encoded: bytes, room: int) -> tuple[Any, list[str]]:
    """Return a value, and which entries of its map have to be moved so that the rest fits; none if that does not do."""
    value, parts = decode_value(encoded), list[str]()
    if isinstance(value, dict):
        left, sizes = len(encoded), {name: len(encode_value(entry)) for name, entry in value.items()}
        for name in sorted(sizes, key=lambda each: (-sizes[each], each))[: limits.BLOB_PARTS_MAX]:
            left += _REFERENCE_BYTES - sizes[name]
            parts.append(name)
            if left <= room:
                return value, parts
    return value, []


def references_in(value: Any, bytes_max: int) -> list[tuple[str | None, BlobRef]]:
    """Return the references that are to be replaced by what they stand for, with their place: None is the whole value.

    They stand for the value or for an entry of its map, and together they have at most `bytes_max` bytes: the smallest
    ones first, the others stay references.
    """
    found: list[tuple[str | None, BlobRef]] = []
    if isinstance(value, BlobRef):
        found = [(None, value)]
    elif isinstance(value, Mapping):
        found = [(name, entry) for name, entry in value.items() if isinstance(entry, BlobRef)]
    room, taken = bytes_max, list[tuple[str | None, BlobRef]]()
    for place, reference in sorted(found, key=lambda each: each[1].size):
        if reference.form is not BlobForm.HANDLE and reference.size <= room and len(taken) < limits.BLOB_PARTS_MAX:
            room -= reference.size
            taken.append((place, reference))
    return taken
