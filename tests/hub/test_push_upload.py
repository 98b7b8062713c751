"""One commit or none, with the real client against a Hub on loopback: what changes, is refused, is resumed."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

# Of hf_xet, which reads them once: it would wait for seconds between its attempts.
os.environ |= {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}

import huggingface_hub
import pytest
from depthvlm.hub_cards.push.package import PushError, adapter_upload, model_upload
from depthvlm.hub_cards.push.upload import Hub, Upload
from huggingface_hub import HfApi, hf_hub_download
from loopback_hub import connected_hub
from loopback_repos import Fault, Token

TOKENS = {"hf_ada": Token("ada", owners=("lab",)), "hf_reader": Token("ada", role="read"), "hf_eve": Token("eve")}
CARD = "---\nlicense: apache-2.0\n---\n# Card\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    with connected_hub(TOKENS, tmp_path) as hub:
        yield hub


@pytest.fixture
def files(tmp_path):
    """Three shards of other random bytes and a text; the first two fit into one LFS part."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number, size in enumerate((100_000, 300_000, 900_000), 1):
        (folder / f"model-0000{number}-of-00003.safetensors").write_bytes(os.urandom(size))
    (folder / "config.json").write_text("{}")
    return {file.name: file for file in sorted(folder.iterdir())}


def contents(files):
    return {name: file.read_bytes() for name, file in files.items()} | {"README.md": CARD.encode()}


def assert_there(hub, files):
    there = hub.repo("ada/model").files()
    assert {name: there[name] for name in contents(files)} == contents(files)


def push(files, repo="ada/model", token=None, **options):
    seen = []
    pushed = Hub(token).push(model_upload(files, repo, CARD), on_changes=seen.append, **options)
    return pushed, seen[0]


@contextmanager
def nothing_changes(hub, repo="ada/model"):
    """Of the repository's branches, where it is there at all."""
    there = hub.repos.get(("model", repo))
    before = dict(there.refs) if there else {}
    yield
    there = hub.repos.get(("model", repo))
    if before:
        assert there.refs == before
    elif there:
        assert there.titles == ["initial commit"]


def test_a_new_repository_gets_all_in_one_commit(hub, files):
    pushed, changes = push(files)
    repo = hub.repo("ada/model")
    assert repo.titles == ["initial commit", "Upload with depthvlm push"]
    assert repo.private is False
    there = repo.files(pushed.info.oid)
    assert there.pop(".gitattributes")
    assert there == contents(files)
    assert sorted(changes.new) == sorted(contents(files))
    assert changes.kept == (".gitattributes",)
    assert hub.count("PUT /lfs/.{64}$") == 2  # in one part
    assert hub.count("PUT /lfs/.{64}/") == 3  # 900 000 bytes in parts of 400 000
    assert pushed.info.commit_url == f"{hub.url}/ada/model/commit/{pushed.info.oid}"


def test_over_xet_as_the_client_does_where_it_can(hub, files, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    push(files)
    assert hub.count("POST /v1/xorbs/") >= 1
    assert hub.count("/lfs") == 0
    assert_there(hub, files)


def test_nothing_to_do_and_one_file_to_replace(hub, files):
    first, _ = push(files)
    before = len(hub.requests)
    again, changes = push(files)
    assert not again.committed
    assert again.info.oid == first.info.oid
    assert sorted(changes.unchanged) == sorted(contents(files))
    assert not [line for line, _, _ in hub.requests[before:] if not line.startswith("GET")]
    assert len(hub.repo("ada/model").titles) == 2
    files["config.json"].write_text('{"a": 1}')
    _, changes = push(files)
    assert changes.replaced == ("config.json",)
    assert hub.repo("ada/model").files()["config.json"] == b'{"a": 1}'


def test_a_repository_that_exists_keeps_what_is_not_ours(hub, files):
    push(files)
    repo = hub.repo("ada/model")
    foreign = {"notes/idea.md": b"keep me", "onnx/model.onnx": b"too"}
    added = [huggingface_hub.CommitOperationAdd(name, content) for name, content in foreign.items()]
    HfApi().create_commit("ada/model", added, commit_message="by hand")
    whole = files["config.json"].parent / "model.safetensors"
    whole.write_bytes(os.urandom(50_000))
    files = {"config.json": files["config.json"], "model.safetensors": whole}
    _, changes = push(files)
    there = repo.files()
    assert {name: there[name] for name in foreign} == foreign
    # The old shards would be loaded if they stayed beside their index, or lie there for nothing.
    assert changes.removed == tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
    assert sorted(there) == sorted([".gitattributes", *foreign, *contents(files)])
    assert changes.kept == (".gitattributes", *sorted(foreign))
    assert changes.unchanged == ("config.json", "README.md")
    assert len(repo.titles) == 4


def test_a_private_one(hub, files):
    push(files, private=True)
    assert hub.repo("ada/model").private is True
    push(files | {"NOTICE": files["config.json"]}, private=True)
    hub.add_repo("ada/open")
    refused = pytest.raises(PushError, match="is there and public, and --private is for a new one")
    with refused, nothing_changes(hub, "ada/open"):
        push(files, "ada/open", private=True)


def test_a_restricted_upload_never_becomes_public(hub, files):
    upload = Upload("ada/data", "dataset", files, restricted="The terms of Waymo leave no room for a public copy.")
    with pytest.raises(PushError, match=r"terms of Waymo .* \(--private\)"):
        Hub().push(upload)
    assert ("dataset", "ada/data") not in hub.repos
    Hub().push(upload, private=True)
    assert hub.repo("ada/data", "dataset").private
    hub.repo("ada/data", "dataset").private = False
    with pytest.raises(PushError, match="is public: choose a private one"):
        Hub().push(upload)


def test_a_branch(hub, files):
    hub.add_repo("ada/model")
    pushed, _ = push(files, revision="v1")
    repo = hub.repo("ada/model")
    assert repo.refs["refs/heads/v1"] == pushed.info.oid
    assert list(repo.files("main")) == [".gitattributes"]
    with pytest.raises(PushError, match="is a commit, and nothing can be added"):
        push(files, revision=pushed.info.oid)


def test_a_pull_request_by_someone_who_may_not_write(hub, files):
    hub.add_repo("ada/model")
    pushed, _ = push(files, token="hf_eve", create_pr=True)
    repo = hub.repo("ada/model")
    assert pushed.info.pr_url == f"{hub.url}/ada/model/discussions/1"
    assert repo.files("refs/pr/1")["config.json"] == b"{}"
    assert list(repo.files("main")) == [".gitattributes"]
    with pytest.raises(PushError, match="no model ada/none to open a pull request in"):
        push(files, "ada/none", token="hf_eve", create_pr=True)


def test_a_token_that_may_not_write_there(hub, files):
    hub.add_repo("ada/model")
    with pytest.raises(PushError, match="may not write to the model ada/model: You don't have the rights"):
        push(files, token="hf_eve")
    with pytest.raises(PushError, match="may not write to the model lab/model"):
        push(files, "lab/model", token="hf_eve")
    assert list(hub.repos) == [("model", "ada/model")]
    assert hub.repo("ada/model").titles == ["initial commit"]
    assert not hub.objects
    push(files, "lab/model")  # its owner lets ada


def test_a_token_that_may_only_read_or_is_none(hub, files, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    for token, message in (
        ("hf_reader", "The token 't' of ada may only read"),
        ("hf_gone", "does not take this token"),
        (None, r"no token for the Hub\. .* `hf auth login`"),
    ):
        with pytest.raises(PushError, match=message):
            Hub(token)


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match=r"could not be asked whose the token is: .*\(ConnectError\)"):
        Hub()


def test_a_connection_cut_once_is_taken_up_by_the_client(hub, files):
    hub.faults.append(Fault("PUT /lfs/.{64}/2", "cut"))
    push(files)
    assert hub.count("PUT /lfs/.{64}/2") == 2
    assert hub.count("PUT /lfs/.{64}/1") == 1  # the parts before it are not sent again
    assert_there(hub, files)


@pytest.mark.parametrize("xet", [False, True])
def test_a_connection_cut_for_good_leaves_nothing_and_the_next_push_goes_on(hub, files, monkeypatch, xet):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", not xet)
    monkeypatch.setattr("depthvlm.hub_cards.push.upload._GROUP_FILES", 1)
    first = sum(files[f"model-0000{number}-of-00003.safetensors"].stat().st_size for number in (1, 2))
    third = hashlib.sha256(files["model-00003-of-00003.safetensors"].read_bytes()).hexdigest()
    line, after = ("POST /v1/xorbs/", 2) if xet else (f"PUT /lfs/{third}", 0)
    hub.faults.append(Fault(line, "cut", times=99, after=after))
    with pytest.raises(PushError, match=r"Nothing was committed\. Run the same command again"), nothing_changes(hub):
        push(files)
    sent = "POST /v1/xorbs/" if xet else "PUT /lfs/"
    assert hub.sent(sent) >= first
    hub.faults.clear()
    hub.requests.clear()
    pushed, _ = push(files)
    assert pushed.committed
    assert hub.sent(sent) < 1_000_000  # the third's 900 000
    assert_there(hub, files)


@pytest.mark.parametrize(
    ("fault", "made", "message"),
    [
        ("mute", True, "Whether the commit was made is not known"),  # the next push sees that all is there
        ("cut", False, "Committing to the model ada/model failed"),
    ],
)
def test_a_commit_that_is_cut_or_whose_answer_is_lost(hub, files, fault, made, message):
    hub.faults.append(Fault("POST .*/commit/main", fault))
    with pytest.raises(PushError, match=message):
        push(files)
    assert len(hub.repo("ada/model").titles) == 1 + made
    assert push(files)[0].committed is not made
    assert len(hub.repo("ada/model").titles) == 2


def test_someone_else_commits_meanwhile(hub, files):
    repo = hub.add_repo("ada/model")

    def interfere(changes):
        repo.commit("refs/heads/main", dict(repo.commits[repo.resolve("main")]), "someone else's")

    with pytest.raises(PushError, match="Someone else has committed to the model ada/model meanwhile"):
        Hub().push(model_upload(files, "ada/model", CARD), on_changes=interfere)
    assert repo.titles == ["initial commit", "someone else's"]


def test_what_the_hub_has_is_compared(hub, files):
    (files["config.json"]).write_text('{"a": "' + "x" * 3000 + '"}')
    hub.add_repo("ada/model").commit("refs/heads/main", {}, "empty")
    hub.spoiled.add("config.json")
    with pytest.raises(PushError, match=r"is not what was sent: config\.json has other bytes"):
        push(files)
    hub.spoiled.clear()
    push(files)

    repo = hub.add_repo("ada/ignoring")
    HfApi().upload_file(path_or_fileobj=b"config.json\n", path_in_repo=".gitignore", repo_id="ada/ignoring")
    with pytest.raises(PushError, match=r"config\.json is not there\. A \.gitignore in the repository keeps files out"):
        push(files, "ada/ignoring")
    assert repo.titles[-1] == "Upload with depthvlm push"


def test_model_and_adapter_do_not_mix(hub, files):
    push(files | {"model.safetensors.index.json": files["config.json"]})
    adapter = {"adapter_config.json": files["config.json"]}
    with pytest.raises(PushError, match=r"holds model\.safetensors\.index\.json: transformers would put this adapter"):
        Hub().push(adapter_upload(adapter, "ada/model", CARD))
    Hub().push(adapter_upload(adapter, "ada/adapter", CARD))
    with pytest.raises(PushError, match=r"ada/adapter holds adapter_config\.json: .* choose another repository"):
        push(files, "ada/adapter")


def test_a_card_that_the_hub_does_not_take(hub, files):
    upload = model_upload(files, "ada/model", "---\nlicense: [\n---\n")
    with pytest.raises(PushError, match=r"Invalid metadata in README\.md"), nothing_changes(hub):
        Hub().push(upload)


def test_a_download_that_is_cut_goes_on(hub, files, tmp_path, monkeypatch):
    push(files)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    third = files["model-00003-of-00003.safetensors"].read_bytes()
    line = f"GET /cdn/{hashlib.sha256(third).hexdigest()}"
    hub.faults.append(Fault(line, "cut answer"))
    file = hf_hub_download("ada/model", "model-00003-of-00003.safetensors", cache_dir=tmp_path / "cache")
    assert Path(file).read_bytes() == third
    ranges = [asked for asked_line, asked, _ in hub.requests if asked_line == line]
    assert ranges == ["", "bytes=400000-"]  # four chunks of the half that came


def test_a_download_that_is_cut_for_good_leaves_no_half_file(hub, files, tmp_path):
    push(files)
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 3)]
    lines = {name: f"GET /cdn/{hashlib.sha256(files[name].read_bytes()).hexdigest()}" for name in names}
    hub.faults.append(Fault(lines[names[1]], "cut answer", times=99))
    options = {"repo_id": "ada/model", "cache_dir": tmp_path / "cache"}
    hf_hub_download(filename=names[0], **options)
    with pytest.raises(Exception, match="peer closed"):
        hf_hub_download(filename=names[1], **options)
    assert not list((tmp_path / "cache").rglob(names[1]))
    hub.faults.clear()
    for name in names:
        assert Path(hf_hub_download(filename=name, **options)).read_bytes() == files[name].read_bytes()
    assert hub.count(lines[names[0]]) == 1
