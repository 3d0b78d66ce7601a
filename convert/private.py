"""What is nobody else's business and must not travel with a model: paths, tokens, addresses of mail."""

import re
from collections.abc import Iterator
from typing import Any

# How tokens of well-known services begin, after the rules of gitleaks (github.com/gitleaks/gitleaks) and the makers'
# own pages: code hosts, registries, clouds, model services, messengers, payment, and JSON web tokens (eyJ).
BEGINNINGS = (
    *("hf_", "api_org_", "gh[opusr]_", "github_pat_", "gl(?:pat|dt|rt|ptt|cbt|soat|ft|imt|agent)-", "ATBB", "ATATT3"),
    *("npm_", "pypi-", "rubygems_", "dckr_(?:pat|oat)_", "dapi(?=[0-9a-f]{32})", "do[opr]_v1_", r"hv[bsr]\.", "pul-"),
    *("A[KS]IA(?=[A-Z0-9]{8})", "AIza", r"ya29\.", "GOCSPX-", "LTAI", "sk-", "gsk_", "nvapi-", "r8_", "pplx-", "lsv2_"),
    *("xox[abeprs]-", "xapp-", "[spr]k_(?:live|test)_", "whsec_", r"SG\.(?=[\w-]{16})", "shp(?:at|ca|pa|ss)_"),
    *("lin_api_", "ntn_", "figd_", "glsa_", "sntry[su]_", r"pscale_\w+_", "PMAK-", "AGE-SECRET-KEY-", "eyJ"),
)
KINDS = {  # in this order: a path may lie in an address
    "token": re.compile(
        rf"\b(?:{'|'.join(BEGINNINGS)})[\w.-]{{8,}}"
        r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY[\s\S]*?(?:-----END[A-Z0-9 ]*-----|\Z)|PuTTY-User-Key-File[\s\S]*"
        r"|(?i:authorization['\"]?\s*[=:]\s*['\"]?(?:(?:token|bearer|basic|digest|api-?key)\s+\S+|\S*\d\S{7,}))"
        r"|\b(?i:bearer)\s+[\w.+/=-]{8,}|\b(?i:basic)\s+(?=\S*(?:\d|=|[a-z][A-Z]))[\w+/=]{8,}"
        r"|(?i:(?:token|pass(?:word|wd|phrase)|secret|(?:api|access|account|private|secret)[_-]?key)"
        r"['\"]?\s*[=:]\s*(?![\[<])\S+)"  # not "unknown token: [UNK]"
        r"|(?<=://)[^\s/@]+@"
    ),
    "mail address": re.compile(
        r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|[\w.+-]+@(?:localhost\b|[\w-]+(?=:[/~]))|\b(?:root|admin|ubuntu)@[\w-]+"
    ),
    "path": re.compile(
        r"\b(?!https?:)\w+://\S+"  # gs://bucket/folder
        r"|(?:\$(?:env:)?[A-Za-z_]\w*|%[A-Za-z_]\w*%|(?<!\w)~[A-Za-z]\w{2,})[/\\]\S*"
        r"|\$\{?HOME\b\}?|%(?:USERPROFILE|HOME)%"
        r"|(?<![\w.~)\]/\\*+?%-])(?<!http:)(?<!https:)"  # nor in a pattern of names of parameters
        r"(?:~|\.\.?|[A-Za-z]:)?[/\\]{1,2}[\w.~+-]*\w(?:[/\\][\w.~+ -]*[\w.~+-])*"
    ),
}
REMOVED = "[removed]"


def kinds_in(text: str) -> list[str]:
    """The kinds of what must not travel that a text holds."""
    return [kind for kind, pattern in KINDS.items() if pattern.search(text)]


def without(value: Any) -> Any:
    """A JSON value, its keys included, with REMOVED in the place of what must not travel."""
    if isinstance(value, dict):
        return {without(key): without(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without(item) for item in value]
    if isinstance(value, str):
        for pattern in KINDS.values():
            value = pattern.sub(REMOVED, value)
    return value


def places(value: Any, where: str = "") -> Iterator[str]:
    """Where a JSON value holds what: `data.0.name: path`."""
    if isinstance(value, dict):
        for key, item in value.items():
            name = f"{where}.{without(key)}".removeprefix(".")
            if kinds := kinds_in(str(key)):  # labels have numbers
                yield f"{name}: {', '.join(kinds)}"
            yield from places(item, name)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places(item, f"{where}.{i}".removeprefix("."))
    elif isinstance(value, str) and (kinds := kinds_in(value)):
        yield f"{where}: {', '.join(kinds)}"
