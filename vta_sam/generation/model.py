"""Which model folder generates, and what identifies it in a record of what was generated."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import InputError
from ..model_folder import YAML_NAME


def newest_model(runs: Path = Path("runs")) -> Path:
    """The diffusion model under ``runs`` that was written last: ``<run>/model`` or ``<run>/<stage>/model``; a VAE or a
    condition encoder alone is none. Raises InputError when there is none."""
    folders = [path.parent for depth in ("*", "*/*") for path in runs.glob(f"{depth}/model/{YAML_NAME}")]
    found = [folder for folder in folders if (folder / "unet.safetensors").exists()]
    if not found:
        raise InputError(f"there is no trained model under {runs}/; train one with experiments/train.py +exp=vta_sam, "
                         "name a model folder with model=, or say model=vta_ldm for a released one")
    return max(found, key=lambda folder: (folder / YAML_NAME).stat().st_mtime)


def identify(folder: Path) -> dict[str, str]:
    """⇒ {"path": as given, "hash": 12 hex digits that change with the yaml or any weight}."""
    digest = hashlib.sha256()
    try:
        for path in (folder / YAML_NAME, *sorted(folder.glob("*.safetensors"))):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise InputError(f"{error.filename} can't be read ({error.strerror}); copy the model folder again") from error
    return {"path": str(folder), "hash": digest.hexdigest()[:12]}
