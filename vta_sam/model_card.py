"""The model card: what a person should know of a model before using it, as README.md beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .parts import TARGET, class_name

FIGURE_COLUMNS = ("figure", "score", "control", "ceiling")
CARD_NAME = "README.md"
_UNSAID = "No licence was stated. Say one here before you publish the weights."


def model_card(content: dict[str, Any], figures: Sequence[Sequence[str]] = (), measured: str = "") -> str:
    """What model.yaml says (as a dict) ⇒ Markdown with licence, data, training and figures.

    figures: rows of the table of figures, in :data:`FIGURE_COLUMNS`; measured: on what.
    """
    about, clip = content.get("about") or {}, content["clip"]
    kind = class_name((content.get("conditioner") or {}).get(TARGET, "")).removesuffix("Conditioner")
    name = about.get("source") or about.get("experiment") or (kind and f"{kind}, trained with VTA-SAM's framework")
    name = name or "A part of a model of VTA-SAM's framework"
    parts = [part for part in ("codec", "condition_encoder", "unet", "conditioner", "vocoder") if content.get(part)]
    lines = ["---", "library_name: vta-sam", "tags: [video-to-audio]", "---", "", f"# {name}", "",
             f"Clips of {clip['duration_s']:g} s, {clip['fps']:g} pictures a second, sound of 16 kHz. "
             f"Parts: {', '.join(parts) or 'one stage before the diffusion'}.", "", "## Licence", "",
             *_licences(about), "", "## Data and training", ""]
    told = {key: value for key, value in about.items() if key not in ("licence", "starts")}
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in told.items()] or ["Nothing was recorded."]
    lines += ["", "## Figures", ""]
    if figures:
        rows = (FIGURE_COLUMNS, ["---"] * len(FIGURE_COLUMNS), *figures)
        padded = ([*row, *[""] * (len(FIGURE_COLUMNS) - len(row))] for row in rows)
        lines += [f"{measured}.", "", *(f"| {' | '.join(cell.strip() for cell in row)} |" for row in padded)]
    else:
        lines += ["None were measured with these weights."]
    if content.get("unet"):
        lines += ["", "## Use", "", "```python", "import vta_sam", "",
                  'pipeline = vta_sam.load("this/folder").to("cpu")',
                  'sound = pipeline.generate(video="in.mp4", caption="a dog barks")  # .waveform, 16 kHz', "```"]
    return "\n".join(lines) + "\n"


def _licences(about: dict[str, Any]) -> list[str]:
    starts = about.get("starts") or {}
    own = [about["licence"]] if about.get("licence") else [] if starts else [_UNSAID]
    inherited = [f"- {part}, that training began with: {licence}" for part, licence in starts.items()]
    return [*own, *inherited] + (["", _UNSAID] if starts and not own else [])
