"""Files by name below a root: transient errors are retried, permanent ones are raised at once, and nothing is torn."""

import errno
import os
import pwd
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import s3fs
from hypothesis import example, given
from hypothesis import strategies as st
from tenacity import wait_fixed

from rayexp.store import filesystem as module
from rayexp.store.artifacts import Store
from rayexp.store.filesystem import Files, StoreError, resolved
from rayexp.store.probe import require_shareable, require_writable
from rayexp.tasks.strings import StringTask
from rayexp.timeouts import run_with_timeout
from tests.fixtures.factories import tiny_chain
from tests.fixtures.s3 import S3Server

STAGE = tiny_chain(StringTask(axis="composition")).pretrain


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", wait_fixed(0.01))


@pytest.fixture(params=["local", "memory"])
def files(request, tmp_path):
    return Files(str(tmp_path / "root") if request.param == "local" else f"memory://{uuid4().hex}", timeout_s=20)


class Faulty:
    """A filesystem on which calls of some methods raise each error once, and then work again."""

    def __init__(self, fs, methods, errors):
        self._fs, self._methods, self.errors = fs, methods, list(errors)

    def __getattr__(self, name):
        if name in self._methods and self.errors:
            raise self.errors.pop(0)
        return getattr(self._fs, name)


def failing(error):
    def fail(*_):
        raise error

    return fail


def without_hard_links(patch, code=errno.EPERM):
    patch.setattr(os, "link", failing(OSError(code, os.strerror(code))))


@pytest.fixture(params=["with hard links", "without"])
def hard_links(request, monkeypatch):
    if request.param == "without":
        without_hard_links(monkeypatch)


@pytest.mark.usefixtures("hard_links")
def test_of_many_that_create_a_file_one_does_and_it_is_whole(tmp_path):
    """Test a local disk, the only one of these that promises this. test_s3 tests an S3 server."""
    files = Files(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            name = f"leases/work.{number}"
            won = list(pool.map(lambda i, name=name: files.create(name, b"%d" % i * 1000), range(8)))
            assert sum(won) == 1
            assert files.read(name) == b"%d" % won.index(True) * 1000
    assert len(files.names("leases")) == 20  # and no part of a file


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EMLINK])
def test_where_there_are_no_hard_links_a_file_is_created_in_place(tmp_path, monkeypatch, code):
    without_hard_links(monkeypatch, code)
    files = Files(str(tmp_path))
    assert files.create("a/x", b"1")
    assert not files.create("a/x", b"2")
    assert (files.names("a"), files.read("a/x")) == (["x"], b"1")


def test_a_link_that_fails_for_another_reason_is_no_lack_of_links(tmp_path, monkeypatch):
    without_hard_links(monkeypatch, errno.ENOSPC)
    with pytest.raises(StoreError, match="No space left"):
        Files(str(tmp_path)).create("a/x", b"1")
    assert Files(str(tmp_path)).names("a") == []


def test_what_could_not_be_created_whole_in_place_is_taken_back(tmp_path, monkeypatch):
    without_hard_links(monkeypatch)
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(StoreError, match="No space left"):
        Files(str(tmp_path)).create("a/x", b"1")
    assert Files(str(tmp_path)).names("a") == []


# Missing abilities of a store are found before anything starts


@pytest.mark.usefixtures("hard_links")
def test_a_store_that_has_all_passes_and_nothing_stays(files):
    files.write("x", b"")
    require_writable(files)
    require_shareable(files)
    assert [Path(place).name for place in files.fs.ls(files.root, detail=False)] == ["x"]


def fixed(files, monkeypatch):
    monkeypatch.setattr(os, "rename", failing(OSError(errno.ENOSYS, "not implemented")))


def stale(files, monkeypatch):
    """Show every file with its first content."""
    first: dict[str, bytes] = {}
    cat_file = files.fs.cat_file
    monkeypatch.setattr(files.fs, "cat_file", lambda place: first.setdefault(place, cat_file(place)))


def late_listing(files, monkeypatch):
    monkeypatch.setattr(files.fs, "ls", lambda place, detail: [])


def everything_listed(files, monkeypatch):
    """Keep removed files in listings."""
    listed: set[str] = set()
    ls = files.fs.ls
    monkeypatch.setattr(files.fs, "ls", lambda place, detail: listed.update(ls(place, detail=detail)) or list(listed))


def overwriting(files, monkeypatch):
    """Overwrite existing files on creation, like a bucket that ignores conditions."""
    monkeypatch.setattr(module, "_create", lambda path, data: path.write_bytes(data))


def timeless(files, monkeypatch):
    monkeypatch.setattr(files.fs, "modified", failing(NotImplementedError()))


LACKS = {
    stale: "does not replace a file",
    late_listing: "does not list a file as soon as it is written",
    everything_listed: "does not remove a file",
    overwriting: "does not support exclusive creation of a file",
    timeless: "does not report when a file was written: .*NotImplementedError",
    fixed: "does not rename a folder: .*not implemented",
}


@pytest.mark.parametrize("lack", LACKS)
def test_what_a_store_lacks_is_named_in_one_sentence(tmp_path, monkeypatch, lack):
    files = Files(str(tmp_path / "store"))
    monkeypatch.setattr(files, "fs", type(files.fs)(skip_instance_cache=True))
    lack(files, monkeypatch)
    with pytest.raises(StoreError, match=LACKS[lack]) as refusal:
        require_shareable(files)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(f"store={files.url!r} ")


def test_a_reader_sees_the_old_file_or_the_new_one(files):
    contents = [bytes([i]) * 300_000 for i in range(4)]
    files.write("a/x", contents[0])
    seen, ended = set(), threading.Event()

    def read():
        while not ended.is_set():
            seen.add(files.read("a/x"))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        files.write("a/x", contents[i % 4])
    ended.set()
    reader.join()
    assert seen <= set(contents)
    assert files.names("a") == ["x"]


@pytest.mark.parametrize(
    "passing", [OSError("503 slow down"), ConnectionResetError("reset"), TimeoutError("late"), OSError(errno.EIO, "io")]
)
def test_what_can_pass_is_tried_again(files, passing):
    files.write("x", b"old")
    files.fs = Faulty(files.fs, {"cat_file"}, [passing] * 6)
    assert files.read("x") == b"old"
    assert not files.fs.errors


def test_what_does_not_pass_is_given_up_with_its_cause(files):
    files.fs = Faulty(files.fs, {"cat_file"}, [OSError("503 slow down")] * 99)
    with pytest.raises(StoreError, match=r"cannot read x in the store .* \(OSError: 503 slow down\)"):
        files.read("x")
    assert len(files.fs.errors) == 99 - module.ATTEMPTS


@pytest.mark.parametrize(
    "refusal",
    [PermissionError("Forbidden"), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "read-only")],
)
def test_a_refusal_is_not_tried_again(files, refusal):
    files.fs = Faulty(files.fs, {"cat_file"}, [refusal, refusal])
    with pytest.raises(StoreError, match=str(refusal.args[-1])):
        files.read("x")
    assert len(files.fs.errors) == 1


def test_a_full_disk_leaves_the_store_valid(tmp_path, monkeypatch):
    """Fill the disk at every write of publishing in turn. The stage is finished and whole, or not finished at all."""
    artifact = tmp_path / "artifact"
    (artifact / "model").mkdir(parents=True)
    for name in ("metrics.parquet", "model/weights"):
        (artifact / name).write_bytes(name.encode() * 100)
    outcomes = []
    for full_from in range(40):
        store = Store(str(tmp_path / f"store-{full_from}"))
        calls = 0

        def limited(limit_s, ask, name, full_from=full_from):
            nonlocal calls
            calls += 1
            if calls > full_from and name.startswith("store: write "):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return run_with_timeout(limit_s, ask, name)

        with monkeypatch.context() as patch:
            patch.setattr(module, "run_with_timeout", limited)
            try:
                store.publish(STAGE, artifact, {})
                outcomes.append("published")
            except StoreError as error:
                outcomes.append(str(error))
        assert store.finished(STAGE.id) == (outcomes[-1] == "published")
        assert not store.damaged([STAGE.id])
        store.publish(STAGE, artifact, {})  # now there is space again
        assert store.finished(STAGE.id)
        assert store.files.names("work") == []
        if outcomes[-1] == "published":
            break
    assert len(outcomes) > 4
    assert all("No space left on device" in refusal for refusal in outcomes[:-1])


def test_a_call_that_hangs_ends_with_who_was_waited_for_and_how_long(tmp_path, monkeypatch):
    files = Files(str(tmp_path), timeout_s=0.2)
    hang = threading.Event()
    hanging = Faulty(files.fs, set(), [])
    monkeypatch.setattr(hanging, "cat_file", lambda place: hang.wait(30))
    monkeypatch.setattr(files, "fs", hanging)
    began = time.monotonic()
    with pytest.raises(StoreError, match=rf"no answer from the store {tmp_path} \(read x\) within 0.2 s"):
        files.read("x")
    assert time.monotonic() - began < 10
    hang.set()


# Names are taken as they stand

ODD = [
    "a[1]",
    "[*]?",
    "*",
    "**",
    "a?b",
    "a#b",
    "a%20b",
    "a b",
    " ",
    "~",
    "$HOME",
    "größe 数",
    "{a,b}",
    "!x",
    "a:b",
    "-x",
]
NAMES = st.text(st.sampled_from("[]*?#%~$ {}!:&+é数x-"), min_size=1, max_size=6) | st.sampled_from(ODD)


def use_all_of(files, folder, name, scratch):
    """Make every call once on a file and a folder with these names, beside others that a pattern would match."""
    others = [f"{folder}x/{name}", f"{folder}/{name}x", "other/x"]
    for other in others:
        files.write(other, b"other")
    path = f"{folder}/{name}"
    files.write(path, b"1")
    assert files.read(path) == b"1"
    assert files.read_existing([path, f"{path}!!", others[0]]) == {path: b"1", others[0]: b"other"}
    assert files.names(folder) == sorted([name, f"{name}x"])
    assert files.is_folder(folder)
    assert not files.is_folder(path)
    assert files.modified(path)
    assert not files.create(path, b"2")
    assert files.create(f"{path}-new", b"3")
    files.download(path, scratch)
    files.upload(scratch, f"{path}-new")
    assert files.read(f"{path}-new") == b"1"
    files.remove_file(path)
    assert files.names(folder) == sorted([f"{name}-new", f"{name}x"])
    files.write(f"{folder}/deep/{name}/{name}", b"")
    files.remove(folder)
    assert files.names(folder) == []
    assert files.read_existing(others) == {others[0]: b"other", others[2]: b"other"}
    files.remove(f"{folder}x")


@given(root=NAMES, folder=NAMES, name=NAMES, local=st.booleans())
@example("runs [a]*?#%41", "[*]", "x", True)
@example("runs [a]*?#%41", "[*]", "x", False)
def test_a_pattern_in_a_path_is_no_pattern(tmp_path_factory, root, folder, name, local):
    scratch = tmp_path_factory.mktemp("scratch")
    where = str(scratch / "store") if local else f"memory://{uuid4().hex}"
    use_all_of(Files(f"{where}/{root}/store"), folder, name, scratch / "copy")


def test_a_path_with_the_marks_of_a_chain_of_urls_is_a_path(tmp_path):
    use_all_of(Files(str(tmp_path / "a::b" / "c::memory:")), "x", "y", tmp_path / "copy")
    assert (tmp_path / "a::b" / "c::memory:").is_dir()


def test_only_what_is_in_a_folder_is_listed_even_by_the_name_of_the_folder(files):
    files.write("studies/studies/plan.json", b"")
    assert files.names("studies") == ["studies"]


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """Return a working directory, with a home beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("runs", "here/runs"),
        ("runs/", "here/runs"),
        ("./runs", "here/runs"),
        ("../runs", "runs"),
        ("~/runs", "home/runs"),
        ("~", "home"),
        ("./~/runs", "here/~/runs"),
        ("file:runs", "here/runs"),
        ("file://runs", "here/runs"),
        ("file://~/runs", "home/runs"),
        ("local://runs", "here/runs"),
        ("a$b", "here/a$b"),
        ("./$HOME/x", "here/$HOME/x"),
    ],
)
def test_a_folder_is_the_same_for_every_command_and_every_process(somewhere, monkeypatch, url, path):
    assert resolved(url) == str(somewhere / path)
    monkeypatch.chdir("/")
    assert Files(resolved(str(somewhere / path))).root == str(somewhere / path)


def test_the_home_of_another_user_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere")
    assert resolved("~root/runs") == f"{pwd.getpwnam('root').pw_dir}/runs"


@pytest.mark.parametrize("url", ["s3://bucket/runs", "memory://a[1]/x#y?z", "gs://b/%20"])
def test_a_url_is_left_as_it_is(url):
    assert resolved(url) == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "names nothing"),
        ("a\0b", "names nothing"),
        ("~nobody-by-this-name/runs", "nobody's home"),
        ("$HOME/runs", "no shell has filled in"),
        ("${RUNS}", "no shell has filled in"),
        ("s3://bucket/../other", "leads upwards"),
        ("memory://x/..", "leads upwards"),
    ],
)
def test_a_store_that_is_something_else_than_it_looks_like_is_refused(somewhere, url, why):
    with pytest.raises(StoreError, match=why) as refusal:
        Files(url)
    assert f"store={url!r}" in str(refusal.value)
    assert list((somewhere / "here").iterdir()) == []


def test_a_relative_folder_in_a_jobs_copy_of_the_sources_is_refused(tmp_path, monkeypatch):
    (tmp_path / "runtime_resources").mkdir()
    monkeypatch.chdir(tmp_path / "runtime_resources")
    with pytest.raises(StoreError, match="would be in Ray's temporary copy"):
        Files("kit")
    assert Files(str(tmp_path)).root == str(tmp_path)


# Links


@pytest.mark.parametrize("target", ["../secret", "..", "/"])
def test_a_link_does_not_lead_out(tmp_path, target):
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(target)
    files = Files(str(root))
    for use in (
        lambda: files.read("link"),
        lambda: files.write("link/new", b""),
        lambda: files.names("link"),
        lambda: files.remove("link"),
        lambda: files.download("link", tmp_path / "copy"),
        lambda: files.upload(tmp_path / "secret", "link/new"),
    ):
        with pytest.raises(StoreError, match="leads out of the store"):
            use()
    assert (tmp_path / "secret").read_text() == "secret"
    assert not (tmp_path / "new").exists()


def test_a_link_that_stays_inside_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to("there")
    files = Files(str(tmp_path))
    files.write("here/x", b"1")
    assert files.read("there/x") == b"1"


# A real server


@pytest.fixture(scope="module")
def server():
    with S3Server() as server:
        server.make_bucket("faults")
        s3fs.S3FileSystem.clear_instance_cache()  # it caches the server of another test
        yield server


@pytest.fixture
def remote(server, monkeypatch):
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield Files(f"s3://faults/{uuid4().hex}", timeout_s=30)
    server.calm()


@pytest.mark.parametrize("kind", ["500", "reset", pytest.param("slow", marks=pytest.mark.slow)])
def test_a_server_in_trouble_is_asked_again(server, remote, tmp_path, kind):
    remote.write("a/x", b"1")
    (tmp_path / "big").write_bytes(os.urandom(100_000))
    server.upset(kind, count=2)
    assert remote.read("a/x") == b"1"
    server.upset(kind, count=1)
    remote.upload(tmp_path / "big", "a/big")
    server.upset(kind, count=1)
    assert remote.names("a") == ["big", "x"]
    server.upset(kind, count=1)
    assert remote.create("a/new", b"2")
    assert server.calm() >= 3
    remote.download("a/big", Path(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "big").read_bytes()
    assert not remote.create("a/new", b"3")
    assert remote.read("a/new") == b"2"


def test_a_server_that_refuses_is_not_asked_again(server, remote):
    remote.write("x", b"1")
    server.upset("403")
    for use in (lambda: remote.read("x"), lambda: remote.write("x", b"2"), lambda: remote.names("a")):
        with pytest.raises(StoreError, match="PermissionError"):
            use()
    assert server.calm() < 10
    assert remote.read("x") == b"1"


@pytest.mark.parametrize("name", ["[*]?", "a#b c", "a%20b+", "größe 数"])
def test_a_pattern_in_a_key_is_no_pattern(remote, tmp_path, name):
    use_all_of(Files(f"{remote.url}/{name}/store", timeout_s=30), name, name, tmp_path / "copy")


def test_a_small_file_is_read_by_one_request(server, remote, monkeypatch):
    monkeypatch.setattr(module, "READ_AT_ONCE", 2)
    for name in "abc":
        remote.write(name, name.encode())
    server.requests()
    assert remote.read_existing([*"abc", "none"]) == {"a": b"a", "b": b"b", "c": b"c"}
    assert remote.read("a") == b"a"
    assert server.requests() == {"GET": 5}


def test_a_bucket_that_ignores_conditions_is_refused(server, remote):
    require_shareable(remote)
    server.upset("unconditional")
    require_writable(remote)  # a kit needs no more
    with pytest.raises(StoreError, match=r"does not support exclusive creation of a file .*If-None-Match"):
        require_shareable(remote)


def test_a_bucket_that_is_missing_is_said(remote):
    elsewhere = Files("s3://no-such-bucket/x", timeout_s=30)
    with pytest.raises(StoreError, match=r"(?i)bucket"):
        elsewhere.write("x", b"")
    with pytest.raises(StoreError, match=r"store=.* cannot be written"):
        require_shareable(elsewhere)


def test_a_server_that_hangs_is_named(server, remote):
    remote.timeout_s = 1.0
    server.upset("hang", count=1)
    with pytest.raises(StoreError, match=rf"no answer from the store {remote.url} \(read x\) within 1 s"):
        remote.read("x")


def test_of_two_that_create_a_file_on_the_server_one_does(remote):
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda i: remote.create("lease", b"%d" % i), range(4))) == 1
