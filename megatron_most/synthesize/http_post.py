"""One POST of JSON to a server that may be slow, broken or hostile: a whole answer within bounds, or a plain reason.

Bounded are the time (of the whole exchange, however slowly bytes drip), and the size of the answer. Redirects are not
followed: they would carry the key to another host. The key stands in one header, and nowhere in what comes back: where
a server echoes it, it is replaced before anybody reads the text. Proxies of the environment are not used.
"""

from __future__ import annotations

import email.utils
import functools
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.parse
from dataclasses import dataclass
from html.entities import codepoint2name

from megatron_most.errors import DataError

HIDDEN = b"***"
_MAY_PASS = {408, 409, 425, 429}
_OF_THE_REQUEST = {400, 413, 422}
_REMEDY = "give the address of an OpenAI-compatible service, such as http://node17:8000/v1"


class NoAnswer(Exception):
    """The exchange broke off; worth another try. `was_sent`: the server may have done, and charged, the work."""

    def __init__(self, wrong: str, was_sent: bool) -> None:
        super().__init__(wrong)
        self.was_sent = was_sent


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of whatever status."""

    status: int
    body: bytes
    retry_after: float | None
    """Seconds that the server wants to be left alone."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_empty(self) -> bool:
        """Without a body: of a success, what a flaky proxy gives for an answer that it has lost."""
        return not self.body.strip()

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _MAY_PASS or self.status >= 500

    @property
    def is_of_the_request(self) -> bool:
        """Whether it is this request alone that the server refuses."""
        return self.status in _OF_THE_REQUEST


@dataclass(frozen=True)
class Address:
    """A checked base address."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str, option: str = "--endpoint") -> Address:
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise DataError(f"{option}.url: not an address ({error}); {_REMEDY}") from error
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise DataError(  # without the address: it holds what should not be shown
                f"{option}.url: a name, password or query in the address; take it out: keys come by {option}.key-env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(f"{option}.url {url!r:.200}: not an http or https address; {_REMEDY}")
        if re.search(r"[\x00-\x20\x7f-\uffff]", parts.path):
            raise DataError(f"{option}.url {url!r:.200}: has blanks or signs to be escaped; {_REMEDY}")
        return cls(
            parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), parts.path.rstrip("/")
        )

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


def checked_key(key: str, variable: str) -> str:
    """The key as it can stand in a header. Never shown."""
    key = key.strip()
    if not key or not re.fullmatch(r"[\x21-\x7e]+", key):
        raise DataError(f"the key in ${variable} is empty or has signs that no key has; set it again")
    return key


def without_key(data: bytes, key: str | None) -> bytes:
    """Bytes from outside with the key hidden, also where JSON, an address or HTML escapes some or all of its signs."""
    return _spellings(key).sub(HIDDEN, data) if key else data


@functools.lru_cache(maxsize=8)
def _spellings(key: str) -> re.Pattern[bytes]:
    """Each sign as itself or escaped, whatever is done to its neighbours; JSON within JSON doubles backslashes."""
    signs = []
    for sign in key:
        code = ord(sign)
        # Counted, not any number: a hostile answer of backslashes alone would take for ever.
        forms = [rf"\\{{0,8}}{re.escape(sign)}", rf"\\{{1,8}}u(?i:{code:04x})", rf"%(?i:{code:02x})",
                 rf"&#0{{0,8}}{code};", rf"&#(?i:x0{{0,8}}{code:x});"]  # fmt: skip
        if name := codepoint2name.get(code):
            forms.append(f"&{name};")
        signs.append(f"(?:{'|'.join(forms)})")
    return re.compile("".join(signs).encode())


def post(address: Address, path: str, body: bytes, key: str | None, *, timeout_s: float, most_bytes: int) -> Answer:
    """The server's answer. Raises NoAnswer."""
    deadline = time.monotonic() + timeout_s
    connection: http.client.HTTPConnection
    if address.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    was_sent, cutter, late = False, None, threading.Event()
    try:
        connection.connect()
        cutter = threading.Timer(max(deadline - time.monotonic(), 0.0), _cut, (connection.sock, late))
        cutter.daemon = True
        cutter.start()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        was_sent = True
        connection.request("POST", address.path + path, body, headers)
        response = connection.getresponse()
        data = response.read(most_bytes + 1)
        if late.is_set():
            raise NoAnswer(f"no whole answer within {timeout_s:g} s", was_sent)
        if len(data) > most_bytes:
            raise NoAnswer(f"an answer of more than {most_bytes:,} bytes", was_sent)
        if response.length:
            raise NoAnswer(f"an answer cut off after {len(data):,} bytes", was_sent)
        retry_after = _seconds(response.headers.get("Retry-After"))
        return Answer(response.status, without_key(data, key), retry_after)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise NoAnswer(f"no whole answer within {timeout_s:g} s", was_sent) from None
        # The error's own words may quote the server, so its kind alone is told, unless it is the system's.
        told = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise NoAnswer(f"the connection failed: {told}", was_sent) from None
    finally:
        if cutter is not None:
            cutter.cancel()
        connection.close()


def _cut(sock: socket.socket, late: threading.Event) -> None:
    """End a read that waits for ever: the reading thread sees the end of the stream."""
    late.set()
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself


def _seconds(text: str | None) -> float | None:
    """Retry-After: a number of seconds, or a date."""
    if text is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text.strip()):
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
