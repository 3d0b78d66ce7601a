"""HTML pages in one file: they fetch nothing, run no script but their own, and show what others wrote as text."""

import base64
import hashlib
import json
from typing import Any

from cptjax.command.escape import JOINERS, html

STYLE = """
:root { color-scheme: light dark; --line: #ddd; --soft: #666; --bar: #4a7ebb; --warn: #fff3d6; --chip: #eef2f7; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #aaa; --bar: #6c9bd2; --warn: #4a3a10; --chip: #2a3340; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; }
.soft { color: var(--soft); }
.warnings { background: var(--warn); padding: .75rem 1rem .75rem 2rem; border-radius: .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { min-width: 4rem; width: 8rem; }
.bar div { background: var(--bar); height: 1em; margin-top: .25em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; font-size: .85rem; }
code { background: var(--chip); border-radius: .2rem; margin: .1rem; white-space: pre; display: inline-block; }
h3 { border-top: 1px solid var(--line); padding-top: .5rem; font-size: 1rem; font-weight: 400; }
"""

SCRIPTED = """
body { max-width: 90rem; }
label { margin-right: 1rem; }
select, input { font: inherit; max-width: 20rem; }
th[data-sort] { cursor: pointer; }
[hidden] { display: none !important; }
"""


def escape(words: str) -> str:
    """Text as HTML shows it, lines as they are."""
    return html(words, keep="\n\t" + JOINERS)


def page(title: str, body: str, *, heading: str = "", style: str = "", script: str = "", data: Any = None) -> str:
    """A page of HTML under its title, or another `heading`; with a script, that finds `data` by JSON in the element
    `data`.

    The policy lets the browser run this script alone, by its hash, whatever else should be in the page.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        style = SCRIPTED + style
        body += f'\n<script type="application/json" id="data">{embedded(data)}</script>\n<script>{script}</script>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{escape(heading or title)}</h1>
{body}
</body>
</html>
"""


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: no character of it begins a tag or a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)  # ASCII: half a surrogate pair stays an escape
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
