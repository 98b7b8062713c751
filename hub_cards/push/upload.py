"""One commit on the Hub or none: what it would change, the upload, and the comparison with what the Hub then has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of the HTTP library that this version of huggingface_hub is built on
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from .prove import PushError

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
# Uploaded in one go before the commit: an interrupted upload resumes with the group that it was in.
_GROUP_FILES, _GROUP_BYTES = 50, 4 * 2**30
_AGAIN = "Nothing was committed. Run the same command again: what the Hub has received is not sent again."


@dataclass(frozen=True)
class Upload:
    """Files for one repository."""

    repo_id: str  # "user/name"
    repo_type: str  # "model", "dataset" or "space"
    files: Mapping[str, Path | bytes]  # by path on the Hub
    # patterns of files that are removed from the repository unless `files` has them, because they would be loaded
    # beside the new ones
    stale: Sequence[str] = ()
    # files that prevent the use of a repository, with the reason
    refused: Mapping[str, str] = field(default_factory=dict)
    restricted: str = ""  # why the repository must be private; empty where it may be public


@dataclass(frozen=True)
class Changes:
    """Paths that a commit changes in a repository; `kept` are the others that are there."""

    new: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Pushed:
    """The commit that holds the files; `committed` is false where the repository had them all already."""

    info: CommitInfo
    committed: bool


class Hub:
    """A Hub, and the user whose token is used.

    Args:
        token: A token that can write; by default the one that huggingface_hub finds.

    Raises:
        PushError: There is no token, the Hub rejects it, or it can only read.
    """

    def __init__(self, token: str | None = None):
        self.api = HfApi(token=token)
        with _explained("The Hub could not be asked whose the token is", "", then=""):
            try:
                user = self.api.whoami()
            except LocalTokenNotFoundError:
                raise PushError(
                    "There is no token for the Hub. Make one that may write at https://huggingface.co/settings/tokens "
                    "and run `hf auth login`, or put it into HF_TOKEN."
                ) from None
            except HfHubHTTPError as error:
                if error.response.status_code != 401:
                    raise
                raise PushError(
                    f"The Hub ({self.api.endpoint}) does not take this token: it was deleted, has expired, or is of "
                    "another Hub. Run `hf auth login`, or mend HF_TOKEN."
                ) from None
        self.user: str = user["name"]
        token_info = (user.get("auth") or {}).get("accessToken") or {}
        if token_info.get("role") == "read":
            raise PushError(
                f"The token {token_info.get('displayName', '')!r} of {self.user} may only read. Make one that may "
                "write at https://huggingface.co/settings/tokens and run `hf auth login`."
            )

    def push(
        self,
        upload: Upload,
        *,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        message: str = "Upload with depthvlm push",
        on_changes: Callable[[Changes], None] | None = None,
    ) -> Pushed:
        """Upload files, commit once, and compare what the Hub has with what was meant.

        Args:
            upload: The files and where they go.
            private: Make a new repository private; an existing one must then be private.
            revision: The branch to commit to; made from the main branch where it does not exist.
            create_pr: Open a pull request instead of committing.
            message: Message of the commit.
            on_changes: Called with what will change, before anything is sent.

        Raises:
            PushError: Says what failed and why. Unless the message says otherwise, nothing was committed.
        """
        if revision and _COMMIT_HASH.fullmatch(revision):
            raise PushError(f"--revision {revision} is a commit, and nothing can be added to a commit: name a branch.")
        where = f"{upload.repo_type} {upload.repo_id}"
        with _explained(f"Uploading to the {where} failed", where):
            self._ready(upload, private, revision, create_pr)
            head = self.api.repo_info(upload.repo_id, repo_type=upload.repo_type, revision=revision).sha
            assert head is not None  # only where fields are chosen by `expand`
            there = self._tree(upload, head)
            operations = {name: _addition(name, source) for name, source in upload.files.items()}
            changes = _compare(upload, operations, there)
            if on_changes is not None:
                on_changes(changes)
            if not changes.new and not changes.replaced and not changes.removed:
                prefix = "" if upload.repo_type == "model" else f"{upload.repo_type}s/"
                url = f"{self.api.endpoint}/{prefix}{upload.repo_id}/commit/{head}"
                return Pushed(CommitInfo(url, message, "", head, self.api.endpoint), committed=False)
            for group in _groups(list(operations.values())):
                self.api.preupload_lfs_files(
                    upload.repo_id,
                    group,
                    repo_type=upload.repo_type,
                    revision=revision,
                    create_pr=create_pr,
                    free_memory=False,
                )
        with _explained(f"Committing to the {where} failed", where, committing=True):
            info = self.api.create_commit(
                upload.repo_id,
                [*operations.values(), *(CommitOperationDelete(name, is_folder=False) for name in changes.removed)],
                commit_message=message,
                repo_type=upload.repo_type,
                revision=revision,
                create_pr=create_pr,
                parent_commit=head,
            )
        read_back = f"The files are in commit {info.oid} of the {where}, but it could not be read back to compare them"
        with _explained(read_back, where, then=""):
            self._check(upload, operations, changes, info)
        return Pushed(info, committed=True)

    def _ready(self, upload: Upload, private: bool, revision: str | None, create_pr: bool) -> None:
        """Make the repository and the branch where they do not exist."""
        name, kind = upload.repo_id, upload.repo_type
        try:
            info = self.api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError:
            if create_pr:
                raise PushError(f"There is no {kind} {name} to open a pull request in.") from None
            if upload.restricted and not private:
                raise PushError(f"{upload.restricted} Make the repository private (--private).") from None
            sdk = "gradio" if kind == "space" else None
            self.api.create_repo(name, repo_type=kind, private=private or None, space_sdk=sdk, exist_ok=True)
        else:
            if private and not info.private:
                raise PushError(
                    f"The {kind} {name} is there and public, and --private is for a new one. Make it private in its "
                    "settings first, or leave --private out."
                )
            if upload.restricted and not info.private:
                raise PushError(f"{upload.restricted} The {kind} {name} is public: choose a private one.")
        if revision and not create_pr:
            try:
                self.api.repo_info(name, repo_type=kind, revision=revision)
            except RevisionNotFoundError:
                self.api.create_branch(name, branch=revision, repo_type=kind, exist_ok=True)

    def _tree(self, upload: Upload, revision: str) -> dict[str, RepoFile]:
        tree = self.api.list_repo_tree(upload.repo_id, repo_type=upload.repo_type, revision=revision, recursive=True)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _check(
        self, upload: Upload, operations: Mapping[str, CommitOperationAdd], changes: Changes, info: CommitInfo
    ) -> None:
        there = self._tree(upload, info.pr_revision or info.oid)
        wrong = [f"{name} is still there" for name in changes.removed if name in there]
        for name, operation in operations.items():
            if name not in there:
                wrong.append(f"{name} is not there")
            elif not _same(operation, there[name]):
                wrong.append(f"{name} has other bytes")
        if wrong:
            ignored = " A .gitignore in the repository keeps files out." if ".gitignore" in there else ""
            raise PushError(
                f"Commit {info.oid} of {upload.repo_id} is not what was sent: {'; '.join(wrong)}.{ignored} Do not "
                "use it: run the same command again, or take the commit back on the Hub."
            )


def _addition(name: str, source: Path | bytes) -> CommitOperationAdd:
    operation = CommitOperationAdd(name, source)
    operation.upload_info.sha256  # noqa: B018  (hashed here, from the file: an upload that hashes for itself is checked)
    return operation


def _compare(upload: Upload, operations: Mapping[str, CommitOperationAdd], there: Mapping[str, RepoFile]) -> Changes:
    for name, reason in upload.refused.items():
        if name in there:
            raise PushError(f"{upload.repo_id} holds {name}: {reason}. Remove it there, or choose another repository.")
    same = {name for name, operation in operations.items() if name in there and _same(operation, there[name])}
    removed = {
        name for name in there if name not in operations and any(fnmatch(name, pattern) for pattern in upload.stale)
    }
    return Changes(
        new=tuple(name for name in operations if name not in there),
        replaced=tuple(name for name in operations if name in there and name not in same),
        unchanged=tuple(name for name in operations if name in same),
        removed=tuple(sorted(removed)),
        kept=tuple(sorted(set(there) - set(operations) - removed)),
    )


def _same(operation: CommitOperationAdd, there: RepoFile) -> bool:
    if there.lfs is not None:
        return there.lfs.sha256 == operation.upload_info.sha256.hex()
    if there.size != operation.upload_info.size:
        return False
    with operation.as_file() as file:
        return there.blob_id == git_hash(file.read())


def _groups(operations: Sequence[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    group: list[CommitOperationAdd] = []
    for operation in operations:
        size = sum(other.upload_info.size for other in [*group, operation])
        if group and (len(group) == _GROUP_FILES or size > _GROUP_BYTES):
            yield group
            group = []
        group.append(operation)
    yield group


@contextmanager
def _explained(what: str, where: str, *, committing: bool = False, then: str = _AGAIN) -> Iterator[None]:
    """Turn errors of the Hub and of the network into a `PushError` that ends with `then`."""
    try:
        yield
    except PushError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403) and where:
            raise PushError(
                f"The token may not write to the {where}: {error.server_message or error}. Use one that may (a "
                "fine-grained token needs write access to this repository), or open a pull request with --create-pr. "
                "Nothing was committed."
            ) from error
        if status == 412:
            raise PushError(f"Someone else has committed to the {where} meanwhile. {_AGAIN}") from error
        raise PushError(f"{what}: {error}\n{then}") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: from the transfer of large files
        cause = error.__cause__ or error if isinstance(error, RuntimeError) else error
        if committing and isinstance(error, HTTPError):
            then = (
                "Whether the commit was made is not known, for the answer did not come. Run the same command again: it "
                "finishes what is missing, or says that all is there."
            )
        raise PushError(f"{what}: {cause!s} ({type(cause).__name__})\n{then}") from error
