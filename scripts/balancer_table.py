"""Write the table of methods in docs/balancing.md from the catalogue of balancers.

python scripts/balancer_table.py            write it
python scripts/balancer_table.py --check    exit code 1 if it is not up to date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from trainer.catalog import CATALOG, find
from trainer.parts import Balancer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "balancing.md"
BEGIN, END = "<!-- methods: written by scripts/balancer_table.py, `make docs` -->\n", "<!-- end of methods -->"


def gradients(method: type[Balancer]) -> str:
    """What a method is told of the task gradients."""
    if method.needs_grads:
        return "themselves, at the representation"
    return f"Gramian, of `{method.default_gram}`" if method.needs_gram else "no"


def table() -> Iterator[str]:
    """A row per method of the catalogue."""
    yield "| method | what it does | reads task gradients | conflict-free | never negative |"
    yield "|---|---|---|---|---|"
    for kind in CATALOG["balancer"]:
        method = find("balancer", kind)
        about = (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        promises = ["yes" if kept else "" for kept in (method.conflict_free, method.positive)]
        yield f"| [`{kind}`](spec.md#balancer-{kind}) | {about} | {gradients(method)} | {' | '.join(promises)} |"


def page() -> str:
    """The page with the table as it should be."""
    written = re.escape(BEGIN) + ".*?" + re.escape(END)
    now = "\n".join([BEGIN, *table(), "", END])
    return re.sub(written, lambda _: now, PAGE.read_text(), flags=re.S)


def main() -> int:
    """Write the page; with `--check` only say whether it is up to date."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
