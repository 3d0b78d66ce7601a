"""Licences by the identifiers of the Hugging Face Hub, which cards of models and of data sets name them by.

The list is that of huggingface.co/docs/hub/repositories-licenses.
"""

import difflib

from cptjax.command.escape import printable

LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
""".split()


def licence(text: str) -> str:
    """The Hub's identifier of a licence, however it is written ("CC BY 4.0"), or the name of one that has none.

    A name has several words: ValueError for one word that is no identifier, with those most like it.
    """
    words = printable(text).split()
    identifier = "-".join(word for word in words if word.lower() not in ("the", "license", "licence")).lower()
    if identifier in LICENCES:
        return identifier
    if len(words) > 1:
        return " ".join(words)
    nearest = difflib.get_close_matches(identifier, LICENCES, n=3) or ["apache-2.0", "mit", "cc-by-4.0", "other"]
    raise ValueError(
        f"{text!r} is no licence that the Hugging Face Hub knows (nearest: {', '.join(nearest)}); a licence without "
        "an identifier there is written by its name, in several words"
    )
