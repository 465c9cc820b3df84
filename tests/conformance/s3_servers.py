"""Two S3 servers for tests: moto behaves like AWS and checks nothing, rclone checks real signatures."""

import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from engine.l2.s3_adapter import S3Adapter, S3Config
from tests.stack import Part, free_port

KEY_ID = "LARDERTESTKEY"
SECRET = "secret-of-the-tests"
BUCKET = "larder-test"


def config_for(url: str, **fields: Any) -> S3Config:
    """What reaches BUCKET at `url`; `fields` change or add to it."""
    given = {
        "bucket": BUCKET,
        "endpoint": url,
        "region": "us-east-1",
        "access_key_id": KEY_ID,
        "secret_access_key": SECRET,
        "allow_http": True,
    }
    return S3Config(**{**given, **fields})


class S3Server(Part):
    """An S3 server on loopback, with the bucket BUCKET once it is ready."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=1.0):
                return True
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return True
        except OSError:
            return False

    def make_bucket(self, name: str = BUCKET) -> None:
        with Raw(self, name) as raw:
            raw.client.create_bucket(Bucket=name)

    def adapter(self, **fields: Any) -> S3Adapter:
        return S3Adapter(config_for(self.url, **fields))


class Moto(S3Server):
    name = "moto"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]


class Rclone(S3Server):
    name = "rclone"

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory)
        self.options = options

    def command(self) -> Sequence[str]:
        root = self.directory / "objects"
        root.mkdir(exist_ok=True)
        address, auth = f"127.0.0.1:{self.port}", f"{KEY_ID},{SECRET}"
        program = str(Path(sys.executable).parent / "rclone")
        options = ["--addr", address, "--auth-key", auth, "--config", "/dev/null", *self.options]
        return [program, "serve", "s3", *options, str(root)]


NOTHING_LISTED = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


class Answering:
    """A server that answers every request with `reply`, with silence when that is empty. A context manager.

    As it begins it answers that the bucket is empty.
    """

    def __init__(self) -> None:
        self.reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(NOTHING_LISTED) + NOTHING_LISTED
        self.requests: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="answering")

    def __enter__(self) -> "Answering":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def adapter(self, **fields: Any) -> S3Adapter:
        return S3Adapter(config_for(self.url, **fields))

    def _serve(self) -> None:
        silent: list[socket.socket] = []
        while not self._over.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                break
            if not self.reply:
                silent.append(connection)
                continue
            with connection:
                self._answer(connection)
        for connection in silent:
            connection.close()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        missing = int(length[1]) - len(body) if length else 0
        while missing > 0:
            missing -= len(connection.recv(65536))
        self.requests.append(head + b"\r\n")
        connection.sendall(self.reply)


class Raw:
    """The bucket as boto3 sees it: a client of another make than the adapter's. A context manager."""

    def __init__(self, server: S3Server, bucket: str = BUCKET) -> None:
        self._bucket = bucket
        self.client = boto3.client(
            "s3",
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        return sorted(found["Key"] for page in pages for found in page.get("Contents", []))

    def get(self, name: str) -> bytes:
        with self.client.get_object(Bucket=self._bucket, Key=name)["Body"] as body:
            return bytes(body.read())

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self._bucket, Key=name, Body=data)

    def empty(self) -> None:
        names = [{"Key": name} for name in self.names()]
        for start in range(0, len(names), 1000):
            self.client.delete_objects(Bucket=self._bucket, Delete={"Objects": names[start : start + 1000]})
