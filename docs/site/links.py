"""Links of the repository's pages, as the site needs them: pages keep their places, notebooks become pages."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

CODE = re.compile(r"((?:^`{3,}.*?^`{3,}[ ]*$)|`[^`\n]+`)", re.S | re.M)
LINK = re.compile(  # one that downloads a notebook means the notebook
    r"(\]\(\s*<?)([^)\s>]++)(?!\)\{ download)|(<(?:a|img)\b[^>]*?(?:href|src)=\")([^\"]+)"
)
NOWHERE = "folder-without-a-page"


def relink(
    text: str,  # Markdown
    page: PurePosixPath,  # where it stands in the repository
    root: Path,  # of the repository
    keep: Callable[[str], object],  # is told every file that is linked and is no page
    has_page: Callable[[str], bool],  # whether the site has a page of this name, such as nbs/method/index.md
) -> str:
    "The same text, with links that lead to pages of the site."

    def one(found: re.Match) -> str:
        before, link = (found[1], found[2]) if found[2] else (found[3], found[4])
        path, mark, anchor = unquote(link).partition("#")
        if re.match(r"[a-z][a-z0-9+.\-]*:|//", link, re.I):  # another place: https, mailto, data
            return found[0]
        target = inside(page.parent / path)
        if not path or target.endswith((".ipynb", ".md")):
            anchor = re.sub(r"[^\w\-]", "", anchor.lower())  # Jupyter keeps capitals and punctuation, the site does not
        elif (root / target).is_dir():
            index = next((name for name in ("readme.md", "index.md") if has_page(f"{target}/{name}")), None)
            path = f"{path.rstrip('/')}/{index}" if index else NOWHERE
        elif (root / target).is_file():
            keep(target)
        return before + site_name(path, target) + mark + anchor

    parts = CODE.split(text)
    parts[::2] = [re.sub(rf"\[([^\[\]]*)\]\({NOWHERE}\)", r"\1", LINK.sub(one, prose)) for prose in parts[::2]]
    return "".join(parts)


def site_name(
    path: str,  # of a page, as the repository names it
    place: str = "",  # the same from the repository's root, where `path` is relative
) -> str:
    "The page's Markdown file on the site."
    folder, _, name = path.rpartition("/")
    if name == "README.md" and "/" in (place or path):  # a theme takes it for the front page of its section
        path = f"{folder}/readme.md".lstrip("/")
    return re.sub(r"\.ipynb$", ".md", path)


def inside(path: PurePosixPath) -> str:
    "A path of the repository without its .. parts."
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
