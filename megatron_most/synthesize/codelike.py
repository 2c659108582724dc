"""Code, tables and formulas that stand in a text without fence or rule: told by how they look, or not at all.

Line by line where a line shows it (a query, a command, an import, a statement); anywhere where signs show it (a call,
braces, &&, a tag, a path). Lines can be left out, with what hangs on them; code within a sentence cannot, since nobody
knows what the sentence would be without it. Prose that looks a little alike is to pass: "Select a seat from the
list.", "word(s)", "git gud", "Import duties rose."
"""

from __future__ import annotations

import re

from megatron_most.data.rejects import RowError
from megatron_most.synthesize.addresses import DOMAINS, URL

_PACKAGERS = "pip3?|npm|yarn|conda|cargo|gem|apt|apt-get|yum|dnf|snap|apk"
_TOOLS = (
    "rm cp mv ls ps cat cd chmod chown mkdir rmdir touch grep sed awk find tar unzip curl wget ssh scp kill docker "
    "kubectl git pip npm python python3 node bash sh echo export source make"
).split()
_TOOL = "|".join(_TOOLS)
_MODULES = (
    "os sys re io json csv math time random numpy pandas torch requests datetime logging collections itertools "
    "functools typing pathlib matplotlib tensorflow scipy flask django asyncio subprocess threading argparse React"
).split()
_LINE = [
    # queries in the usual capitals, or with signs that no sentence has
    r"(?i:select)\s+(?:\*|\w+(?:,\s*\w+)*)\s+(?i:from)\s+\w+\s*(?:;\s*$|(?i:where)\s+\w+\s*[=<>].*)",
    r"(?i:select\s+\*\s+from)\s.*",
    r"(?i:insert\s+into\s+\w+\s*(?:\(|values\b)).*",
    r"(?i:create\s+table\s+\w+\s*\().*",
    r"(?i:update\s+\w+\s+set\s+\w+\s*=).*",
    r"(?i:delete\s+from\s+\w+\s*(?:;\s*$|where\s+\w+\s*[=<>])).*",
    r"SELECT\s.*\sFROM\s.*|(?:INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|(?:CREATE|DROP|ALTER)\s+TABLE)\s.*",
    # commands
    r"\$\s+[a-z./~].*",
    r"sudo\s+(?!(?:is|was|lets|means|gives|stands|asks)\b)[a-z].*",
    rf"(?i:(?:sudo\s+)?(?:{_PACKAGERS})\s+(?:install|uninstall|update|upgrade|add|remove|run)\b).*",
    r"brew\s+install\s.*",
    r"(?i:git)\s+clone\s+(?:\S*[/:@.]\S.*|\S+\s*$)",
    r"git\s+(?:commit|add|push|pull|checkout|merge|status|log|init|rebase|fetch|diff|branch|stash|reset)"
    r"(?:\s+(?:-\S|\.(?:\s|$)|origin\b|main\b|master\b|HEAD\b).*|\s*$)",
    rf"(?i:{_TOOL})\s+(?:\S+\s+){{0,4}}(?:-{{1,2}}[A-Za-z]|~?\.{{0,2}}/\w).*",
    r"(?:python3?|node|bash|sh|java|perl|ruby)\s+\S+\.(?:py|js|sh|jar|pl|rb)\b.*",
    r"(?:curl|wget)\s+\S*(?:https?://).*",
    r"npm\s+(?:start|test|ci)\b.*|docker\s+(?:run|build|pull|compose|exec|ps)\b.*|kubectl\s+\w.*",
    r"cd\s+(?:\.\.|[~/]).*|export\s+\w+=.*|echo\s+[\"'$].*|chmod\s+[+\d].*",
    # programs
    rf"(?i:import)\s+(?:\w|{'|'.join(_MODULES)})\s*;?\s*$",
    r"import\s+(?:[\w.]+\s+as\s+\w+|\w+(?:\.\w+)+|[\w.]+\s*;|\w+(?:,\s*\w+)+)\s*$|import\s.+\sfrom\s+[\"'].*",
    r"from\s+[\w.]+\s+import\s+[\w*(].*|From\s+[\w.]+\s+import\s+[\w*]+(?:,\s*\w+)*\s*$",
    r"(?:async\s+)?def\s+\w+\s*\(.*|class\s+(?:[A-Z]\w*|\w+\([^()\n]*\))\s*:(?:\s*#.*)?\s*$",
    r"(?:async\s+)?for\s+\w+(?:,\s*\w+)*\s+in\s+[^\n]*\w\([^\n]*\)\s*:.*",
    r"(?:while|if|elif)\s+[^\n]*(?:[=!<>]=|\w\(|\w\[)[^\n]*:\s*$|@\w[\w.]*\([^\n]*\)\s*$",
    r"(?:export\s+)?(?:async\s+)?function\b\s*\w*\s*\(.*",
    r"(?:export\s+)?(?:const|var)\s+\w+\s*=.*|let\s+\w+\s*=.*;\s*$",
    r"#\s?include\s*[<\"].*|#!/.*|using\s+namespace\s.*",
    r"(?:public|private|protected|static)\s+(?:static\s+)?(?:void|int|class|string|bool)\b.*",
    r"(?:int|float|double|char|bool|void|long|auto)\s+\w+\s*(?:=|\(|;).*",
    r"print\s+[\"'].*|lambda\s+\w+\s*:.*",
    r"return\s+[\w.\"']+\s*;\s*$|return\b.*(?:[-+*/%=<>|&]\s|\w\(|\w\[).*;?\s*$",
    r"[A-Za-z_][\w.]*(?:\[[^\]\n]*\])?\s*[-+*/|&%]?=\s*[^=\n]+;\s*$",
    r"\"[\w -]+\"\s*:\s*(?:[\"\d\[{]|true\b|false\b|null\b).*",
]
_PROMPT = r"[ \t]*(?:>>> ?|\.\.\. (?=\S)|[-*+•>] |\d{1,2}[.)] )?"
_CODE_LINE = re.compile(rf"{_PROMPT}(?:{'|'.join(f'(?:{line})' for line in _LINE)})")
_IMPORT = re.compile(r"[ \t]*import \w+\s*")  # of anything, but for a line alone: a topic is "import duties"
_SELECT = re.compile(r"[ \t]*SELECT\b")
_CONSOLE = re.compile(r"[ \t]*>>> ")
_HANGING = re.compile(
    r"\s+\S|[\w.\[\]]+ ?[-+*/|&%]?= ?\S|[\])}]|.*[;{]\s*$|#(?! )|//|(?:else|try|finally|end|done|fi|pass)\b"
    r"|(?:break|continue)\b"
    r"|(?:SELECT|FROM|WHERE|JOIN|LEFT|GROUP BY|ORDER BY|VALUES|SET)\b"
    r"|print\b|\w[\w.]*\(.*\)\s*$"
)
"""A line that is code beside a line of code, though it need not be one elsewhere."""
_BLOCK = re.compile(
    r"(?m)^[ \t]*(?:for|while|if|elif|else|with|try|except)\b[^\n]*:[ \t]*\n[ \t]{2,}[a-z_]\w*\s*(?:[-+*/]?=|[.(\[])"
)
_SUFFIXES = "s|es|ren|ed|d|r|ing|n|ly|er|ies|al|or|'s"
_ARGUMENTS = r"\s*|\s*[\w.*-]+(?:\s*,\s*[\w.*-]+)*\s*|[^()\n]*(?:\"|=|_|\[|(?<!\w)'|\s[-+*/%]\s)[^()\n]*"
_CALL = re.compile(
    rf"(?<![\w'.])(?!\w+\((?:{_SUFFIXES})\))(?:[a-z][a-z0-9]+|[A-Za-z0-9]*_\w*|[a-z]+[A-Z]\w*|[A-Za-z_]\w*(?:\.\w+)+)\((?:{_ARGUMENTS})\)"
    r"|(?<![\w'.])[A-Z]\w+\((?:\s*|\s*[\d.]+(?:\s*,\s*[\d.]+)+\s*|\s*\"[^\"\n]*\"\s*|[^()\n]*\w=[^()\n]*)\)"
)
_INLINE_TAGS = "b|i|em|strong|u|br|p|a|q|s|del|ins|mark|small|sub|sup|span|font|center|hr"
_QUERY = re.compile(r"\bSELECT\s[^;]{1,300}?\sFROM\s")
_ANYWHERE = [
    _QUERY,
    re.compile(r"\bINSERT\s+INTO\s|\bDELETE\s+FROM\s|\bUPDATE\s+\w+\s+SET\s"),
    re.compile(r"\b(?:CREATE|DROP|ALTER)\s+(?:TABLE|INDEX|DATABASE|VIEW)\s"),
    re.compile(rf"(?i)\b(?:{_TOOL})\s+-{{1,2}}[a-z]"),
    re.compile(r"[{}]|&&|\|\||\w::\w|\w\s?[=!]==(?!=)|\w\s?=\s?\[|:=|\w\s?(?:[-+*/%|&]=)\s?\w|\w\+\+\s?[;)]"),
    re.compile(r"\)\s*=>|=>\s*[({\[]|\b[a-z]\w*\s*=>\s*\w+(?:[.(\[]|\s*[-+*/]\s)|\)\s*->\s*\w+:"),
    re.compile(rf"<!DOCTYPE|<\?\w|</?(?!(?:{_INLINE_TAGS})\b)[A-Za-z][\w-]*(?:\s[^<>\n]{{0,200}})?/?>", re.I),
    re.compile(r"\w\[(?:0|-\d+|-?\w*:-?\w*|[ijknmxy]|idx|index|key|\"[^\"\n]*\"|'[^'\n]*'|\w+\s?[-+*]\s?\w+)\]"),
    re.compile(r"(?<![\w.])[b-z]\[\d+\]|\[\s*(?:\"[^\"\n]*\"|'[^'\n]*')\s*[,\]]"),
    re.compile(r"(?<![\w/.:)~])~?/(?:[\w.-]+/[\w.-]|[\w-]+\.\w|(?:etc|usr|home|var|tmp|bin|opt|dev|root|proc|lib)\b)"),
    re.compile(r"(?<![\w/.])(?:~|\.{1,2})/\w|\b[A-Za-z]:\\|\\\w"),
    re.compile(rf"(?<![\w.@-])[a-z_]{{2,}}\.[a-z_]{{2,}}\.(?!(?:{DOMAINS})\b)[a-z_]{{2,}}(?![\w@-]|\.\w)"),
]
_FUNCTION = re.compile(r"(?<![\w'.])(?:[A-Za-z]|sin|cos|tan|log|ln|exp|sqrt|det|arg|lim)\([^()\s][^()\n]{0,40}\)")
_COLUMNS = re.compile(r"(?m)^[^\n|]*\S[ \t]+\|[ \t]+\S[^\n]*\n[^\n|]*\S[ \t]+\|[ \t]+\S")


def refuse_code(text: str) -> None:
    """RowError where code, a table or a formula stands in the text without being marked as such."""
    bare = URL.sub("https://a", text)  # which may hold braces and calls and is read out all the same
    if _COLUMNS.search(bare):
        raise RowError("holds a table")
    lines = bare.splitlines()
    for line in lines:
        if _CODE_LINE.match(line) or len(lines) > 1 and _IMPORT.fullmatch(line):
            raise RowError("holds code", line.strip()[:60])
    if found := _FUNCTION.search(bare):
        raise RowError("holds a formula", found[0][:60])
    for pattern in (_BLOCK, _CALL, *_ANYWHERE):
        if found := pattern.search(bare):
            raise RowError("holds code", found[0].strip()[:60])


def without_code_lines(text: str) -> str:
    """The text without lines of code and, in the same paragraph, the lines about them that belong to them."""
    lines = text.splitlines()
    sure = [_CODE_LINE, _IMPORT, _CONSOLE] + [_SELECT] * (_QUERY.search(text) is not None)
    is_code = [any(pattern.match(line) for pattern in sure) for line in lines]
    for order in (range(1, len(lines)), range(len(lines) - 2, -1, -1)):
        step = -1 if order.step > 0 else 1
        for number in order:
            if is_code[number + step] and lines[number].strip() and _HANGING.match(lines[number]):
                is_code[number] = True
    return "\n".join("" if gone else line for line, gone in zip(lines, is_code, strict=True))
