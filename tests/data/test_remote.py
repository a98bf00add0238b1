"""A range of a file far away comes whole, or an error says of which file and why; nothing waits without end."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from aligntok.data import remote
from aligntok.data.remote import RemoteFiles, RemoteSettings, check_address, local_path, shown
from aligntok.data.sources.base import say_once
from aligntok.errors import ConfigError, DataError, ShardError

CONTENT = bytes(range(256)) * 40
SOON = dict(pause=0.01, timeout=0.3)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.tar").write_bytes(CONTENT)
    (tmp_path / "served/empty").write_bytes(b"")
    return tmp_path / "served"


@pytest.fixture
def server(serve, folder):
    return serve(folder)


def files(**given):
    return RemoteFiles(RemoteSettings(**{**SOON, **given}))


@pytest.fixture(params=["disk", "file", "http"])
def top(request, folder):
    """A folder on a disk, as a path and as an address, and the same by HTTP."""
    if request.param == "http":
        return request.getfixturevalue("server").url
    return str(folder) if request.param == "disk" else folder.as_uri()


def test_a_range_comes_whole_from_everywhere(top, folder):
    found = files()
    size, tag = found.size_and_tag(f"{top}/a.tar")
    assert size == len(CONTENT)
    assert tag
    for offset, size in ((0, 1), (0, len(CONTENT)), (100, 1000), (len(CONTENT) - 1, 1), (7, 0)):
        assert found.read(f"{top}/a.tar", offset, size, (len(CONTENT), tag)) == CONTENT[offset : offset + size]
    assert found.size_and_tag(f"{top}/empty")[0] == 0
    assert found.find(f"{top}/none") is None
    with found.open(f"{top}/a.tar", (len(CONTENT), "")) as file:
        file.seek(300)
        assert file.read(5) == CONTENT[300:305]
        assert file.read() == CONTENT[305:]
    with (
        found.open(f"{top}/a.tar", (len(CONTENT) - 1, "")) as file,
        pytest.raises(ShardError, match="another file than was"),
    ):
        file.read()


@pytest.mark.parametrize(("offset", "size"), [(len(CONTENT) - 5, 6), (len(CONTENT), 1), (10**15, 10)])
def test_a_range_outside_of_the_file_is_refused_at_once(top, offset, size):
    with pytest.raises(ShardError, match=f"a.tar cannot be read: it ends at byte {len(CONTENT):,}"):
        files(pause=9).read(f"{top}/a.tar", offset, size)


@pytest.mark.parametrize("size", [-1, 1 << 40])
def test_a_size_that_nobody_holds_is_refused(top, size):
    with pytest.raises(ShardError, match="which is not between 0 and"):
        files().read(f"{top}/a.tar", 0, size)


def test_a_file_that_is_gone_is_told_at_once(top):
    with pytest.raises(ShardError, match="none is not there"):
        files(pause=9).size_and_tag(f"{top}/none")
    with pytest.raises(ShardError, match="none is gone; put it back"):
        files(pause=9).read(f"{top}/none", 0, 1)


def test_another_file_under_the_same_name_is_told(top, folder):
    found = files(pause=9)
    expected = found.size_and_tag(f"{top}/a.tar")
    (folder / "new").write_bytes(b"x" * (len(CONTENT) + 1))
    (folder / "new").rename(folder / "a.tar")
    with pytest.raises(ShardError, match=r"a.tar cannot be read: it is another file than was listed, of 10,241 bytes"):
        files(pause=9).read(f"{top}/a.tar", 0, 5, expected)


def test_other_content_of_the_same_size_is_told_by_its_tag(server, folder):
    expected = files().size_and_tag(f"{server.url}/a.tar")
    (folder / "a.tar").write_bytes(b"x" * len(CONTENT))
    os.utime(folder / "a.tar", ns=(1, 1))
    with pytest.raises(ShardError, match="it is another file than was listed, "):
        files(pause=9).read(f"{server.url}/a.tar", 0, 5, expected)
    os.utime(folder / "a.tar", ns=(2, 2))  # a copy on a disk has another time, and is the same
    assert files().read(str(folder / "a.tar"), 0, 5, expected) == b"xxxxx"


PASSING = ["503", "429", "hang", "slow", "cut", "short", "long", "length", "whole", "range", "close"]


@pytest.mark.parametrize("fault", PASSING)
def test_an_answer_that_is_wrong_is_asked_for_again(server, fault):
    found = files()
    found.read(f"{server.url}/a.tar", 5, 2000)
    server.fail(fault, every=2)
    for _ in range(3):
        assert found.read(f"{server.url}/a.tar", 5, 2000) == CONTENT[5:2005]
    assert len(server.asked) >= 5
    server.fail(fault)
    begin = time.monotonic()
    with pytest.raises(
        ShardError, match=r"/a.tar stays away: 2 attempts in \d+ s, the last of which ended with: .+; put"
    ):
        files(attempts=2).read(f"{server.url}/a.tar", 5, 2000)
    assert time.monotonic() - begin < 2 * 0.3 + 2


def test_what_is_not_allowed_is_told_at_once(server):
    server.fail("403")
    with pytest.raises(ShardError, match="a.tar cannot be read: it answers 403 Forbidden"):
        files(pause=9).read(f"{server.url}/a.tar", 0, 1)
    assert len(server.asked) == 1


def test_a_server_that_dies_for_a_while_is_waited_for(server):
    found = files(attempts=8, pause=0.05)
    server.die(1)
    assert found.read(f"{server.url}/a.tar", 0, 9) == CONTENT[:9]
    assert len(server.asked) > 3


def test_a_server_that_is_not_there_is_told(server, serve):
    server.close()
    with pytest.raises(ShardError, match="a.tar stays away: 2 attempts"):
        files(attempts=2).read(f"{server.url}/a.tar", 0, 9)


def test_pauses_grow_and_have_an_end(monkeypatch, server):
    slept = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    server.fail("503")
    with pytest.raises(ShardError):
        files(attempts=12, pause=1).read(f"{server.url}/a.tar", 0, 9)
    assert len(slept) == 11
    for pause, middle in zip(slept, [1, 2, 4, 8, 16, *[30] * 6], strict=True):
        assert 0.5 * middle <= pause < 1.5 * middle
    assert len({pause / middle for pause, middle in zip(slept, [1, 2, 4, 8, 16, *[30] * 6], strict=True)}) > 5


def test_threads_ask_side_by_side_and_no_more_than_are_allowed(server, server_module, monkeypatch):
    running, most, lock = 0, 0, threading.Lock()
    answer = server_module._Handler.answer

    def slowly(self, *given):
        nonlocal running, most
        with lock:
            running, most = running + 1, max(most, running + 1)
        time.sleep(0.02)
        with lock:
            running -= 1
        return answer(self, *given)

    monkeypatch.setattr(server_module._Handler, "answer", slowly)
    found = files(in_flight=3, timeout=5)
    with ThreadPoolExecutor(12) as pool:
        parts = [*pool.map(lambda i: found.read(f"{server.url}/a.tar", i, 9), range(40))]
    assert parts == [CONTENT[i : i + 9] for i in range(40)]
    assert 1 < most <= 3


def test_a_fork_has_connections_of_its_own_and_leaves_its_parents_alone(server):
    found = files(timeout=1, attempts=2)
    found.read(f"{server.url}/a.tar", 0, 9)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [
        context.Process(target=lambda i: queue.put(found.read(f"{server.url}/a.tar", i, 4)), args=(i,)) for i in (3, 4)
    ]
    for child in children:
        child.start()
    assert {queue.get(timeout=60) for _ in children} == {CONTENT[3:7], CONTENT[4:8]}
    for child in children:
        child.join(20)
        assert child.exitcode == 0
    assert found.read(f"{server.url}/a.tar", 0, 9) == CONTENT[:9]  # nobody closed what is the parent's


@pytest.mark.slow
def test_a_process_that_is_spawned_has_its_own(server):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(files(timeout=5).read, (f"{server.url}/a.tar", 3, 4))
        assert found.get(60) == CONTENT[3:7]


class Bucket(MemoryFileSystem):
    """Stands for a library of fsspec's that is not here."""

    protocol = "s3"
    store, pseudo_dirs, fails = {}, [""], []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("s3://"))

    def cat_file(self, path, start=None, end=None, **_):
        if self.fails and (error := self.fails.pop()):
            raise error
        return super().cat_file(path, start, end)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", fsspec)
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield Bucket
    sys.modules["fsspec.registry"]._registry.pop("s3", None)
    Bucket.fails.clear()


def test_another_library_of_fsspec_is_held_to_the_same(bucket):
    bucket().pipe_file("/b/a.tar", CONTENT)
    found = files()
    size, _ = found.size_and_tag("s3://b/a.tar")
    assert size == len(CONTENT)
    bucket.fails[:] = [None, ConnectionError("reset"), RuntimeError("see https://u:p@x.org/a?key=secret for more")]
    assert found.read("s3://b/a.tar", 5, 7) == CONTENT[5:12]
    assert bucket.fails == []
    with pytest.raises(ShardError, match=r"stays away: 2 attempts .* 3 of 9 bytes came"):
        files(attempts=2).read("s3://b/a.tar", len(CONTENT) - 3, 9)
    bucket.fails[:] = [PermissionError("not yours")]
    with pytest.raises(ShardError, match="cannot be read: not yours"):
        files(pause=9).read("s3://b/a.tar", 0, 1)
    with pytest.raises(ShardError, match="none is gone"):
        files(pause=9).read("s3://b/none", 0, 1)
    assert found.find("s3://b/none") is None
    bucket.fails[:] = [RuntimeError("see https://u:p@x.org/a?key=secret for more")] * 2
    with pytest.raises(ShardError, match="RuntimeError: see https://x.org/a for more") as caught:
        files(attempts=2).read("s3://b/a.tar", 0, 1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "extra"), [("http", "remote"), ("s3", "s3"), ("gs", "gcs")])
def test_a_library_that_is_not_here_is_named_with_what_installs_it(monkeypatch, scheme, extra):
    monkeypatch.setitem(sys.modules, remote.SCHEMES[scheme], None)
    with pytest.raises(
        DataError, match=rf'shards at {scheme}:// need the library .* pip install "aligntok\[{extra}\]"'
    ):
        files(pause=9).read(f"{scheme}://a.org/a.tar", 0, 1)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://a.org/0.tar", "ftp://a.org/0.tar: no scheme named 'ftp'"),
        ("https://me:secret@a.org/0.tar", "https://a.org/0.tar is given with a user"),
        ("https://a.org/0.tar?X-Signature=secret", "https://a.org/0.tar is given with a query"),
    ],
)
def test_an_address_with_a_secret_or_of_another_kind_is_refused_without_telling_it(address, said):
    with pytest.raises(ConfigError) as caught:
        files().read(address, 0, 1)
    assert str(caught.value).startswith(said)
    assert "secret" not in str(caught.value).replace("may be a secret", "").replace("secrets", "")


def test_addresses_and_paths_are_told_apart():
    assert [check_address(f"{scheme}://a/b.tar") for scheme in remote.SCHEMES] == [*remote.SCHEMES]
    assert local_path("/data/a b.tar") == "/data/a b.tar"
    assert local_path("file:///data/a%20b.tar") == "/data/a b.tar"
    assert local_path("hf://datasets/o/n@main/0.tar") is None
    assert shown("hf://datasets/o/n@main/0.tar") == "hf://datasets/o/n@main/0.tar"
    assert shown("'https://a:b@c.org/d?e=f', (s3://g/h)") == "'https://c.org/d', (s3://g/h)"


def test_an_address_in_capitals_is_asked_as_carefully(server):
    place = server.url.replace("http", "HTTP") + "/a.tar"
    assert files().read(place, 1, 5, files().size_and_tag(place)) == CONTENT[1:6]
    with pytest.raises(ShardError, match="it is another file than was listed"):
        files().read(place, 1, 5, (len(CONTENT), "another"))


def test_a_host_that_gives_no_answer_is_asked_once_each_time_until_it_does(server):
    found, place = RemoteFiles(RemoteSettings(attempts=4, **SOON), gives_up=True), f"{server.url}/a.tar"

    def stays_away(attempts, files=found):
        server.fail("503")
        with pytest.raises(ShardError, match=f"stays away: {attempts} attempts"):
            files.read(place, 0, 9)

    stays_away(4)
    stays_away(1)
    server.fail()
    assert found.read(place, 0, 9) == CONTENT[:9]
    stays_away(4)
    stays_away(2, patient := files(attempts=2))
    stays_away(2, patient)


def test_a_file_that_stays_away_does_not_speak_for_its_host(server):
    found = RemoteFiles(RemoteSettings(attempts=3, **SOON), gives_up=True)

    def attempt():
        found.read(f"{server.url}/a.tar", 0, 9)
        raise OSError("not this one")

    for _ in range(2):
        with pytest.raises(ShardError, match="3 attempts"):
            found._persist(f"{server.url}/b.tar", attempt)


def test_what_may_be_refused_counts_as_not_there_where_it_is_optional(server, caplog):
    say_once.cache_clear()
    server.fail("403")
    for _ in range(2):
        assert files(pause=9).find(f"{server.url}/a.parquet", optional=True) is None
    assert caplog.text.count("*.parquet is refused (it answers 403 Forbidden)") == 1
    with pytest.raises(ShardError, match="403 Forbidden"):
        files(pause=9).find(f"{server.url}/a.parquet")
