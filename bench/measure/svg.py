"""Just enough to draw plots as SVG files: axes with round ticks, lines, points, bands, a legend. Colours follow the reader's
light or dark scheme."""
import math
from xml.sax.saxutils import escape

COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")
LETTER = 6.9  # width of one in pixels, of the 13 px font
STYLE = """
svg { background: #ffffff; color: #1c2330; }
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #454e5d; }
.title { font-weight: 600; font-size: 15px; fill: #1c2330; }
.axis { stroke: #5d6675; fill: none; } .grid { stroke: #dde2ea; } .aim { stroke: #5d6675; stroke-dasharray: 6 4; }
.band { fill: #1f8a5b; fill-opacity: 0.13; } .stopped { fill: #c8553d; fill-opacity: 0.35; }
.round { fill: #3f7fcf; fill-opacity: 0.10; } .round.odd { fill-opacity: 0.22; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } .whisker { stroke-width: 1.2; }
.c0 { stroke: #3f7fcf; } .c1 { stroke: #c8553d; } .c2 { stroke: #1f8a5b; } .c3 { stroke: #8250c4; } .c4 { stroke: #94701c; }
.c5 { stroke: #0d7f8c; } .dot.c0 { fill: #3f7fcf; } .dot.c1 { fill: #c8553d; } .dot.c2 { fill: #1f8a5b; } .dot.c3 { fill: #8250c4; }
.dot.c4 { fill: #94701c; } .dot.c5 { fill: #0d7f8c; } .dot { fill-opacity: 0.75; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  svg { background: #14181f; color: #e4e8ef; } text { fill: #b3bccb; } .title { fill: #e4e8ef; }
  .axis, .aim { stroke: #9aa4b4; } .grid { stroke: #323a47; } .band { fill: #4cc38a; } .stopped { fill: #e07a5f; }
  .round { fill: #6aa5ee; }
  .c0 { stroke: #6aa5ee; } .c1 { stroke: #ee937b; } .c2 { stroke: #5fd19c; } .c3 { stroke: #b48cf0; } .c4 { stroke: #d9b04a; }
  .c5 { stroke: #4fc3d0; } .dot.c0 { fill: #6aa5ee; } .dot.c1 { fill: #ee937b; } .dot.c2 { fill: #5fd19c; } .dot.c3 { fill: #b48cf0; }
  .dot.c4 { fill: #d9b04a; } .dot.c5 { fill: #4fc3d0; } }
"""


def number(value):
    """As few digits as tell it."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.6g}"


class Axis:
    """Maps values to 0..1. `kind`: linear (from 0), log (decades), or names (one place each)."""

    def __init__(self, label, values, kind="linear", names=None, least_most=0.0):
        self.label, self.kind = label, kind
        values = [v for v in values if v is not None]
        if kind == "names":
            self.names = list(names)
            self.ticks = [(i, n) for i, n in enumerate(self.names)]
        elif kind == "log":
            values = [v for v in values if v > 0] or [1]
            low, high = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
            high = max(high, low + 1)
            self.low, self.high = 10.0**low, 10.0**high
            self.ticks = [(10.0**e, number(10.0**e)) for e in range(low, high + 1)]
        else:
            most = max([*values, least_most]) or 1
            step = next(m * 10**math.floor(math.log10(most / 5)) for m in (1, 2, 5, 10)
                        if m * 10**math.floor(math.log10(most / 5)) >= most / 5 * 0.999)
            count = math.ceil(most / step - 1e-6)
            self.low, self.high = 0.0, count * step
            self.ticks = [(i * step, number(i * step)) for i in range(count + 1)]

    def at(self, value):
        if self.kind == "names":
            return (value + 0.5) / len(self.names)
        if self.kind == "log":
            value = min(max(value, self.low), self.high)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)


class Panel:
    """One plot within a figure: a frame at (left, top) of the given size, in pixels."""

    def __init__(self, figure, title, x, y, left, top, width, height):
        self.figure, self.x, self.y = figure, x, y
        self.left, self.top, self.width, self.height = left, top, width, height
        figure.text(left, top - 12, title, css="title")
        for value, name in y.ticks:
            v = self.py(value)
            figure.add(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{v:.1f}" y2="{v:.1f}"/>')
            figure.text(left - 7, v + 4.5, name, "end")
        for value, name in x.ticks:
            u = self.px(value)
            figure.add(f'<line class="axis" x1="{u:.1f}" x2="{u:.1f}" y1="{top + height}" y2="{top + height + 5}"/>')
            figure.text(u, top + height + 20, name, "middle")
        figure.text(left + width / 2, top + height + 41, x.label, "middle")
        middle = top + height / 2
        wide = LETTER * max(len(name) for _, name in y.ticks) + 22
        figure.add(f'<text text-anchor="middle" transform="translate({left - wide:.1f} {middle:.1f}) rotate(-90)">{escape(y.label)}</text>')
        figure.add(f'<path class="axis" d="M{left} {top}V{top + height}H{left + width}"/>')

    def px(self, value):
        return self.left + self.x.at(value) * self.width

    def py(self, value):
        return self.top + self.height - self.y.at(value) * self.height

    def points(self, points):
        return " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)

    def line(self, points, css, dashed=False):
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.figure.add(f'<polyline class="{css}"{dash} points="{self.points(points)}"/>')

    def dot(self, x, y, css, tip=""):
        self.figure.add(f'<circle class="dot {css}" cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="4"><title>{escape(tip)}</title></circle>')

    def whisker(self, x, low, high, css):
        self.figure.add(f'<line class="whisker {css}" x1="{self.px(x):.1f}" x2="{self.px(x):.1f}" y1="{self.py(low):.1f}" y2="{self.py(high):.1f}"/>')

    def band(self, points):
        self.figure.add(f'<polygon class="band" points="{self.points(points)}"/>')

    def span(self, begin, end, css, tip=""):
        """Over the whole height; never too thin to be seen."""
        left, right = self.px(begin), self.px(end)
        self.figure.add(f'<rect class="{css}" x="{left:.1f}" y="{self.top}" width="{max(right - left, 1.5):.1f}" height="{self.height}">'
                        f"<title>{escape(tip)}</title></rect>")

    def write(self, x, y, text, anchor="start"):
        self.figure.text(self.px(x), self.py(y), text, anchor)


class Figure:
    """Grows to the height that its legend, drawn last, needs."""

    def __init__(self, width, title):
        self.width, self.height, self.title = width, 0, title
        self.parts = []

    def add(self, element):
        self.parts.append(element)

    def text(self, x, y, text, anchor="start", css="label"):
        self.add(f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def legend(self, left, top, entries):
        """`entries`: (css, text); css of a line's colour, or the name of an area. Wraps at the figure's width, which then ends."""
        x = left
        for css, text in entries:
            needed = 26 + LETTER * len(text) + 20
            if x + needed > self.width and x > left:
                x, top = left, top + 22
            if css in COLOURS:
                self.add(f'<line class="{css}" stroke-width="3" x1="{x}" x2="{x + 18}" y1="{top - 4}" y2="{top - 4}"/>')
            elif css == "aim":
                self.add(f'<line class="aim" x1="{x}" x2="{x + 18}" y1="{top - 4}" y2="{top - 4}"/>')
            else:
                self.add(f'<rect class="{css}" x="{x}" y="{top - 11}" width="18" height="13"/>')
            self.text(x + 24, top, text)
            x += needed
        self.height = top + 18

    def save(self, path):
        with open(path, "w") as f:
            f.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
                    f'height="{self.height}" role="img" aria-label="{escape(self.title)}">\n<style>{STYLE}</style>\n'
                    + "\n".join(self.parts) + "\n</svg>\n")
