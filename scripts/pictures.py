"""The pictures of README.md, from a real run: `python scripts/pictures.py`. Needs a Chromium on PATH, or COTRAIN_CHROMIUM.

With `--report FILE` the report of a run that was made before is taken.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
SPEC = ROOT / "examples" / "01-digits.yaml"
WIDTH, MARGIN, SCALE = 1100, 14, 2
COLOURS = 64
LARGEST_BYTES = 200_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# name: where the picture begins and ends on the page, in CSS pixels
PARTS = {
    "report": ("() => 0", "() => document.querySelector('#comparison ~ * .card, #comparison ~ .card').getBoundingClientRect().bottom"),
    "curves": (
        "() => document.querySelector('#curves').getBoundingClientRect().top - 12",
        "() => [...document.querySelectorAll('section[aria-labelledby=curves] .card')].at(-1).getBoundingClientRect().bottom",
    ),
}


def made(folder: Path) -> Path:
    """The report of a run of the first example in a folder."""
    command = [str(Path(sys.executable).with_name("cotrain")), "run", str(SPEC), "--root", str(folder / "runs")]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (report,) = folder.glob("runs/logs/*/*/report.html")
    report.write_text(report.read_text().replace(f"{folder}/", ""))  # where it was made is nobody's business
    return report


def browser() -> str:
    """The path of a Chromium. Raises SystemExit where there is none."""
    names = [os.environ.get("COTRAIN_CHROMIUM"), *BROWSERS]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise SystemExit("no Chromium on PATH: install the package 'chromium', or set COTRAIN_CHROMIUM")
    return found


def shots(report: Path) -> dict[str, bytes]:
    """Parts of a report as PNG, by name and colour scheme."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser(), args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            view = {"width": WIDTH, "height": 1000}
            page = chromium.new_page(viewport=view, color_scheme=scheme, device_scale_factor=SCALE)  # type: ignore[arg-type]
            page.goto(report.resolve().as_uri())
            for name, edges in PARTS.items():
                top, bottom = (float(page.evaluate(edge)) for edge in edges)
                clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom + MARGIN - top}
                found[f"{name}-{scheme}"] = page.screenshot(full_page=True, clip=clip)  # type: ignore[arg-type]
        chromium.close()
    return found


def small(png: bytes) -> bytes:
    """The same picture with a palette: a report has few colours."""
    from PIL import Image

    packed = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def main() -> None:
    """Write docs/pictures/*.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, help="Take this report instead of making one.")
    chosen = parser.parse_args().report
    with tempfile.TemporaryDirectory(prefix="cotrain-") as folder:
        for name, png in shots(chosen or made(Path(folder))).items():
            data = small(png)
            if len(data) > LARGEST_BYTES:
                raise SystemExit(f"{name}.png would have {len(data):,} bytes: take fewer colours")
            (FOLDER / f"{name}.png").write_bytes(data)
            print(f"docs/pictures/{name}.png: {len(data):,} bytes")


if __name__ == "__main__":
    main()
