"""What a Hub on loopback keeps: repositories with their commits, tokens, and what shall go wrong."""

import hashlib
import re
from dataclasses import dataclass, field


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Token:
    user: str
    role: str = "write"
    owners: tuple[str, ...] = ()  # whose repositories it may write to, besides the user's


@dataclass
class Fault:
    """
    Requests whose "METHOD /path" matches `pattern` go wrong, `times` of them after the first `after`: "cut" in the
    middle of the request's body, "cut answer" in the middle of the answer's, "mute" (done, and no answer comes).
    """

    pattern: str
    kind: str
    times: int = 1
    after: int = 0


@dataclass
class Blob:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        )

    @property
    def git_oid(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    variables: dict[str, dict] = field(default_factory=dict)
    readers: tuple[str, ...] | None = None  # users who were let in; None: the repository is not gated

    def commit(self, ref: str, files: dict[str, Blob], title: str) -> str:
        oid = hashlib.sha1(f"{self.kind} {self.name} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        self.titles.append(title)
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.refs.get(f"refs/heads/{revision}") or self.refs.get(revision)
        if oid is None and revision not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid or revision

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {name: blob.content for name, blob in self.commits[self.resolve(revision)].items()}


def strikes(fault: Fault, line: str) -> str:
    """The kind of a fault that this request meets, or nothing."""
    if not fault.times or not re.search(fault.pattern, line):
        return ""
    if fault.after:
        fault.after -= 1
        return ""
    fault.times -= 1
    return fault.kind


def tree_entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": path, "oid": blob.git_oid, "size": len(blob.content)}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return entry
