"""S3: the conformance suite against two servers, and what only S3 can do wrong."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from engine.errors import StartError
from engine.l2.base import ConnectionFault, StorageFull
from engine.l2.registry import open_adapter
from engine.l2.s3_adapter import S3Adapter
from tests.conformance.l2_conformance import KEY, L2Conformance, load, payload, store
from tests.conformance.s3_servers import BUCKET, KEY_ID, SECRET, Answering, Moto, Raw, Rclone, config_for
from tests.conformance.tls import make_certificate
from tests.stack import ROOT
from tests.waiting import wait_for

# The library starts its own event loop with the first call, once per process; its descriptors are no leak.
MemoryStore().put("started", b"")

# Two S3 servers and their timeouts take too long for every run.
pytestmark = pytest.mark.soak

PREFIX = "some/prefix"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("moto")) as server:
        server.make_bucket()
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rclone]:
    with Rclone(tmp_path_factory.mktemp("rclone")) as server:
        server.make_bucket()
        yield server


@pytest.fixture
def raw_moto(moto: Moto) -> Iterator[Raw]:
    with Raw(moto) as raw:
        yield raw
        raw.empty()


class TestS3OnMoto(L2Conformance):
    @pytest.fixture
    def adapter(self, moto: Moto) -> Iterator[S3Adapter]:
        with closing(moto.adapter(prefix=PREFIX)) as adapter:
            yield adapter

    @pytest.fixture
    def raw(self, raw_moto: Raw) -> Raw:
        return raw_moto

    @pytest.fixture(autouse=True)
    def emptied(self, raw_moto: Raw) -> None:
        """Every test leaves the bucket empty."""


class TestS3OnRclone(L2Conformance):
    @pytest.fixture
    def adapter(self, rclone: Rclone) -> Iterator[S3Adapter]:
        with closing(rclone.adapter()) as adapter:
            yield adapter

    @pytest.fixture(autouse=True)
    def raw(self, rclone: Rclone) -> Iterator[Raw]:
        with Raw(rclone) as raw:
            yield raw
            raw.empty()


@pytest.mark.parametrize("unsigned_payload", [False, True])
def test_signatures_are_right_and_a_wrong_secret_is_refused(rclone: Rclone, unsigned_payload: bool) -> None:
    right = rclone.adapter(unsigned_payload=unsigned_payload)
    store(right, KEY, payload(1))
    assert load(right, KEY, 5000)[2] == payload(1)
    assert right.delete(KEY)

    with pytest.raises(OSError, match="SignatureDoesNotMatch") as refusal:
        rclone.adapter(secret_access_key="wrong", unsigned_payload=unsigned_payload)

    assert not isinstance(refusal.value, ConnectionFault)
    assert SECRET not in str(refusal.value)


def test_an_authority_of_ones_own_is_trusted_when_it_is_named(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path / "tls")
    server = Rclone(tmp_path / "rclone", "--cert", str(tls.certificate), "--key", str(tls.key))
    (server.directory / "objects" / BUCKET).mkdir(parents=True)
    server.url = f"https://127.0.0.1:{server.port}"
    server.is_ready = lambda: accepts(server.port)
    with server:
        with closing(server.adapter(allow_http=False, ca_file=str(tls.authority), unsigned_payload=True)) as adapter:
            store(adapter, KEY, payload(1))
            assert load(adapter, KEY, 5000)[2] == payload(1)

        with pytest.raises(OSError, match="UnknownIssuer"):
            server.adapter(allow_http=False)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_credentials_may_come_from_the_environment(rclone: Rclone) -> None:
    script = (
        "import sys; from engine.l2.s3_adapter import S3Adapter, S3Config\n"
        "adapter = S3Adapter(S3Config(sys.argv[1], endpoint=sys.argv[2], allow_http=True))\n"
        "print(list(adapter.scan()))"
    )
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}

    done = subprocess.run(
        [sys.executable, "-c", script, BUCKET, rclone.url],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_missing_bucket_stops_the_start(moto: Moto) -> None:
    fields = {"bucket": "nowhere", "endpoint": moto.url, "allow_http": True}

    with pytest.raises(StartError, match=r"l2_adapter 's3' cannot be opened: s3://nowhere/: .*NoSuchBucket"):
        open_adapter("s3", {**fields, "access_key_id": KEY_ID, "secret_access_key": SECRET})


def test_a_bucket_that_vanishes_is_a_fault_and_no_miss(moto: Moto) -> None:
    moto.make_bucket("short-lived")
    adapter = moto.adapter(bucket="short-lived")
    with Raw(moto, "short-lived") as raw:
        raw.client.delete_bucket(Bucket="short-lived")

    with pytest.raises(OSError, match="NoSuchBucket"):
        load(adapter, KEY, 10)
    with pytest.raises(OSError, match="NoSuchBucket"):
        store(adapter, KEY, payload(1))
    with pytest.raises(OSError, match="NoSuchBucket"):
        list(adapter.scan())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bucket": ""}, "bucket is empty"),
        ({"endpoint": "127.0.0.1:9000"}, "begins neither"),
        ({"allow_http": False}, "allow_http has to permit"),
        ({"secret_access_key": ""}, "go together"),
        ({"request_timeout_s": 0}, "must be above 0"),
        ({"prefix": "a//b"}, "empty part"),
        ({"prefix": "../b"}, "empty part"),
        ({"ca_file": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
    ],
)
def test_a_setting_that_cannot_work_stops_the_start(changed: dict[str, object], words: str) -> None:
    fields = {"bucket": "b", "endpoint": "http://127.0.0.1:1", "allow_http": True}
    credentials = {"access_key_id": KEY_ID, "secret_access_key": SECRET}

    with pytest.raises(StartError, match=words) as refusal:
        open_adapter("s3", {**fields, **credentials, **changed})

    assert SECRET not in str(refusal.value)


def test_secrets_are_not_shown(moto: Moto) -> None:
    adapter = moto.adapter(session_token="token-of-the-tests")

    shown = f"{adapter.describe()} {config_for(moto.url, session_token='token-of-the-tests')!r}"

    assert BUCKET in shown
    assert SECRET not in shown
    assert "token-of-the-tests" not in shown


def test_prefixes_keep_servers_apart(moto: Moto, raw_moto: Raw) -> None:
    adapters = [moto.adapter(prefix=prefix) for prefix in ("", "a", "a/b", "ab")]
    for number, adapter in enumerate(adapters):
        store(adapter, KEY, payload(number))

    for number, adapter in enumerate(adapters):
        assert load(adapter, KEY, 5000)[2] == payload(number)
        assert [stored.key for stored in adapter.scan()] == [KEY]
    assert len(raw_moto.names()) == 4


def test_names_that_the_library_refuses_do_not_stop_a_scan(moto: Moto, raw_moto: Raw) -> None:
    adapter = moto.adapter(prefix=PREFIX)
    keys = [KEY._replace(chunk_hash=bytes([number]) * 32) for number in range(0, 256, 15)]
    for key in keys:
        store(adapter, key, payload(1))
    for foreign in ("2d0//x", "../../etc", "zz/./zz"):
        raw_moto.put(f"{PREFIX}/{foreign}", b"not ours")

    assert sorted(stored.key for stored in adapter.scan()) == sorted(keys)

    raw_moto.put(f"{PREFIX}/00//z", b"not ours")
    with pytest.raises(OSError, match="00//z"):
        list(adapter.scan())


def test_more_objects_than_a_page_lists(moto: Moto, raw_moto: Raw) -> None:
    adapter = moto.adapter(prefix=PREFIX)
    names = [f"{PREFIX}/{number % 256:02x}/m@01000100@0@{number % 256:02x}{number:06x}" for number in range(1100)]
    threads = [threading.Thread(target=lambda part: [raw_moto.put(name, b"x") for name in part], args=(names[i::4],))
               for i in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({stored.key for stored in adapter.scan()}) == 1100


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def test_virtual_hosted_requests_name_the_bucket_in_the_host() -> None:
    # Of the host name 127.0.0.1 the first part is the bucket: no name server is asked.
    with Answering() as server:
        adapter = server.adapter(bucket="127", endpoint=f"http://0.0.1:{server.port}", virtual_hosted_style=True)
        server.reply = NOT_FOUND

        assert adapter.exists(KEY) is False

        assert server.requests[-1].startswith(b"HEAD /00/org%252Fmodel-7B%40")
        assert f"host: 127.0.0.1:{server.port}\r\n".encode() in server.requests[-1]


def test_path_style_requests_name_the_bucket_in_the_path() -> None:
    with Answering() as server:
        adapter = server.adapter()
        server.reply = NOT_FOUND

        assert adapter.exists(KEY) is False

        assert server.requests[-1].startswith(b"HEAD /larder-test/00/org%252Fmodel-7B%40")


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        ("503 Slow Down", "<Error><Code>SlowDown</Code></Error>", ConnectionFault),
        ("500 Internal Server Error", "", ConnectionFault),
        ("429 Too Many Requests", "", ConnectionFault),
        ("507 Insufficient Storage", "<Error><Code>XMinioStorageFull</Code></Error>", StorageFull),
        ("403 Forbidden", "<Error><Code>QuotaExceeded</Code></Error>", StorageFull),
        ("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>", OSError),
        ("400 Bad Request", "<Error><Code>EntityTooLarge</Code></Error>", OSError),
    ],
)
def test_what_the_storage_answers_becomes_the_right_fault(status: str, body: str, fault: type[OSError]) -> None:
    with Answering() as server:
        adapter = server.adapter()
        server.reply = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

        with pytest.raises(OSError) as raised:
            store(adapter, KEY, payload(1))

        assert type(raised.value) is fault
        assert status.split()[0] in str(raised.value)


def test_a_silent_storage_is_a_fault_within_the_timeout() -> None:
    with Answering() as server:
        adapter = server.adapter(request_timeout_s=0.5)
        server.reply = b""

        for verb in (lambda: adapter.exists(KEY), lambda: load(adapter, KEY, 10), lambda: list(adapter.scan())):
            started = time.monotonic()
            with pytest.raises(ConnectionFault, match="Timeout"):
                verb()
            assert time.monotonic() - started < 5


def test_a_body_that_stops_in_the_middle_is_a_fault() -> None:
    with Answering() as server:
        adapter = server.adapter(request_timeout_s=0.5)
        server.reply = b"HTTP/1.1 200 OK\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        server.reply += b'ETag: "1"\r\nContent-Length: 9096\r\n\r\n' + bytes(6000)

        with pytest.raises(ConnectionFault):
            load(adapter, KEY, 5000)


def test_a_storage_that_cannot_be_reached_does_not_stop_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with Answering() as server:
        gone = server.url

    adapter = S3Adapter(config_for(gone))

    assert "going on without it" in caplog.text
    with pytest.raises(ConnectionFault, match="ConnectionRefused"):
        adapter.exists(KEY)


def test_a_password_in_the_endpoint_is_in_no_words(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = "http://usr:hush@127.0.0.1:1"
    with closing(S3Adapter(config_for(endpoint))) as adapter, pytest.raises(ConnectionFault) as fault:
        adapter.exists(KEY)

    assert "127.0.0.1:1" in str(fault.value)
    assert "hush" not in str(fault.value) + caplog.text
    assert "usr" not in str(fault.value) + caplog.text


def test_a_storage_that_comes_back_is_used_again(tmp_path: Path) -> None:
    server = Rclone(tmp_path / "rclone")
    with server:
        server.make_bucket()
        adapter = server.adapter()
        store(adapter, KEY, payload(1))

    started = time.monotonic()
    for verb in (
        lambda: adapter.exists(KEY),
        lambda: load(adapter, KEY, 5000),
        lambda: store(adapter, KEY, payload(2)),
        lambda: adapter.delete(KEY),
        lambda: list(adapter.scan()),
    ):
        with pytest.raises(ConnectionFault):
            verb()
    assert time.monotonic() - started < 10

    with server:
        assert load(adapter, KEY, 5000)[2] == payload(1)
        store(adapter, KEY, payload(2))
        assert [stored.key for stored in adapter.scan()] == [KEY]


def test_a_closed_adapter_lets_go_of_its_connections(rclone: Rclone) -> None:
    before = set(os.listdir("/proc/self/fd"))
    adapter = rclone.adapter()
    assert adapter.exists(KEY) is False
    assert set(os.listdir("/proc/self/fd")) - before

    adapter.close()

    wait_for(lambda: not set(os.listdir("/proc/self/fd")) - before, 10, "the connections are closed")
