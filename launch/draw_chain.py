"""Draws `chain.svg`, the picture of the README: from audio files to speech, with the command of each step.

python launch/draw_chain.py
"""

from html import escape
from pathlib import Path

STEPS = (
    ("tokenize", "audio and text", "codec codes in tar shards", "with FACodec"),
    ("train", "shards", "checkpoints", "ZeRO-2; NTP or MTP"),
    ("consolidate", "checkpoint", "safetensors", "one file for inference"),
    ("synthesize, serve", "text and a voice", "speech", "in batches or streaming"),
    ("evaluate", "speech and corpus", "scores and a page", "WER, similarity, UTMOS"),
)
WIDTH, HEIGHT, GAP, TOP = 168, 132, 24, 34
STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #1d2733; text-anchor: middle }
    .command { font: 600 12px ui-monospace, monospace; fill: #ffffff }
    .note { fill: #5b6b7c; font-size: 11px }
    .box { fill: #f4f7fa; stroke: #c5d0da }
    .head { fill: #2563a8 }
    .arrow { stroke: #5b6b7c; stroke-width: 1.5; fill: none; marker-end: url(#tip) }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .note { fill: #9aa7b4 } .box { fill: #161b22; stroke: #3d4753 }
    }
"""


def draw() -> str:
    """The picture as SVG."""
    total = len(STEPS) * WIDTH + (len(STEPS) - 1) * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 -4 {total + 8} {HEIGHT + 8}" role="img" '
        'aria-label="From audio files to speech: tokenize, train, consolidate, synthesize, evaluate">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#5b6b7c"/></marker></defs>',
    ]
    for i, (command, given, made, note) in enumerate(STEPS):
        left = i * (WIDTH + GAP)
        middle = left + WIDTH / 2
        parts += [
            f'<rect class="box" x="{left}" y="0" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
            f'<path class="head" d="M{left} {TOP} V8 a8 8 0 0 1 8 -8 H{left + WIDTH - 8} a8 8 0 0 1 8 8 V{TOP} z"/>',
            f'<text class="command" x="{middle}" y="22">{escape(command)}</text>',
            f'<text x="{middle}" y="58">{escape(given)}</text>',
            f'<text class="note" x="{middle}" y="76">to</text>',
            f'<text x="{middle}" y="94">{escape(made)}</text>',
            f'<text class="note" x="{middle}" y="118">{escape(note)}</text>',
        ]
        if i:
            parts.append(f'<path class="arrow" d="M{left - GAP + 2} {HEIGHT / 2} H{left - 3}"/>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("chain.svg").write_text(draw(), encoding="utf-8")
