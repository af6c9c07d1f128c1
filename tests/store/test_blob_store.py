"""What a node keeps of blobs: quotas, what makes room, damaged and torn files, and a start after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, LimitExceeded, NotFound, StoreError
from converge_p2p.core.model.blob import Manifest
from converge_p2p.store.blob_files import BlobFiles, DiskFiles, MemoryFiles
from converge_p2p.store.blobs import BlobStore, Hold

CHUNK = limits.BLOB_CHUNK_BYTES


class Clock:
    """Unix time as the test says."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def chunks_of(name: str, count: int = 2) -> list[bytes]:
    whole = [(name.encode() + b"%d" % index).ljust(CHUNK, b".") for index in range(count - 1)]
    return [*whole, name.encode() + b" ends"]


def put(store: BlobStore, name: str, hold: Hold = Hold.CACHED, count: int = 2) -> Manifest:
    chunks = chunks_of(name, count)
    manifest = Manifest.of(chunks)
    store.begin(manifest)
    for index, chunk in enumerate(chunks):
        store.add(manifest.id, index, chunk)
    store.finish(manifest.id, hold)
    store.release(manifest.id)
    return manifest


@pytest.fixture(params=["disk", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> BlobFiles:
    return DiskFiles(tmp_path / "blobs") if request.param == "disk" else MemoryFiles()


def opened(files: BlobFiles, **options: object) -> BlobStore:
    store = BlobStore(files, **options)  # type: ignore[arg-type]
    store.open_now()
    return store


def test_a_blob_is_read_back_and_is_there_after_a_restart(files: BlobFiles) -> None:
    manifest = put(opened(files), "one", Hold.PINNED)
    store = opened(files)
    assert [store.chunk(manifest.id, index) for index in range(2)] == chunks_of("one")
    (info,) = store.list()
    assert (info.id, info.hold, info.complete) == (manifest.id, Hold.PINNED, True)
    assert store.manifest(manifest.id) == manifest
    assert store.remove(manifest.id)
    assert not store.remove(manifest.id)
    assert opened(files).list() == []


def test_nothing_is_kept_that_is_not_what_the_manifest_names(files: BlobFiles) -> None:
    store, manifest = opened(files), Manifest.of(chunks_of("one"))
    with pytest.raises(NotFound):
        store.add(manifest.id, 0, chunks_of("one")[0])
    store.begin(manifest)
    for index, wrong in ((0, chunks_of("two")[0]), (1, b""), (0, chunks_of("one")[1]), (7, b"x")):
        with pytest.raises(CodecError):
            store.add(manifest.id, index, wrong)
    assert store.missing(manifest.id) == [0, 1]
    assert store.chunk(manifest.id, 0) is None
    store.add(manifest.id, 1, chunks_of("one")[1])
    assert store.missing(manifest.id) == [0]


def test_what_was_fetched_in_part_is_gone_on_with_after_a_restart(files: BlobFiles) -> None:
    store, manifest = opened(files), Manifest.of(chunks_of("one", 3))
    store.begin(manifest)
    store.add(manifest.id, 1, chunks_of("one", 3)[1])
    again = opened(files)
    assert again.missing(manifest.id) == [0, 2]
    assert not again.list()[0].complete


def test_a_damaged_chunk_is_dropped_and_can_be_fetched_again(tmp_path: Path) -> None:
    store = opened(DiskFiles(tmp_path))
    manifest = put(store, "one")
    path = tmp_path / manifest.id.hex() / manifest.hashes[0].hex()
    path.write_bytes(b"?" * CHUNK)
    assert store.chunk(manifest.id, 0) is None
    assert store.corrupt_chunks == 1
    assert store.missing(manifest.id) == [0]
    store.add(manifest.id, 0, chunks_of("one")[0])
    assert store.chunk(manifest.id, 0) == chunks_of("one")[0]


def test_a_torn_chunk_and_what_is_no_blob_are_gone_after_a_start(tmp_path: Path) -> None:
    manifest = put(opened(DiskFiles(tmp_path)), "one", Hold.PINNED)
    folder = tmp_path / manifest.id.hex()
    torn = folder / manifest.hashes[0].hex()
    torn.write_bytes(chunks_of("one")[0][:1000])
    (folder / f".{manifest.hashes[1].hex()}.0011.new").write_bytes(b"half")
    (tmp_path / "not-a-blob").mkdir()
    (tmp_path / ("ab" * 32)).mkdir()
    (tmp_path / ("ab" * 32) / "manifest").write_bytes(manifest.to_bytes())
    store = opened(DiskFiles(tmp_path))
    assert store.missing(manifest.id) == [0]
    assert not torn.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [manifest.id.hex()]
    assert len(list(folder.iterdir())) == 3
    store.add(manifest.id, 0, chunks_of("one")[0])
    assert store.chunk(manifest.id, 0) == chunks_of("one")[0]


def test_fetched_blobs_make_room_and_the_one_used_longest_ago_goes_first(files: BlobFiles) -> None:
    clock = Clock()
    store = opened(files, bytes_max=7 * CHUNK, clock=clock)
    names = {}
    for name in ("one", "two", "three"):
        clock.now += 1
        names[name] = put(store, name, count=3).id
    clock.now += 1
    assert store.use(names["one"])
    store.release(names["one"])
    put(store, "four")
    assert {info.id for info in store.list()} > {names["one"], names["three"]}
    assert store.manifest(names["two"]) is None
    assert store.evicted == 1


def test_what_is_pinned_in_use_or_made_for_a_task_lately_never_makes_room(files: BlobFiles) -> None:
    clock = Clock()
    store = opened(files, blobs_max=3, clock=clock)
    put(store, "pinned", Hold.PINNED)
    kept = put(store, "kept", Hold.KEPT)
    used = put(store, "used")
    store.use(used.id)
    with pytest.raises(LimitExceeded, match="3 with"):
        put(store, "more")
    assert len(store.list()) == 3
    clock.now += limits.BLOB_KEEP_S + 1
    put(store, "more")
    assert store.manifest(kept.id) is None
    # a start knows what was held how firmly
    holds = {info.hold for info in opened(files).list()}
    assert holds == {Hold.PINNED, Hold.CACHED}


def test_a_blob_larger_than_all_room_removes_nothing(files: BlobFiles) -> None:
    store = opened(files, bytes_max=3 * CHUNK)
    put(store, "small")
    with pytest.raises(LimitExceeded):
        store.begin(Manifest(4 * CHUNK, (bytes(32),) * 4))
    assert len(store.list()) == 1


_WRITER = """
import sys
from pathlib import Path
from converge_p2p.core.model.blob import Manifest
from converge_p2p.store.blob_files import DiskFiles
from converge_p2p.store.blobs import BlobStore, Hold
store = BlobStore(DiskFiles(Path(sys.argv[1])))
store.open_now()
number = 0
while True:
    chunks = [(b"%d-%d" % (number, index)).ljust(262144, b".") for index in range(4)]
    manifest = Manifest.of(chunks)
    store.begin(manifest)
    for index, chunk in enumerate(chunks):
        store.add(manifest.id, index, chunk)
    store.finish(manifest.id, Hold.PINNED)
    print(manifest.id.hex(), flush=True)
    number += 1
"""


def test_a_process_killed_while_it_writes_leaves_every_finished_blob_whole(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    finished = [writer.stdout.readline().strip() for _ in range(3)]
    os.kill(writer.pid, signal.SIGKILL)
    finished += writer.stdout.read().split()
    writer.stdout.close()
    writer.wait()
    store = opened(DiskFiles(tmp_path))
    held = {info.id.hex(): info for info in store.list()}
    for name in finished:
        assert held[name].complete
        assert held[name].hold is Hold.PINNED
        assert all(store.chunk(held[name].id, index) is not None for index in range(4))
    for info in held.values():
        found = [store.chunk(info.id, index) for index in range(4)]
        assert [index for index, chunk in enumerate(found) if chunk is None] == store.missing(info.id)
    assert store.corrupt_chunks == 0


def test_folders_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    manifest = put(opened(DiskFiles(tmp_path / "blobs")), "one")
    paths = [tmp_path / "blobs", *(tmp_path / "blobs" / manifest.id.hex()).iterdir()]
    assert len(paths) == 4
    assert not any(path.stat().st_mode & 0o077 for path in paths)


def test_who_gives_up_takes_nothing_from_another_who_was_told_that_it_is_kept(files: BlobFiles) -> None:
    store, chunks = opened(files), chunks_of("same")
    manifest = Manifest.of(chunks)
    store.begin(manifest)
    put(store, "same", Hold.PINNED)
    store.abandon(manifest.id)
    assert [store.chunk(manifest.id, index) for index in range(2)] == chunks
    assert [info.hold for info in opened(files).list()] == [Hold.PINNED]
    other = Manifest.of(chunks_of("other"))
    store.begin(other)
    store.begin(other)
    store.abandon(other.id)
    assert store.manifest(other.id) == other, "the second one still writes it"
    store.abandon(other.id)
    assert store.manifest(other.id) is None
    assert store.totals()[0] == 1


def test_what_is_removed_while_it_is_written_leaves_nothing_on_the_disk(files: BlobFiles) -> None:
    store, chunks = opened(files), chunks_of("one")
    manifest, write = Manifest.of(chunks), files.write
    store.begin(manifest)

    def write_late(folder: str, name: str, data: bytes) -> None:
        store.remove(manifest.id)
        write(folder, name, data)

    files.write = write_late  # type: ignore[method-assign]
    with pytest.raises(NotFound):
        store.add(manifest.id, 0, chunks[0])
    assert files.folders() == []
    files.write = write  # type: ignore[method-assign]
    store.begin(manifest)
    files.write = write_late  # type: ignore[method-assign]
    with pytest.raises((NotFound, StoreError)):
        store.finish(manifest.id, Hold.PINNED)
    assert files.folders() == []


def test_a_blob_that_could_not_be_marked_is_not_held(files: BlobFiles) -> None:
    store, manifest, write = opened(files), Manifest.of(chunks_of("one")), files.write
    store.begin(manifest)

    def fail(folder: str, name: str, data: bytes) -> None:
        raise StoreError("the disk is full")

    files.write = fail  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        store.finish(manifest.id, Hold.PINNED)
    files.write = write  # type: ignore[method-assign]
    store.abandon(manifest.id)
    assert store.list() == []
    assert files.folders() == []


def test_unpinned_blobs_go_after_their_time_unless_they_are_needed_or_in_use(files: BlobFiles) -> None:
    clock = Clock()
    store = opened(files, clock=clock)
    cached, kept, pinned = put(store, "cached"), put(store, "kept", Hold.KEPT), put(store, "pinned", Hold.PINNED)
    needed, used = put(store, "needed", Hold.KEPT), put(store, "used")
    store.use(used.id)
    clock.now += 100
    young = put(store, "young")
    assert store.expire(clock.now - 50, frozenset({needed.id})) == 2
    assert {info.id for info in store.list()} == {pinned.id, needed.id, used.id, young.id}
    assert store.manifest(cached.id) is store.manifest(kept.id) is None
    assert len(files.folders()) == 4
    store.release(used.id)
    clock.now += 1000
    assert store.expire(clock.now - 50, frozenset()) == 3
    assert [info.id for info in opened(files).list()] == [pinned.id]


def test_a_use_outlives_the_end_of_the_process(tmp_path: Path) -> None:
    files = DiskFiles(tmp_path)
    store = opened(files)
    old, used = put(store, "old"), put(store, "used")
    for blob in (old, used):
        os.utime(tmp_path / blob.id.hex(), (1, 1))
    again = opened(files)
    again.use(used.id)
    again.release(used.id)
    assert again.expire(0, frozenset()) == 0
    assert opened(files).expire(1000, frozenset()) == 1
    assert [info.id for info in opened(files).list()] == [used.id]
