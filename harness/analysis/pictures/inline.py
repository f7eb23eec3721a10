"""An SVG file as a part of an HTML page: no prolog, no reference to anything outside, ids of its own."""

from __future__ import annotations

import re


def inline_svg(svg: str, prefix: str, label: str) -> str:
    """The <svg> element alone, its ids beginning with `prefix`; `label` (escaped) is what a screen reader says.

    Pictures of one page define the same ids (`axes_1`, glyphs); in one document each must be unique.
    """
    element = svg[svg.index("<svg") :].rstrip()
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"<!--.*?-->\s*", "", element, flags=re.DOTALL)
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", element)  # HTML knows the namespace of <svg>
    element = element.replace("xlink:href=", "href=")
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r'href="#', f'href="#{prefix}-', element)
    element = re.sub(r"url\(#", f"url(#{prefix}-", element)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)  # its viewBox and the page decide
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
