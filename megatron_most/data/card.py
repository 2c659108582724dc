"""The data card of a dataset: its README.md, for a reader who has the folder and nothing else.

In: a DatasetInfo. Out: Markdown behind a YAML header as the Hugging Face Hub reads it; equal infos give equal bytes.
Surprising: whatever a user or a corpus named is hostile until escaped (a licence of "| --- |" must not draw a table),
and absolute paths lose all but their last part: the card travels, the machine does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from megatron_most.data.dataset_info import DatasetInfo, Source

_TASKS = {  # the task -> what a document is, and the Hub's nearest category
    "asr": ("speech as units, then its transcript", "automatic-speech-recognition"),
    "tts": ("a text, then its speech as units", "text-to-speech"),
    "text-lm": ("plain text", "text-generation"),
    "audio-lm": ("speech as units, without text", "audio-to-audio"),
    "interleaved": ("spans of a recording by turns as text and as units", "any-to-any"),
    "speech-instruct": ("a dialogue in which at least one side speaks in units", "any-to-any"),
    "text-instruct": ("a written dialogue", "text-generation"),
}
_PERMISSIVE = {  # the start of a licence's name, blanks as hyphens -> the Hub's id
    "cc0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-3.0": "cc-by-3.0",
    "cc-by-2.5": "cc-by-2.5",
    "cc-by-2.0": "cc-by-2.0",
    "cc-by": "cc",
    "apache-2.0": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
    "mit": "mit",
    "bsd-2-clause": "bsd-2-clause",
    "bsd-3-clause": "bsd-3-clause",
    "odc-by": "odc-by",
    "pddl": "pddl",
    "cdla-permissive-1.0": "cdla-permissive-1.0",
    "cdla-permissive-2.0": "cdla-permissive-2.0",
    "unlicense": "unlicense",
    "public-domain": "other",  # the Hub has no id for it
}
_BOUND = {"cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"} | {
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "unknown",
    "gpl-3.0", "odbl",
}  # fmt: skip
_CONDITIONS = (
    (r"(?<![a-z])nc(?![a-z])|non-?commercial|research-(use-)?only|academic-(use|research)", "not for commercial use"),
    (r"(?<![a-z])nd(?![a-z])|no-?deriv", "nothing derived from it may be passed on"),
    (r"(?<![a-z])sa(?![a-z])|share-?alike|gpl|odbl|gfdl", "what is derived from it must keep its terms"),
    (
        r"except|restrict|prohibit|forbid|not-(for|to)(?![a-z])|(?<![a-z])only(?![a-z])",
        "has restrictions: read its terms",
    ),
)
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B") + (
    "10B<n<100B", "100B<n<1T", "n>1T",
)  # fmt: skip


def write_card(info: DatasetInfo) -> str:
    """The whole README.md."""
    parts = [
        _front_matter(info),
        f"# {_md(_title(info))}",
        _summary(info),
        "## Counts",
        _table(("what", "count"), _counts(info)),
        "## Units, tokens and templates",
        _table(("what", "name", "sha256"), _identities(info)),
        "Data, tokenizer and checkpoint belong together only where these hashes agree.",
        "## Where it comes from",
        _table(
            ("corpus", "split", "licence", "source", "language", "normalisation of text", "rows", "manifest"),
            [_provenance(source) for source in info.provenance],
        ),
        "## Licences that need attention",
        _licences(info.provenance),
        "## What was left out",
        _rejects(info),
        "## Overlap with evaluation sets",
        _overlaps(info),
        "## To make it again",
        "The same manifests, units, tokenizer, token map and templates (hashes above) with these options, and the same "
        "evaluation sets, give the same bytes on any number of processes:",
        f"    python tools/prepare_data.py build --task {info.task if info.task in _TASKS else 'TASK'} "
        f"--manifest MANIFEST ... {'--units UNITS ... ' if info.codec else ''}--tokenizer TOKENIZER --tokens TOKEN_MAP "
        f"--templates TEMPLATES --out FOLDER{_frame_flags(info)}",
        _table(("option", "value"), [_option(name, value) for name, value in sorted(info.options.items())]),
        "## To check it",
        "    python tools/prepare_data.py verify --paths FOLDER",
        "proves sizes, hashes, every id and every tag, and that Megatron-Core reads the same tokens.",
        _table(
            ("file", "bytes", "sha256"),
            [(_md(name), f"{size:,}", _md(sha)) for name, (size, sha) in sorted(info.files.items())],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(info: DatasetInfo) -> str:
    languages = {source.language.split("-")[0].split("_")[0].lower() for source in info.provenance if source.language}
    lists = {
        "license": sorted({id for source in info.provenance for id in _hub_ids(source.licence)}) or ["unknown"],
        "language": sorted(name for name in languages if re.fullmatch("[a-z]{2,3}", name)),
        "task_categories": [_TASKS[info.task][1]] if info.task in _TASKS else [],
        "size_categories": [_size(info.documents)],
        "tags": ["megatron-most", "speech-units" if info.codec else "text"],
    }
    lines = ["---", f"pretty_name: {_yaml(_title(info))}"]
    for name, values in lists.items():
        if values:
            lines += [f"{name}:", *(f"- {_yaml(value)}" for value in values)]
    return "\n".join([*lines, "---"])


def _title(info: DatasetInfo) -> str:
    corpora = list(dict.fromkeys(source.corpus for source in info.provenance))
    return f"{info.task}: {', '.join(corpora) or 'no corpus named'}"


def _summary(info: DatasetInfo) -> str:
    shard = info.options.get("shard")
    is_part = isinstance(shard, Sequence) and len(shard) == 2 and tuple(shard) != (0, 1)
    about = _TASKS[info.task][0] if info.task in _TASKS else "as the task says"
    about = about.replace("speech as units", "speech as continuous frames") if info.frames else about
    lines = [
        f"{info.documents:,} documents of the task {_md(info.task)} ({about}) as token ids of the vocabulary "
        f"{_md(info.tokens.backbone)} with {info.tokens.num_units:,} speech units, worded by the templates "
        f"{_md(info.templates[0])}.",
        "The files `tokens.bin` and `tokens.idx` are an indexed dataset of Megatron-Core. A document is several "
        "sequences; the mode of a sequence holds its tag (text, audio, wave) and, by its high bit, whether it is "
        "trained on. No sound is stored.",
    ]
    if info.frames:
        lines.append(
            "Speech that is heard stands there as continuous frames, a begin wave id for each: `spans.bin` says which "
            "stretch of which recording of `audio.txt` they are. The recordings are needed to train on it."
        )
    if is_part and isinstance(shard, Sequence):
        lines.append(f"**This is shard {_md(shard[0])} of {_md(shard[1])} (counted from 0), not the whole.**")
    return "\n".join(lines)


def _counts(info: DatasetInfo) -> list[tuple[str, str]]:
    tokens = info.num_tokens
    rows = [("documents", f"{info.documents:,}"), ("sequences", f"{info.sequences:,}"), ("tokens", f"{tokens:,}")]
    rows += [
        (f"tokens of {_md(tag)}", f"{count:,} ({_share(count, tokens)})") for tag, count in info.tokens_by_tag.items()
    ]
    rows.append(("tokens trained on", f"{info.trained_tokens:,} ({_share(info.trained_tokens, tokens)})"))
    if info.documents:
        rows.append(("tokens a document, mean", f"{tokens / info.documents:,.1f}"))
    rows.append(("longest document, tokens", f"{info.longest:,}"))
    rows.append(("hours of speech", f"{info.seconds / 3600:,.2f}" if info.seconds else "none"))
    if info.untimed_units:
        rows.append(("units of unknown length, in no hours", f"{info.untimed_units:,}"))
    return rows


def _identities(info: DatasetInfo) -> list[tuple[str, str, str]]:
    rows = []
    if info.codec is None:
        rows.append(("codec", "none: no units here" if info.frames else "none: no speech here", ""))
    else:
        codec = info.codec
        about = f"{codec.num_units:,} units, {codec.sample_rate:,} Hz, a frame each {codec.frame_s * 1000:g} ms"
        about += f", computed in {_md(codec.precision)}"
        rows.append(("codec", f"{_md(codec.name)} ({about})", _md(codec.hash)))
    if info.tokenizer is None:
        rows.append(("tokenizer", "none", ""))
    else:
        about = f"{_md(info.tokenizer.kind)}, {info.tokenizer.vocab_size:,} tokens"
        rows.append(("tokenizer", about, _md(info.tokenizer.sha256)))
    rows.append(("token map", f"{_md(info.tokens.backbone)}, {info.tokens.vocab_size:,} rows", info.tokens.hash))
    if frames := info.frames:
        about = f"{frames.width:,} numbers, a frame each {frames.frame_s * 1000:g} ms, in {_md(frames.precision)}"
        about += f"; {frames.stack} frames of the encoder side by side" if frames.stack > 1 else ""
        rows.append(("continuous frames", f"{_md(frames.name)} ({about})", _md(frames.hash)))
    return [*rows, ("templates", _md(info.templates[0]), _md(info.templates[1]))]


def _provenance(source: Source) -> tuple[str, ...]:
    texts = (source.corpus, source.split, source.licence, source.source, source.language or "not given")
    return (*map(_md, texts), _md(source.normalisation), f"{source.rows:,}", _md(source.manifest_sha256[:12]))


def _licences(provenance: Iterable[Source]) -> str:
    """A line for each corpus whose licence is not known to be permissive throughout."""
    lines = {
        (_md(source.corpus), _md(source.licence or "none given"), f"**{'; '.join(concerns)}**"): None
        for source in provenance
        if (concerns := _concerns(source.licence))
    }
    if not lines:
        return "None: each licence named above is known as permissive. Attribution may still be due; read them."
    table = _table(("corpus", "licence", "what to heed"), lines)
    return f"{table}\n\nWhoever trains on this dataset or passes it on must see to these first."


def _clauses(licence: str) -> list[str]:
    """The names in a licence text, without the brackets that say what each is for."""
    clauses = re.split(r"[;,+&/]|\band\b", re.sub(r"\([^()]*\)", " ", licence.lower()))
    return [name for clause in clauses if (name := re.sub(r"[\s_-]+", "-", clause).strip("-"))]


def _permissive(name: str) -> str | None:
    """The Hub's id of a permissive licence; a longer name that only starts alike is another licence."""
    for start, id in _PERMISSIVE.items():
        if re.fullmatch(re.escape(start) + r"(-?v?[0-9.]+|-licen[cs]e|-universal)*", name):
            return id
    return None


def _hub_ids(licence: str) -> list[str]:
    return [_permissive(name) or (name if name in _BOUND else "other") for name in _clauses(licence)] or ["unknown"]


def _concerns(licence: str) -> list[str]:
    everything = re.sub(r"[\s_-]+", "-", licence.lower())
    found = [concern for pattern, concern in _CONDITIONS if re.search(pattern, everything)]
    if not found and not (clauses := _clauses(licence)):
        return ["unknown terms"]
    if not found and not all(map(_permissive, clauses)):
        return ["unknown terms" if "unknown" in clauses else "not known here as permissive, so read its terms"]
    return found


def _rejects(info: DatasetInfo) -> str:
    if not info.rejects:
        return "Nothing: every row of the manifests could be used."
    rows = sorted(info.rejects.items(), key=lambda item: (-item[1], item[0]))
    table = _table(("reason", "rows"), [(_md(reason), f"{count:,}") for reason, count in rows])
    return f"{sum(info.rejects.values()):,} rows; `rejects.jsonl` names each.\n\n{table}"


def _overlaps(info: DatasetInfo) -> str:
    if not info.overlaps:
        return (
            "**Not checked.** No evaluation set was given when this dataset was made, so it may hold what models are "
            "tested on."
        )
    is_refused = bool(info.options.get("refuse_overlap"))
    became = "left out" if is_refused else "kept"
    rows = [(_md(name), f"{count:,}", became if count else "none found") for name, count in info.overlaps.items()]
    found = sum(info.overlaps.values())
    lines = [
        "Rows that share a speaker's id, a recording's id or a run of words with an evaluation set; `overlaps.jsonl` "
        "lists each. Sets that are not in this table were not checked.",
        _table(("evaluation set", "rows that overlap", "what became of them"), rows),
    ]
    if found and not is_refused:
        lines.append("**These rows are in the data:** scores on these sets are not clean measurements.")
    return "\n\n".join(lines)


def _option(name: str, value: object) -> tuple[str, str]:
    """As the command line has it."""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = ("/" if name == "shard" else " ").join("none" if part is None else str(part) for part in value)
    return _md("--" + name.replace("_", "-")), _md("not set" if value is None else value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines)


def _frame_flags(info: DatasetInfo) -> str:
    """What `build` has to be told of continuous frames besides the options below."""
    if (frames := info.frames) is None:
        return ""
    model = f" --frames.model MODEL --frames.layer {frames.layer}" if frames.kind == "hubert" else ""
    period = "" if model else f" --frames.frame-ms {round(1000 * frames.frame_s / frames.stack)}"
    return f" --frames.kind {frames.kind}{model}{period} --frames.stack {frames.stack}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


def _size(documents: int) -> str:
    return _SIZES[min(max(len(str(documents)) - 3, 0), len(_SIZES) - 1)]


def _plain(value: object) -> str:
    """One line of printable text, without the places of one machine."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    text = re.sub(r"file:/+", "/", text, flags=re.IGNORECASE)
    if text.startswith(("/", "~")):  # a path as a whole, blanks included
        return "…/" + text.rstrip("/").rpartition("/")[2]
    text = re.sub(r"(?<![\w:/.-])(?:~[\w-]*)?(?:/[^\s/\"',;|]+){2,}", _last_part, text)
    return re.sub(r"\b[A-Za-z]:(?:\\+[^\s\\\"]+)+", _last_part, text)


def _last_part(path: re.Match[str]) -> str:
    return "…/" + re.split(r"[/\\]", path[0])[-1]


def _md(value: object) -> str:
    """Text that Markdown shows as it is, in a sentence or a cell; at the start of a line it could still be a list."""
    text = _plain(value)
    if re.fullmatch(r"https?://[A-Za-z0-9:/?#@!$&()*+,;=._~%-]+", text):
        return f"<{text}>"
    return re.sub(r"([\\`*_{}\[\]<>()#!|~$&^])", r"\\\1", text)


def _yaml(value: str) -> str:
    """Always quoted: bare, the Norwegian `no` is a truth value. JSON strings of printable text are YAML."""
    return json.dumps(_plain(value), ensure_ascii=False)
