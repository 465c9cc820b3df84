"""Secrets are found in texts by their form, and nothing else is touched."""

import json
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contract.mask_text import mask_text, mask_urls_in
from contract.masking import mask_environment

#: Around what stands in the middle of every secret of these tests, so that no part of one passes unseen.
HEAD, TAIL = "Zq7", "7qZ"
WORDS = string.ascii_letters + string.digits + "_-"
NAMES = ["password", "DB_PASSWORD", "secret_access_key", "api-key", "dbpassword", "authToken", "spring.db.password"]


def secrets_of(alphabet: str) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=12, max_size=40).map(lambda middle: f"{HEAD}{middle}{TAIL}")


def assert_hidden(text: str) -> str:
    masked = mask_text(text)
    assert HEAD not in masked, masked
    assert TAIL not in masked, masked
    assert mask_text(masked) == masked
    return masked


@given(secrets_of(WORDS + "+/=.:!$%^*~?<>|@#[]{}()`"), st.sampled_from(NAMES))
@pytest.mark.parametrize(
    "form",
    [
        "{name}={secret}",
        "-D{name}={secret} -Xmx4g",
        "--bind 0.0.0.0 --{name} {secret} --workers 2",
        "--{name}={secret}",
        "{name}: {secret}",
        "host=db {name}={secret} user=app",
        "one: 1\n  - {name}: {secret}\ntwo: 2",
        "2026-11-22 19:17:00 ERROR engine: refused, {name}={secret}",
        "{name} = {secret}",
        "export {name}={secret}; ./run",
        "['redis-server', '--{name}', '{secret}', '--port', '1']",
        "{name}:{secret}",
        "x={{'{name}': '{secret}', 'b': 1}}",
        'Module required username="me" {name}="{secret}";',
        '{{"a": [1, {{"{name}" : "{secret}"}}]',
    ],
)
def test_what_a_name_announces_is_hidden(form: str, secret: str, name: str) -> None:
    assert name in assert_hidden(form.format(name=name, secret=secret))


@given(secrets_of(WORDS))
@pytest.mark.parametrize(
    ("form", "masked"),
    [
        ("redis://user:{}@host:6379/0", "redis://user:***@host:6379/0"),
        ("at rediss://:{}/{}@h/0, tried", "at rediss://:***@h/0, tried"),
        ("https://{}@host/x", "https://***@host/x"),
        ("GET /x https://host/b?sig={}&a=1", "GET /x https://host/b?sig=***&a=1"),
        ("a://u:{}@h,b://u:{}@h", "a://u:***@h,b://u:***@h"),
        ("app:{}@tcp(db:3306)/shop?tls=true", "app:***@tcp(db:3306)/shop?tls=true"),
        ("login app:{}@db.example:5432/shop", "login app:***@db.example:5432/shop"),
        ("AccountName=a;AccountKey={}/==;Suffix=core.net", "AccountName=a;AccountKey=***;Suffix=core.net"),
        ("Uid=sa;Pwd={};Database=x", "Uid=sa;Pwd=***;Database=x"),
        ("authorization=Bearer {}", "authorization=Bearer ***"),
        ("curl -H 'Authorization: Token {}' http://h", "curl -H 'Authorization: Token ***' http://h"),
        ("Authorization: AWS4-HMAC-SHA256 Credential={}, Signature={}", "Authorization: AWS4-HMAC-SHA256 ***"),
        ("x-api-key: {}\nAccept: */*", "x-api-key: ***\nAccept: */*"),
        ("Cookie: a={}; b={}\nAccept: */*", "Cookie: ***\nAccept: */*"),
        ("sent Bearer {} to it", "sent Bearer *** to it"),
        ("sent%20Bearer%20{}", "sent%20Bearer%20***"),
        ("sent Basic {}==", "sent Basic ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\n.",
         "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----\n."),
        ("-----BEGIN PRIVATE KEY-----\\n{}", "-----BEGIN PRIVATE KEY-----***"),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----\n{}", "-----BEGIN PGP PRIVATE KEY BLOCK-----***"),
        ("hf_{}", "hf_***"),
        ("with sk-proj-{}, refused", "with sk-***, refused"),
        ("(ghp_{})", "(ghp_***)"),
        ("github_pat_{}", "github_pat_***"),
        ("glpat-{}", "glpat-***"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.{}", "eyJ***"),
        ("redis-cli -h h -a {} ping", "redis-cli -h h -a *** ping"),
        ("password: |\n  {}\n\n  {}\nuser: me", "password: |\n  ***\nuser: me"),
        ("passwords:\n  - {}\n  - {}\nuser: me", "passwords:\n  - ***\nuser: me"),
        ('"password":\n  "{}", "a": 1', '"password":\n  "***", "a": 1'),
        ("API Key: {}, or", "API Key: ***, or"),
        ("machine h login me password {}\nmachine i", "machine h login me password ***\nmachine i"),
        ("sshpass -p {} ssh h", "sshpass -p *** ssh h"),
        ("requirepass {}\nport 1", "requirepass ***\nport 1"),
        ("curl -u me:{} http://h", "curl -u me:*** http://h"),
        ("password: {} with blanks {}\nuser: me", "password: ***\nuser: me"),
        ("tokens=[1, 2] api_key=['{}', '{}'] b=1", "tokens=[1, 2] api_key=*** b=1"),
        ("api_key={} secret='a'{}", "api_key=*** secret='***"),
    ],
)  # fmt: skip
def test_other_forms_of_secrets(form: str, masked: str, secret: str) -> None:
    assert assert_hidden(form.replace("{}", secret)) == masked


@given(
    secrets_of(string.printable + "äß"),
    st.sampled_from(NAMES),
    st.integers(0, 3),
    st.sampled_from(["{}", "conf {} end", "[{}"]),
)
@example(f'{HEAD}"\\\\" \' aa{TAIL}', "password", 2, "{}")
def test_json_inside_texts_at_any_depth_of_quoting(secret: str, name: str, depth: int, around: str) -> None:
    text = json.dumps({"before": 1, name: secret, "after": [2]})
    for _ in range(depth):
        text = json.dumps({"inner": text})

    masked = assert_hidden(around.replace("{}", text))

    assert "before" in masked
    assert "after" in masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:secret@host:1/0", "redis://:***@host:1/0"),
        ("at rediss://user:secret@host, tried", "at rediss://user:***@host, tried"),
        ("redis://host:1/0", "redis://host:1/0"),
        ("no url: a@b", "no url: a@b"),
        ("redis://:p@ss@host", "redis://:***@host"),
        ("redis://u:p:a@s?s@host:1/0?db=1, tried", "redis://u:***@host:1/0?db=1, tried"),
        ("redis://h/0?password=hunter2", "redis://h/0?password=***"),
        ("unix:///run/r.sock?db=1&Password=hunter2&x=1", "unix:///run/r.sock?db=1&Password=***&x=1"),
        ("redis://:p/a/ss@host:1/0", "redis://:***@host:1/0"),
        ("redis://:a@h/0 or redis://:b@h/0", "redis://:***@h/0 or redis://:***@h/0"),
    ],
)
def test_secrets_of_urls(text: str, masked: str) -> None:
    assert mask_urls_in(text) == masked == mask_text(text)


@pytest.mark.parametrize("word", ["a.", "-x", "redis-cli", "a+b ", "a:b@", "://", "u.x:", "\\", "PWD=/", "token=***"])
@pytest.mark.parametrize("start", ["", "a://", "a://u:", "?x=", 'password="', "Cookie: "])
def test_the_work_does_not_grow_faster_than_the_text(start: str, word: str) -> None:
    """The bound is far above what it takes, and far below what it would with a walk to the end from every word."""
    text = start + word * (150_000 // len(word))
    began = time.thread_time()

    mask_environment({"ANY": text})

    assert time.thread_time() - began < 10


def test_keys_of_a_cloud_are_known_by_their_shape() -> None:
    assert mask_text("id AKIAIOSFODNN7EXAMPLE, or") == "id AKIA***, or"
    assert mask_text("id XAKIAIOSFODNN7EXAMPLE") == "id XAKIAIOSFODNN7EXAMPLE"


HARMLESS = [
    "", "17", "-0.5", "1e9", "true", "/usr/local/bin:/usr/bin:/bin", "/root", "/srv/key-store/token/x.json",
    "C.UTF-8", "en_US:en", "a=b", "xterm-256color", ":0", "localhost:6379", "::1", "[::1]:80",
    "amqp://mq:5672/v", "http://[::1]:8080/x@y", "http://h:8080/img@v1", "https://git@github.com/x.git",
    "git+https://github.com/a/b@v1.2#egg=c", "git@github.com:a/b", "ssh://me@host/x", "python:3.11@sha256:0a1b",
    "registry:5000/team/img:tag", "unix:///run/r.sock?db=1", "a@b.example", "me@host:/srv",
    "tokens_per_block=16 max_tokens=5 eos_token=2 token_budget=8192", "--max-tokens 256 --tokenizer llama",
    "password=None token=null secret=false api_key=", 'password="" token=\'\'', "password_file=/run/secrets/db",
    "hash_algorithm: blake3", "key=value", "key: 17", "--key-prefix larder", "PWD=/root OLDPWD=/",
    "basic usage of the bearer of a token", "Basic Authentication", "wrong password: try again later",
    "the password may be given by a file", "secret", "token", "-token", "password -", "docker run -u 1000:1000 x",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "ls=01;34:*.tar=01;31:", "sk-learn", "hf_hub",
    "d41d8cd98f00b204e9800998ecf8427e", "6f1ed002ab5595859014ebf0951522d9", "store 'r' tokens [0, 64)",
    '{"type": "fs", "base_path": "/data/kv", "chunk": 1.50}', "lmcache_mp_lookup_requested_tokens_total 1536.0",
    "WRONGPASS invalid username-password pair or user is disabled.", "12:30@room", "Foo(key='a', tokens=[1, 2])",
    "GET /loglevel?logger_name=x&level=DEBUG HTTP/1.1", "tests/test_token_hasher.py::test_it[1]", "Secret::new",
    "engine/token_reader.py:12: fell over", "engine.token_reader: 3 left", "GET /l2/keys?page_token=WyIw HTTP/1.1",
    "botocore.exceptions.NoCredentialsError: Unable to locate credentials", "InvalidPasswordException: it is too short",
    'WWW-Authenticate: Bearer realm="larder", Basic realm="x"',
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays(text: str) -> None:
    assert mask_text(text) == text


_segment = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12)
_path = st.lists(_segment, min_size=1, max_size=5).map(lambda segments: "/" + "/".join(segments))


@given(st.lists(_path, min_size=1, max_size=8).map(":".join))
@example("/run/secret:/run/token")
def test_paths_stay(text: str) -> None:
    assert mask_text(text) == text


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.uuids()))
def test_plain_values_stay(value: object) -> None:
    assert mask_text(str(value)) == str(value)


@given(st.lists(st.sampled_from([
    *"\"'\\ \n=:;,@/?&[]{}()-*", "password", "token", "://", "Bearer ", "a", "b1", "--", "Cookie",
    "-----BEGIN PRIVATE KEY-----", "hf_", "eyJabcdefgh.", "***", "%20", "null", "redis-cli", " -a ", "sig=", "ä", "9",
]), max_size=40).map("".join))  # fmt: skip
def test_any_text_can_be_masked_and_a_masked_one_stays(text: str) -> None:
    masked = mask_text(text)

    assert mask_text(masked) == masked
