"""A disk that forgets: what a build did to its folder, and what a power cut may leave of it.

:func:`recorded` notes every change that Python code makes below a folder while it really happens.
:class:`Disk` takes such a log up to some point and tells what may stand there when the power comes
back. It promises no more than POSIX does:

- bytes of a file are safe after an fsync of that file; before, any of them may be missing, zero, or
  cut off, also when the file's name and size are already there;
- an entry of a folder (a file or folder that is made, renamed or removed) is safe after an fsync of
  that very folder; before, it may be there or not, independently of every other entry.

Real file systems order more than that, some of them most of it. A writer that relies on such order
is right on one machine and loses data on the next.
"""

from __future__ import annotations

import io
import os
import stat
from builtins import open as plain_open
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from threading import RLock
from typing import Any

import pytest

Node = int
"""A file or folder, whatever its name is at the moment."""
ROOT: Node = 0


@dataclass(frozen=True)
class Entry:
    """A folder's entry: this name now stands for that node, or for none."""

    folder: Node
    name: str
    node: Node | None


@dataclass(frozen=True)
class Data:
    """Bytes written to a file."""

    node: Node
    offset: int
    data: bytes


@dataclass(frozen=True)
class Size:
    """A file cut off or extended with zeros."""

    node: Node
    size: int


@dataclass(frozen=True)
class Sync:
    """An fsync of a file or folder that has returned."""

    node: Node


@dataclass(frozen=True)
class Note:
    """Something the test wants to know the time of."""

    text: str


Event = Entry | Data | Size | Sync | Note


@dataclass(frozen=True)
class Mark:
    """What a builder may recognise a file by without reading it."""

    inode: int
    mtime_ns: int


@dataclass
class Log:
    """What happened below a folder.

    Attributes
    ----------
    folders
        Nodes that are folders; all others are files.
    before
        Entries and contents that were there, and safe, when the recording began.
    marks
        Inode and modification time of each file, as they really were.
    """

    events: list[Event] = field(default_factory=list)
    folders: set[Node] = field(default_factory=lambda: {ROOT})
    before: list[Event] = field(default_factory=list)
    marks: dict[Node, Mark] = field(default_factory=dict)

    def without(self, dropped: Callable[[Disk, Event], bool]) -> Log:
        """Return the log of a run in which some events never happened.

        A sync that is dropped is one that the writer forgot.
        """
        kept: list[Event] = []
        disk = Disk(self)
        for event in self.events:
            if not dropped(disk, event):
                kept.append(event)
                disk.apply(event)
        return Log(kept, self.folders, self.before, self.marks)


def continued(first: Log, events: int, second: Log) -> Log:
    """Return the log of a build that was killed after some events, and of the one after it.

    A killed process loses nothing that it wrote, but nothing becomes safe by that either.

    Parameters
    ----------
    first, events
        What the killed build did, and how much of it.
    second
        What the next one did, recorded in a folder that showed what the first had left.
    """
    disk = Disk(first)
    for event in first.events[:events]:
        disk.apply(event)
    known = {**disk.now().nodes, "": ROOT}
    paths = {ROOT: ""}
    same: dict[Node, Node] = {ROOT: ROOT}
    for event in second.before:
        if isinstance(event, Entry) and event.node is not None:
            above = paths[event.folder]
            paths[event.node] = f"{above}/{event.name}" if above else event.name
            same[event.node] = known[paths[event.node]]
    newer = 1 + max((*same.values(), *first.folders, *first.marks))

    def node(other: Node) -> Node:
        return same.get(other, newer + other)

    def renumbered(event: Event) -> Event:
        match event:
            case Entry(folder, name, other):
                return Entry(node(folder), name, None if other is None else node(other))
            case Data(other) | Size(other) | Sync(other):
                return replace(event, node=node(other))
            case Note():
                return event

    return Log(
        events=[*first.events[:events], *map(renumbered, second.events)],
        folders=first.folders | set(map(node, second.folders)),
        before=first.before,
        marks={**{node(n): mark for n, mark in second.marks.items()}, **first.marks},
    )


class UnmodelledError(AssertionError):
    """The folder was changed in a way that the recorder does not know."""


class _Recorder:
    """Keeps the names below a folder, so that every event is about a node."""

    def __init__(self, root: Path, before: Callable[[], None]) -> None:
        self.root = os.path.realpath(root)
        self.before = before
        self.torn = False
        self.log = Log()
        self.lock = RLock()
        self._next: Node = ROOT + 1
        self._names: dict[str, Node] = {self.root: ROOT}
        self._descriptors: dict[int, Node] = {}
        self._read_what_stands()

    def _read_what_stands(self) -> None:
        for folder, folders, files in os.walk(self.root):
            for name in sorted(folders):
                self.log.before.append(self._entry(os.path.join(folder, name), folder=True))
            for name in sorted(files):
                path = os.path.join(folder, name)
                entry = self._entry(path, folder=False)
                self.log.before.append(entry)
                assert entry.node is not None
                self.log.before.append(Data(entry.node, 0, Path(path).read_bytes()))
                self.mark(entry.node, os.stat(path))

    def _entry(self, path: str, *, folder: bool) -> Entry:
        node, self._next = self._next, self._next + 1
        if folder:
            self.log.folders.add(node)
        self._names[path] = node
        return Entry(self._names[os.path.dirname(path)], os.path.basename(path), node)

    def add(self, event: Event) -> None:
        self.log.events.append(event)

    def mark(self, node: Node, status: os.stat_result) -> None:
        self.log.marks[node] = Mark(status.st_ino, status.st_mtime_ns)

    def inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return the real path of what lies below the folder, or None."""
        if isinstance(path, int):
            return None
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
        text = os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text))
        return text if text == self.root or text.startswith(self.root + os.sep) else None

    def made(self, path: str, *, folder: bool) -> Node:
        entry = self._entry(path, folder=folder)
        self.add(entry)
        assert entry.node is not None
        return entry.node

    def gone(self, path: str) -> None:
        self._names.pop(path)
        self.add(Entry(self._names[os.path.dirname(path)], os.path.basename(path), None))

    def linked(self, source: str, target: str) -> None:
        node = self._names[source]
        self._names[target] = node
        self.add(Entry(self._names[os.path.dirname(target)], os.path.basename(target), node))

    def renamed(self, source: str, target: str) -> None:
        if source == target:
            return
        self.linked(source, target)
        below = [path for path in self._names if path.startswith(source + os.sep)]
        for path in below:
            self._names[target + path.removeprefix(source)] = self._names.pop(path)
        self.gone(source)

    def node(self, path: str) -> Node:
        try:
            return self._names[path]
        except KeyError:
            raise UnmodelledError(f"{path} came into being unseen") from None

    def opened(self, descriptor: int, path: str | None, *, existed: bool, cut: bool) -> None:
        """Note what a descriptor stands for, and what opening it did."""
        if path is None:
            self._descriptors.pop(descriptor, None)
            return
        node = self.node(path) if existed else self.made(path, folder=False)
        self._descriptors[descriptor] = node
        if existed and cut and node not in self.log.folders:
            self.add(Size(node, 0))

    def closed(self, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)

    def of(self, descriptor: int) -> Node | None:
        """Return what a descriptor stands for, if that is below the folder."""
        if descriptor in self._descriptors:
            return self._descriptors[descriptor]
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return self.node(path) if path.startswith(self.root + os.sep) else None

    def wrote(self, descriptor: int, offset: int, data: bytes) -> None:
        node = self.of(descriptor)
        if node is not None:
            self.add(Data(node, offset, data))
            self.mark(node, os.fstat(descriptor))

    def resized(self, descriptor: int, size: int) -> None:
        node = self.of(descriptor)
        if node is not None:
            self.add(Size(node, size))
            self.mark(node, os.fstat(descriptor))


@contextmanager
def recorded(root: Path, before: Callable[[], None] = lambda: None) -> Generator[Log]:
    """Record what this process does below a folder.

    Everything the standard library writes with goes through a few functions of ``os`` and ``io``;
    these are replaced for the time. What they miss, :func:`require_complete` finds.

    Parameters
    ----------
    root
        The folder.
    before
        Called before anything changes there. If it raises, that does not happen; of the first bytes
        that were to be written then, one half is.

    Yields
    ------
    Log
        Grows as things happen.
    """
    recorder = _Recorder(root, before)
    with pytest.MonkeyPatch.context() as patch:
        _replace_os_functions(recorder, patch)
        opening = _opening(recorder)
        patch.setattr("builtins.open", opening)
        patch.setattr(io, "open", opening)
        yield recorder.log


_MODELLED = (
    *("open", "close", "write", "pwrite", "ftruncate", "posix_fallocate", "fsync", "fdatasync"),
    *("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir"),
)
_REFUSED = ("symlink", "truncate")


def _replace_os_functions(recorder: _Recorder, patch: pytest.MonkeyPatch) -> None:
    real = {name: getattr(os, name) for name in (*_MODELLED, *_REFUSED)}

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with recorder.lock:
            inside = recorder.inside(path, dir_fd)
            existed = inside is not None and os.path.lexists(inside)
            if inside is not None and flags & (os.O_CREAT | os.O_TRUNC):
                recorder.before()
            descriptor = real["open"](path, flags, mode, dir_fd=dir_fd)
            recorder.opened(descriptor, inside, existed=existed, cut=bool(flags & os.O_TRUNC))
            return descriptor

    def close(descriptor: int) -> None:
        with recorder.lock:
            recorder.closed(descriptor)
            real["close"](descriptor)

    def write(descriptor: int, data: Any) -> int:
        with recorder.lock:
            if recorder.of(descriptor) is not None:
                recorder.before()
            count = real["write"](descriptor, data)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                start = os.lseek(descriptor, 0, os.SEEK_CUR) - count
                recorder.wrote(descriptor, start, bytes(data)[:count])
            return count

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        with recorder.lock:
            if recorder.of(descriptor) is not None:
                recorder.before()
            count = real["pwrite"](descriptor, data, offset)
            recorder.wrote(descriptor, offset, bytes(data)[:count])
            return count

    def syncing(name: str) -> Callable[[Any], None]:
        def sync(descriptor: Any) -> None:
            with recorder.lock:
                number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
                real[name](number)
                node = recorder.of(number)
                if node is not None:
                    recorder.add(Sync(node))

        return sync

    def renaming(name: str) -> Callable[..., None]:
        def rename(
            source: Any,
            target: Any,
            *,
            src_dir_fd: int | None = None,
            dst_dir_fd: int | None = None,
        ) -> None:
            with recorder.lock:
                there = recorder.inside(source, src_dir_fd), recorder.inside(target, dst_dir_fd)
                if there != (None, None):
                    recorder.before()
                real[name](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
                match there:
                    case (None, None):
                        return
                    case (str(old), str(new)):
                        recorder.renamed(old, new)
                    case _:
                        raise UnmodelledError(f"{source} -> {target} crosses the folder's border")

        return rename

    def link(source: Any, target: Any, **options: Any) -> None:
        with recorder.lock:
            there = recorder.inside(source), recorder.inside(target, options.get("dst_dir_fd"))
            if there != (None, None):
                recorder.before()
            real["link"](source, target, **options)
            match there:
                case (_, None):
                    return
                case (str(old), str(new)):
                    recorder.linked(old, new)
                case _:
                    raise UnmodelledError(f"{source} is linked into the folder from outside")

    def removing(name: str) -> Callable[..., None]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            with recorder.lock:
                inside = recorder.inside(path, dir_fd)
                if inside is not None:
                    recorder.before()
                real[name](path, dir_fd=dir_fd)
                if inside is not None:
                    recorder.gone(inside)

        return remove

    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with recorder.lock:
            inside = recorder.inside(path, dir_fd)
            if inside is not None:
                recorder.before()
            real["mkdir"](path, mode, dir_fd=dir_fd)
            if inside is not None:
                recorder.made(inside, folder=True)

    def ftruncate(descriptor: int, length: int) -> None:
        with recorder.lock:
            real["ftruncate"](descriptor, length)
            recorder.resized(descriptor, length)

    def posix_fallocate(descriptor: int, offset: int, length: int) -> None:
        with recorder.lock:
            real["posix_fallocate"](descriptor, offset, length)
            recorder.resized(descriptor, os.fstat(descriptor).st_size)

    def refused(name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **options: Any) -> Any:
            paths = [each for each in args if isinstance(each, (str, bytes, os.PathLike))]
            if any(recorder.inside(path) for path in paths):
                raise UnmodelledError(f"os.{name} below the folder is not modelled")
            return real[name](*args, **options)

        return refuse

    replaced: dict[str, Callable[..., Any]] = {
        "open": open_,
        "close": close,
        "write": write,
        "pwrite": pwrite,
        "fsync": syncing("fsync"),
        "fdatasync": syncing("fdatasync"),
        "replace": renaming("replace"),
        "rename": renaming("rename"),
        "link": link,
        "unlink": removing("unlink"),
        "remove": removing("remove"),
        "rmdir": removing("rmdir"),
        "mkdir": mkdir,
        "ftruncate": ftruncate,
        "posix_fallocate": posix_fallocate,
        **{name: refused(name) for name in _REFUSED},
    }
    for name, function in replaced.items():
        patch.setattr(os, name, function)


def _opening(recorder: _Recorder) -> Callable[..., Any]:
    """Return an ``open`` whose files tell of every write."""

    class RecordedFile(io.FileIO):
        def write(self, data: Any, /) -> int:
            with recorder.lock:
                try:
                    recorder.before()
                except BaseException:
                    if not recorder.torn:
                        super().write(bytes(data)[: len(data) // 2])
                        recorder.torn = True
                    raise
                count = super().write(data)
                assert count is not None
                recorder.wrote(self.fileno(), self.tell() - count, bytes(data)[:count])
                return count

        def truncate(self, size: int | None = None, /) -> int:
            with recorder.lock:
                length = super().truncate(size)
                recorder.resized(self.fileno(), length)
                return length

        def close(self) -> None:
            with recorder.lock:
                if not self.closed:
                    recorder.closed(self.fileno())
                super().close()

    def opening(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        inside = recorder.inside(file)
        recorded_descriptor = isinstance(file, int) and recorder.of(file) is not None
        if not set(mode) & set("wax+") or (inside is None and not recorded_descriptor):
            return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        bare = mode.replace("b", "").replace("t", "")
        with recorder.lock:
            existed = inside is not None and os.path.lexists(inside)
            recorder.before()
            raw = RecordedFile(file, bare, closefd, opener)
            if inside is not None and opener is None:  # an opener goes through os.open
                recorder.opened(raw.fileno(), inside, existed=existed, cut="w" in mode)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    return opening


# What may stand there --------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """A folder as a power cut may leave it.

    Attributes
    ----------
    files
        Bytes of each file, by path.
    nodes
        Which file or folder it is, by path.
    folders
        Paths of its folders.
    """

    files: Mapping[str, bytes]
    nodes: Mapping[str, Node]
    folders: frozenset[str]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, State)
            and self.folders == other.folders
            and self.files == other.files
            and self.nodes == other.nodes
        )

    def __hash__(self) -> int:
        return hash((self.folders, frozenset(self.files.items()), frozenset(self.nodes.items())))


@dataclass
class _File:
    """A file: what is safe of it, and what was done to it since."""

    safe: bytes = b""
    now: bytes = b""
    pending: list[Data | Size] = field(default_factory=list)


@dataclass
class _Folder:
    """A folder: entries that are safe, and each name's changes since."""

    safe: dict[str, Node | None] = field(default_factory=dict)
    pending: dict[str, list[Node | None]] = field(default_factory=dict)


EntryChoice = Callable[[list[Node | None]], Node | None]
"""Which of an entry's possible values is on the disk; the first is safe, the last the newest."""
DataChoice = Callable[["_File"], bytes]
"""Which bytes of a file are on the disk."""


class Disk:
    """What of a log is safe, and what is not, after some of its events."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._files: dict[Node, _File] = {}
        self._folders: dict[Node, _Folder] = {ROOT: _Folder()}
        for event in log.before:
            self.apply(event)
        for node in (*self._files, *self._folders):
            self.apply(Sync(node))

    def apply(self, event: Event) -> None:
        """Let the next event happen."""
        match event:
            case Entry(folder, name, node):
                if node in self.log.folders:
                    self._folders.setdefault(node, _Folder())
                elif node is not None:
                    self._files.setdefault(node, _File())
                self._folders[folder].pending.setdefault(name, []).append(node)
            case Data(node) | Size(node):
                file = self._files[node]
                file.pending.append(event)
                file.now = _changed(file.now, event)
            case Sync(node) if node in self._folders:
                folder = self._folders[node]
                folder.safe.update({name: nodes[-1] for name, nodes in folder.pending.items()})
                folder.pending.clear()
            case Sync(node):
                file = self._files[node]
                file.safe = file.now
                file.pending.clear()
            case Note():
                pass

    def now(self) -> State:
        """Return what stands there while the power is on."""
        return self.state(_newest, _kept)

    def unsafe_entries(self, folder: Node) -> dict[str, Node | None]:
        """Return the entries of a folder that an fsync of it would make safe."""
        return {name: nodes[-1] for name, nodes in self._folders[folder].pending.items()}

    def state(self, entries: EntryChoice, data: DataChoice) -> State:
        """Return what stands there for one choice of what reached the disk."""
        files: dict[str, bytes] = {}
        nodes: dict[str, Node] = {}
        folders: set[str] = set()
        chosen: dict[Node, bytes] = {}

        def enter(folder: Node, above: str) -> None:
            known = self._folders[folder]
            for name in sorted({*known.safe, *known.pending}):
                options = [known.safe.get(name), *known.pending.get(name, ())]
                node = entries(options) if len(options) > 1 else options[0]
                path = f"{above}{name}"
                if node in self._folders:
                    folders.add(path)
                    nodes[path] = node
                    enter(node, f"{path}/")
                elif node is not None:
                    if node not in chosen:
                        file = self._files[node]
                        chosen[node] = data(file) if file.pending else file.safe
                    files[path], nodes[path] = chosen[node], node

        enter(ROOT, "")
        return State(files, nodes, frozenset(folders))

    def states(self, seed: int, mixtures: int) -> Iterator[State]:
        """Yield some of the states that a power cut now may leave.

        Everything lost that may be; everything kept; names kept and bytes lost, in three ways; and
        mixtures drawn from a seed.
        """
        yield self.state(_oldest, _lost)
        yield self.now()
        yield self.state(_newest, _lost)
        yield self.state(_newest, _zeroed)
        draw = Random(seed)
        yield self.state(_newest, lambda file: _cut(file, draw))
        for _ in range(mixtures):
            share = draw.choice((0.1, 0.5, 0.9))
            yield self.state(
                lambda options, share=share: (
                    options[-1] if draw.random() < share else draw.choice(options)
                ),
                lambda file: draw.choice((_lost, _kept, _zeroed, _torn(draw)))(file),
            )


def _oldest(options: list[Node | None]) -> Node | None:
    return options[0]


def _newest(options: list[Node | None]) -> Node | None:
    return options[-1]


def _lost(file: _File) -> bytes:
    return file.safe


def _kept(file: _File) -> bytes:
    return file.now


def _zeroed(file: _File) -> bytes:
    """The size reached the disk, the bytes did not."""
    found = file.safe
    for event in file.pending:
        if isinstance(event, Data):
            found = _changed(found, Data(event.node, event.offset, bytes(len(event.data))))
        else:
            found = _changed(found, event)
    return found


def _cut(file: _File, draw: Random) -> bytes:
    return file.now[: draw.randint(0, len(file.now))]


def _torn(draw: Random) -> DataChoice:
    """Some of the writes are there, whole or in part."""

    def torn(file: _File) -> bytes:
        found = file.safe
        for event in file.pending:
            if draw.random() < 0.3:
                continue
            if isinstance(event, Data):
                kept = event.data[: draw.randint(0, len(event.data))]
                found = _changed(found, Data(event.node, event.offset, kept))
            else:
                found = _changed(found, event)
        return found

    return torn


def _changed(content: bytes, event: Data | Size) -> bytes:
    if isinstance(event, Size):
        return content[: event.size].ljust(event.size, b"\0")
    filled = content.ljust(event.offset, b"\0")
    return filled[: event.offset] + event.data + filled[event.offset + len(event.data) :]


# Standing states up again ----------------------------------------------------------------------


def standing_in(root: Path) -> tuple[dict[str, bytes], set[str]]:
    """Return the files and folders that really stand below a folder."""
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_dir() and not path.is_symlink():
            folders.add(name)
        else:
            files[name] = path.read_bytes()
    return files, folders


def require_complete(log: Log, root: Path) -> None:
    """Check that nothing happened below a folder but what its log says.

    Raises
    ------
    UnmodelledError
        If replaying all of it does not give what stands there.
    """
    disk = Disk(log)
    for event in log.events:
        disk.apply(event)
    replayed = disk.now()
    files, folders = standing_in(root)
    if (dict(replayed.files), set(replayed.folders)) != (files, folders):
        differing = {
            name
            for name in {*replayed.files, *files}
            if replayed.files.get(name) != files.get(name)
        }
        raise UnmodelledError(
            f"the log misses changes of {sorted(differing | (replayed.folders ^ folders))}"
        )


class Stand:
    """A real folder that shows one state after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._shown: State = State({}, {}, frozenset())
        self._marks: dict[tuple[int, int], Mark] = {}
        root.mkdir(parents=True)

    def show(self, state: State, log: Log) -> None:
        """Make the folder this state; only what differs from the one before is touched."""
        before = self._shown
        for name, data in before.files.items():
            if (state.nodes.get(name), state.files.get(name)) != (before.nodes[name], data):
                (self.root / name).unlink()
        for name in sorted(before.folders - state.folders, reverse=True):
            (self.root / name).rmdir()
        for name in sorted(state.folders - before.folders):
            (self.root / name).mkdir()
        for name, data in state.files.items():
            if (before.nodes.get(name), before.files.get(name)) != (state.nodes[name], data):
                path = self.root / name
                path.write_bytes(data)
                status = path.stat()
                mark = log.marks.get(state.nodes[name])
                if mark is not None:
                    self._marks[status.st_ino, status.st_mtime_ns] = mark
        self._shown = state

    @contextmanager
    def with_marks(self) -> Generator[None]:
        """Let every file have the inode and the modification time it had when it was written.

        The worst that can happen: a file that lost its bytes looks untouched.
        """
        real = {name: getattr(os, name) for name in ("stat", "lstat", "fstat")}

        def looking(name: str) -> Callable[..., os.stat_result]:
            def look(*args: Any, **options: Any) -> os.stat_result:
                found: os.stat_result = real[name](*args, **options)
                mark = self._marks.get((found.st_ino, found.st_mtime_ns))
                return found if mark is None else _marked(found, mark)

            return look

        with pytest.MonkeyPatch.context() as patch:
            for name in real:
                patch.setattr(os, name, looking(name))
            yield


def _marked(found: os.stat_result, mark: Mark) -> os.stat_result:
    fields = list(found)
    fields[stat.ST_INO] = mark.inode
    fields[stat.ST_MTIME] = mark.mtime_ns // 10**9
    times = {
        "st_atime": found.st_atime,
        "st_ctime": found.st_ctime,
        "st_mtime": mark.mtime_ns / 10**9,
        "st_atime_ns": found.st_atime_ns,
        "st_ctime_ns": found.st_ctime_ns,
        "st_mtime_ns": mark.mtime_ns,
    }
    return os.stat_result(fields, times)
