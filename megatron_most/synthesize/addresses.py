"""Web and mail addresses, ports and files as they are read out: www.a.org/b -> a dot org slash b."""

from __future__ import annotations

import re

from megatron_most.synthesize.numbers import digits
from megatron_most.synthesize.rules import Rule, rule

DOMAINS = "com|org|net|edu|gov|io|co\\.uk|de|fr|info"
_ENDINGS = (
    "py sh js ts txt csv json md pdf docx? xlsx? pptx? html? css exe zip jpe?g png gif mp[34] java cpp ya?ml toml ini "
    "cfg log sql"
).split()
URL = re.compile(r"<?\b(?:https?://|ftp://|www\.)[^\s<>\"']+[^\s<>\"'.,;:!?)\]}]>?", re.I)
_LONGEST_PATH = 24  # signs of an address after the host that somebody would still read out
_IN_ADDRESS = {".": " dot ", "-": " dash ", "_": " underscore ", "/": " slash ", "+": " plus "}


def _mail(text: str) -> str:
    name, _, host = text.strip("<>").partition("@")
    return f"{_spelled(name)} at {_spelled(host)}"


def _web(text: str) -> str:
    bare = re.sub(r"^(?:https?|ftp)://", "", text.strip("<>"), flags=re.I).removeprefix("www.")
    host, _, path = bare.partition("/")
    host, path = host.partition(":")[0].rpartition("@")[2], path.rstrip("/")
    if not path or len(path) > _LONGEST_PATH or re.search(r"[?=&%#~]", path):
        return _spelled(host)
    return f"{_spelled(host)} slash {_spelled(path)}"


def _spelled(text: str) -> str:
    said = "".join(str(_IN_ADDRESS.get(sign, f" {digits(sign)} " if sign.isdecimal() else sign)) for sign in text)
    return " ".join(said.split())


ADDRESSES: list[Rule] = [
    rule(r"<?(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b>?", lambda m: _mail(m[0])),
    (URL, lambda m: _web(m[0])),
    rule(rf"(?i)(\blocalhost|(?<![\w.])\d{{1,3}}(?:\.\d{{1,3}}){{3}}|(?<![\w-])[\w-]+\.(?:{DOMAINS})):(\d{{2,5}})(?![\d:])"
         r"((?:/[\w-]+)*/?)", lambda m: f"{m[1]} port {digits(m[2])} {_spelled(m[3].rstrip('/'))}".rstrip()),
    rule(rf"(?i)(?<![\w.-])[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:{DOMAINS})\b(?:/[\w/-]*)?", lambda m: _web(m[0])),
    rule(rf"(?<![\w.-])[A-Za-z][\w-]*(?:\.[a-z][\w-]*)?\.(?:{'|'.join(_ENDINGS)})\b(?![/.]\w)",
         lambda m: _spelled(m[0])),
]  # fmt: skip
