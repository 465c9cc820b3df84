"""Encryption: AES-256-GCM with a key per tenant, bound to the object's own key.

    nonce, 12 random bytes | ciphertext | tag, 16 bytes

A tenant's key is HKDF-SHA256 of the master key over its `cache_salt`; the object key is associated data, so neither
another tenant's object nor another object of the same tenant can be put in a stored one's place. Random nonces are safe
for 2**32 objects per tenant and master key.
"""

import functools
import os
import re
import stat
from dataclasses import dataclass
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.l2.serde.codec import Codec, Undecodable
from engine.object_key import ObjectKey

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_HEX_KEY = re.compile(rb"[0-9a-fA-F]{64}\s*")
_MAX_TENANTS_REMEMBERED = 1024


@dataclass(frozen=True)
class AesGcmConfig:
    """`key_file`: 32 bytes or 64 hexadecimal digits, readable by its owner alone."""

    key_file: str


class AesGcmCodec(Codec):
    """Holds the master key; shows it nowhere."""

    name: ClassVar[str] = "aesgcm"
    config_class = AesGcmConfig

    def __init__(self, config: AesGcmConfig) -> None:
        """Raises OSError when the key file cannot be read, ValueError when it is no key or open to others."""
        master = read_key(config.key_file)
        self._key_id = _derive(master, b"larder l2 key id").hex()[:16]
        self._cipher_of = functools.lru_cache(_MAX_TENANTS_REMEMBERED)(
            lambda salt: AESGCM(_derive(master, b"larder l2 tenant\0" + salt.encode()))
        )

    def tag(self) -> bytes:
        return f"aesgcm {self._key_id}".encode()

    def encode(self, payload: memoryview, key: ObjectKey) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher_of(key.cache_salt).encrypt(nonce, payload, _bound(key))

    def decode(self, data: memoryview, key: ObjectKey, max_bytes: int) -> bytes:
        length = len(data) - NONCE_BYTES - TAG_BYTES
        if not 0 <= length <= max_bytes:
            raise Undecodable(f"{len(data)} bytes cannot be the ciphertext of at most {max_bytes}")
        try:
            return self._cipher_of(key.cache_salt).decrypt(bytes(data[:NONCE_BYTES]), data[NONCE_BYTES:], _bound(key))
        except InvalidTag:
            raise Undecodable("not encrypted for this object with this key, or changed since") from None


def read_key(path: str) -> bytes:
    """The master key in a file. Raises OSError, or ValueError without a byte of the content."""
    with open(path, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        content = file.read(4 * KEY_BYTES)
    if mode & 0o077:
        raise ValueError(f"key_file {path} has mode {mode:04o}, it must be open to its owner alone (0600)")
    if _HEX_KEY.fullmatch(content):
        return bytes.fromhex(content.decode())
    if len(content) != KEY_BYTES:
        raise ValueError(f"key_file {path} must hold {KEY_BYTES} bytes or {2 * KEY_BYTES} hexadecimal digits")
    return content


def _derive(master: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose).derive(master)


def _bound(key: ObjectKey) -> bytes:
    """The object key as bytes: each part with its length before it, so no two keys give the same."""
    parts = [
        key.chunk_hash,
        key.model_name.encode(),
        key.kv_rank.to_bytes(8, "big"),
        key.object_group_id.to_bytes(8, "big"),
        key.cache_salt.encode(),
    ]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
