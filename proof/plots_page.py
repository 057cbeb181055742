"""Write the page into which `dvc plots` draws, with its drawing library inside: it opens without the internet.

    python proof/plots_page.py

Writes .dvc/plots/page.html, which .dvc/config names; to be run again when vl-convert, which brings Vega, is updated.
"""

from importlib.metadata import version
from pathlib import Path

import vl_convert

PAGE = Path(__file__).resolve().parents[1] / ".dvc/plots/page.html"
EXPORTED = "window.vega = vega; window.vegaLite = vegaLite; window.vegaEmbed = vegaEmbed;"  # names that DVC's page uses


def main() -> None:
    """Write it."""
    library = vl_convert.javascript_bundle(EXPORTED).replace("</script", "<\\/script")
    about = "Vega, Vega-Lite and Vega-Embed (BSD 3-Clause, University of Washington), from vl-convert "
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(
        '<!DOCTYPE html>\n<html>\n<head>\n    <meta charset="utf-8">\n    {refresh_tag}\n    <title>DVC plots</title>\n'
        f"    <!-- {about}{version('vl-convert-python')} -->\n    <script>\n{library}\n    </script>\n"
        "    <style>table { border-spacing: 15px; }</style>\n</head>\n<body>\n    {plot_divs}\n</body>\n</html>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
