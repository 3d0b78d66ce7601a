"""HTML pages in one file: they fetch nothing, run no script but their own, and show what others wrote as text."""

import base64
import hashlib
import json
from typing import Any

from cptjax.command.escape import JOINERS, html
from cptjax.corpus.page import STYLE

MORE_STYLE = """
body { max-width: 90rem; }
label { margin-right: 1rem; }
select, input { font: inherit; max-width: 20rem; }
th[data-sort] { cursor: pointer; }
[hidden] { display: none !important; }
"""


def escape(words: str) -> str:
    """Text as HTML shows it, lines as they are."""
    return html(words, keep="\n\t" + JOINERS)


def page(title: str, body: str, script: str, *, style: str = "", data: Any = None) -> str:
    """A page of HTML that is finished but for its title, with a script that finds `data` by JSON in the element `data`.

    The policy lets the browser run this script alone, by its hash, whatever else should be in the page.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{MORE_STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
<script type="application/json" id="data">{embedded(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: no character of it begins a tag or a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)  # ASCII: half a surrogate pair stays an escape
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
