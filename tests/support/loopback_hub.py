"""A Hub on loopback: the endpoints that huggingface_hub, transformers and datasets really call, kept in memory.

It knows users by tokens, refuses what they may not do, takes large files over LFS (in one part or several) and over
Xet, commits all or nothing, and can break a connection at a chosen request.
"""

import base64
import fnmatch
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants
from loopback_repos import Blob, Fault, Refusal, Repo, Token, strikes, tree_entry
from loopback_xet import XetStore

PART_SIZE = 400_000  # LFS objects beyond it are uploaded in parts
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".jpg", ".bin")
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


class LoopbackHub:
    """Start and stop it with `with`; `url` is what HF_ENDPOINT must be."""

    def __init__(self, tokens: dict[str, Token]):
        self.tokens = tokens
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.parts: dict[tuple[str, int], bytes] = {}
        self.xet = XetStore()
        self.faults: list[Fault] = []
        self.spoiled: set[str] = set()  # files that get a byte more than was sent
        self.requests: list[tuple[str, str, int]] = []  # "METHOD /path", Range header or "", bytes of the body
        self.lock = threading.RLock()

    def __enter__(self) -> "LoopbackHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn_url = f"http://localhost:{self.server.server_port}"  # another host to the client, as a CDN is
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def add_repo(self, name: str, kind: str = "model", private: bool = False) -> Repo:
        repo = self.repos[kind, name] = Repo(kind, name, private)
        repo.commit("refs/heads/main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return repo

    def put(self, folder: Path, name: str, kind: str = "model", private: bool = False) -> str:
        """Commit a folder's files, in a new repository or as what it now holds; the commit."""
        repo = self.repos.get((kind, name)) or self.add_repo(name, kind, private)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        blobs = [Blob(path.read_bytes(), path.suffix in LFS_SUFFIXES) for path in paths]
        files = {path.relative_to(folder).as_posix(): blob for path, blob in zip(paths, blobs, strict=True)}
        self.objects |= {blob.sha256: blob.content for blob in files.values()}
        return repo.commit("refs/heads/main", files, "put")

    def sent(self, pattern: str) -> int:
        """Bytes of the requests that match."""
        return sum(size for line, _, size in self.requests if re.search(pattern, line))

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line, _, _ in self.requests)


@contextmanager
def connected_hub(tokens: dict[str, Token], scratch: Path) -> Iterator[LoopbackHub]:
    """A Hub to which this process's client speaks, as "hf_ada" and without Xet."""
    with LoopbackHub(tokens) as hub, pytest.MonkeyPatch.context() as patch:
        pages = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pages)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", str(scratch / "no-token"))
        patch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it remembers an earlier Hub
        patch.setenv("HF_TOKEN", "hf_ada")
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        line = f"{self.command} {url.path}"
        with hub.lock:
            kind = next((kind for fault in hub.faults if (kind := strikes(fault, line))), "")
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length // 2 if kind == "cut" else length)
        with hub.lock:
            hub.requests.append((line, self.headers.get("Range", ""), len(body)))
        if kind == "cut":
            return self.hang_up()
        try:
            with hub.lock:
                status, headers, answer = self.route(url.path, parse_qs(url.query), body)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            status, answer = refusal.status, json.dumps({"error": refusal.message}).encode()
        if kind == "mute":
            return self.hang_up()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer[: len(answer) // 2] if kind == "cut answer" else answer)
        if kind == "cut answer":
            self.hang_up()
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def route(self, path: str, query: dict, body: bytes) -> tuple[int, dict[str, str], bytes]:
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                named = {key: unquote(value) for key, value in match.groupdict("").items()}
                if "kind" in named:
                    named["kind"] = named["kind"].rstrip("/").removesuffix("s") or "model"
                answer = method(self, query=query, body=body, **named)
                return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        raise Refusal(404, f"No such endpoint: {self.command} {path}")

    # Who asks, and what may they do

    def token(self) -> Token | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(given)

    def find(self, kind: str, name: str) -> Repo:
        token, repo = self.token(), self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self.may_read(token, name)):
            raise Refusal(404 if token else 401, "Repository not found", "RepoNotFound")
        return repo

    def may_read(self, token: Token | None, name: str) -> bool:
        return token is not None and name.split("/")[0] in (token.user, *token.owners)

    def check_write(self, name: str) -> Token:
        token = self.token()
        if token is None or token.role != "write" or not self.may_read(token, name):
            raise Refusal(403, f"You don't have the rights to write to {name}")
        return token

    # Repositories

    def whoami(self, query, body):
        token = self.token()
        if token is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "name": token.user, "auth": {"accessToken": {"displayName": "t", "role": token.role}}}

    def create(self, query, body):
        asked = json.loads(body)
        token = self.token()
        if token is None:
            raise Refusal(401, "Invalid username or password.")
        name, kind = f"{asked['organization'] or token.user}/{asked['name']}", asked.get("type") or "model"
        self.check_write(name)
        if kind == "space" and asked.get("sdk") != "gradio":
            raise Refusal(400, "A Space needs an SDK")
        if (kind, name) in self.hub.repos:
            there = {"error": "You already created this repo", "url": f"{self.hub.url}/{PREFIXES[kind]}{name}"}
            return 409, {"X-Error-Message": there["error"]}, json.dumps(there).encode()
        self.hub.add_repo(name, kind, private=bool(asked.get("private")) or asked.get("visibility") == "private")
        return {"url": f"{self.hub.url}/{PREFIXES[kind]}{name}", "id": name}

    def info(self, query, body, kind, name, revision="main"):
        repo = self.find(kind, name)
        oid = repo.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        common = {"_id": "1", "id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []}
        return common | {"modelId": name, "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}

    def tree(self, query, body, kind, name, revision, path=""):
        repo = self.find(kind, name)
        files = repo.commits[repo.resolve(revision)]
        found, path = {}, path.strip("/")
        for file in files:
            if path and not file.startswith(f"{path}/"):
                continue
            rest = file[len(path) + 1 :] if path else file
            for depth in range(1, rest.count("/") + 1):
                folder = "/".join([*([path] if path else []), *rest.split("/")[:depth]])
                found[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            found[file] = tree_entry(file, files[file])
        if path and not found:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        if query.get("recursive", ["false"])[0].lower() != "true":
            found = {key: entry for key, entry in found.items() if "/" not in key[len(path) :].strip("/")}
        return list(found.values())

    def paths_info(self, query, body, kind, name, revision):
        repo = self.find(kind, name)
        files = repo.commits[repo.resolve(revision)]
        asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
        return [tree_entry(path, files[path]) for path in asked if path in files]

    def refs(self, query, body, kind, name):
        refs = self.find(kind, name).refs
        rows = [{"name": ref.removeprefix("refs/heads/"), "ref": ref, "targetCommit": oid} for ref, oid in refs.items()]
        pulls = [row for row in rows if row["ref"].startswith("refs/pr/")]
        branches = [row for row in rows if row not in pulls]
        return {"branches": branches, "tags": [], "converts": [], "pullRequests": pulls}

    def branch(self, query, body, kind, name, branch):
        repo = self.find(kind, name)
        self.check_write(name)
        if f"refs/heads/{branch}" in repo.refs:
            raise Refusal(409, "Reference already exists")
        repo.refs[f"refs/heads/{branch}"] = repo.resolve(json.loads(body or b"{}").get("startingPoint") or "main")
        return {}

    def variables(self, query, body, name):
        repo = self.find("space", name)
        self.check_write(name)
        if body:
            given = json.loads(body)
            repo.variables[given["key"]] = {"value": given["value"], "updatedAt": "2026-01-01T00:00:00.000Z"}
        return repo.variables

    # Uploads

    def preupload(self, query, body, kind, name, revision):
        repo = self.find(kind, name)
        if not query.get("create_pr"):
            self.check_write(name)
        files = repo.commits[repo.resolve(revision)]
        ignored = files[".gitignore"].content.decode().split() if ".gitignore" in files else []
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 else "regular"
            ignore = any(fnmatch.fnmatch(path, pattern) for pattern in ignored)
            oid = {"oid": files[path].etag} if path in files else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignore, **oid})
        return {"files": answers}

    def lfs_batch(self, query, body, name):
        if self.token() is None:
            raise Refusal(401, "Log in first")
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            if oid in self.hub.objects:
                objects.append(asked)
                continue
            header, target = {}, f"{self.hub.url}/lfs/{oid}"
            if size > PART_SIZE:
                count = -(-size // PART_SIZE)
                header = {f"{part:05d}": f"{target}/{part}" for part in range(1, count + 1)}
                header["chunk_size"] = str(PART_SIZE)
            verify = {"href": f"{self.hub.url}/lfs-verify"}
            objects.append(asked | {"actions": {"upload": {"href": target, "header": header}, "verify": verify}})
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, query, body, oid, part=""):
        if part:
            self.hub.parts[oid, int(part)] = body
            return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""
        return self.keep(oid, body)

    def lfs_complete(self, query, body, oid):
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        return self.keep(oid, b"".join(self.hub.parts[oid, number] for number in numbers))

    def keep(self, oid: str, content: bytes):
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The content has another hash")
        self.hub.objects[oid] = content
        return {}

    def lfs_verify(self, query, body):
        if json.loads(body)["oid"] not in self.hub.objects:
            raise Refusal(404, "Object not found")
        return {}

    def xet_token(self, query, body, kind, name):
        self.find(kind, name)
        if not query.get("create_pr"):
            self.check_write(name)
        expiration = str(int(time.time()) + 3600)
        headers = {"X-Xet-Cas-Url": self.hub.url, "X-Xet-Token-Expiration": expiration, "X-Xet-Access-Token": "xet"}
        answer = {"casUrl": self.hub.url, "exp": int(expiration), "accessToken": "xet"}
        return 200, headers, json.dumps(answer).encode()

    def xorb(self, query, body, name):
        return {"was_inserted": self.hub.xet.add_xorb(name, body)}

    def shard(self, query, body):
        for content in self.hub.xet.read_shard(body):
            self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        return {"result": 1}

    def commit(self, query, body, kind, name, revision):
        repo, is_pull = self.find(kind, name), bool(query.get("create_pr"))
        token = self.token()
        if not is_pull:
            token = self.check_write(name)
        if token is None:
            raise Refusal(401, "Log in first")
        head, files, title = repo.resolve(revision), None, ""
        files = dict(repo.commits[head])
        for line in body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", head) != head and not is_pull:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = Blob(content + b" " * (value["path"] in self.hub.spoiled), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"LFS object {value['oid']} is not there")
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        pulls = sum(ref.startswith("refs/pr/") for ref in repo.refs)
        ref = f"refs/pr/{pulls + 1}" if is_pull else f"refs/heads/{revision}"
        oid = repo.commit(ref, files, title)
        page = f"{self.hub.url}/{PREFIXES[kind]}{name}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}", "hookOutput": ""}
        return answer | ({"pullRequestUrl": f"{page}/discussions/{pulls + 1}"} if is_pull else {})

    def validate_yaml(self, query, body):
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error:
            return 400, {}, json.dumps({"errors": [{"message": str(error)}]}).encode()
        return {"errors": [], "warnings": [] if metadata else [{"message": "empty or missing yaml metadata"}]}

    # Downloads

    def resolve(self, query, body, kind, name, revision, path):
        repo = self.find(kind, name)
        token = self.token()
        if repo.readers is not None and (token is None or token.user not in repo.readers):
            message = f"Access to model {name} is restricted. You must have access to it and be authenticated."
            raise Refusal(403 if token else 401, message, "GatedRepo")
        oid = repo.resolve(revision)
        blob = repo.commits[oid].get(path)
        if blob is None:  # the client remembers of which commit
            said = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return 404, said | {"X-Repo-Commit": oid}, b""
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return self.ranged(blob.content, headers)
        headers |= {"X-Linked-Size": str(len(blob.content)), "X-Linked-ETag": f'"{blob.etag}"'}
        return 302, headers | {"Location": f"{self.hub.cdn_url}/cdn/{blob.sha256}"}, b""

    def cdn(self, query, body, oid):
        return self.ranged(self.hub.objects[oid], {"Accept-Ranges": "bytes"})

    def ranged(self, content: bytes, headers: dict[str, str]):
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            return 200, headers, content
        first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
        if first >= len(content):
            return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
        return 206, headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]


_KIND, _NAME = "(?P<kind>model|dataset|space)s", "(?P<name>[^/]+/[^/]+)"
_REPO, _PAGE = f"/api/{_KIND}/{_NAME}", f"/(?P<kind>(?:datasets|spaces)/)?{_NAME}"
_ROUTES = [
    ("GET /api/whoami-v2", _Handler.whoami),
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate_yaml),
    (f"(?:GET|POST) /api/spaces/{_NAME}/variables", _Handler.variables),
    (f"GET {_REPO}(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    (f"GET {_REPO}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", _Handler.tree),
    (f"POST {_REPO}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (f"GET {_REPO}/refs", _Handler.refs),
    (f"POST {_REPO}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (f"POST {_REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (f"POST {_REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (f"GET {_REPO}/xet-write-token/[^/]+", _Handler.xet_token),
    ("POST /v1/xorbs/default/(?P<name>[0-9a-f]{64})", _Handler.xorb),
    ("POST /v1/shards", _Handler.shard),
    (f"POST /(?:datasets/|spaces/)?{_NAME}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT /lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>[0-9]+))?", _Handler.lfs_put),
    ("POST /lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_complete),
    ("POST /lfs-verify", _Handler.lfs_verify),
    (f"(?:GET|HEAD) {_PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("(?:GET|HEAD) /cdn/(?P<oid>[0-9a-f]{64})", _Handler.cdn),
]
