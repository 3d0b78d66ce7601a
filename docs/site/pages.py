"""Pages of the site that lie elsewhere, or in another form: README.md is the first, notebooks are read as pages."""

import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them to what mkdocs found in docs/."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "LICENSE", abs_src_path=str(ROOT / "LICENSE")))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = as_page(notebook.content_string, notebook.name)
        files.append(File.generated(config, notebook.src_uri.replace(".ipynb", ".md"), content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a notebook goes to its page."""
    return markdown.replace(".ipynb)", ".md)")


def as_page(notebook: str, name: str) -> str:
    """Its cells as Markdown; no outputs are kept."""
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(notebook)["cells"]]
    texts = [text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in cells]
    return "\n\n".join([*texts, f'<a href="../{name}.ipynb" download>This notebook</a>'])
