"""Which sound is measured against which: clips by explicit id, and everything that finds no partner, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from .files import SoundFile, find_sounds

_SHOWN = 5


@dataclass
class Plan:
    """Clips in order of their id. references: the true sound of each; sounds: {system: {id: samples}}; videos: {id: the
    pictures}, as far as known. unmatched: {system: files whose id no reference has}; absent: {system: ids without a
    sound}."""

    clips: list[str]
    references: dict[str, SoundFile]
    sounds: dict[str, dict[str, list[SoundFile]]]
    videos: dict[str, Path]
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    absent: dict[str, list[str]] = field(default_factory=dict)


def make_plan(systems: Mapping[str, Path], reference: Path, videos: Path | None = None,
              ids: Collection[str] | None = None, skip_bad: bool = False) -> Plan:
    """Pair the files of each system's folder with the reference's.

    videos: folder of the pictures; None ⇒ the reference's own files where they have pictures. ids: the clips to be
    evaluated; None ⇒ all of the reference. With skip_bad a sound without a reference, or a clip without a sound, is
    listed; without it, InputError names them. InputError too where nothing pairs at all.
    """
    references = {clip_id: samples[0] for clip_id, samples in _single(find_sounds(reference), reference).items()}
    if ids is not None:
        unknown = sorted(set(ids) - set(references))
        if unknown:
            raise InputError(f"reference={reference} has no clip {_some(unknown)}, which the list of ids names")
        references = {clip_id: references[clip_id] for clip_id in sorted(set(ids))}
    pictures = {clip_id: file.video for clip_id, file in references.items() if file.video}
    if videos is not None:
        found = _single(find_sounds(videos), videos)
        pictures = {clip_id: found[clip_id][0].video or found[clip_id][0].path for clip_id in references
                    if clip_id in found}
    plan = Plan(list(references), references, {}, {k: v for k, v in pictures.items() if v})
    for name, folder in systems.items():
        found = find_sounds(folder)
        plan.sounds[name] = {clip_id: found[clip_id] for clip_id in references if clip_id in found}
        if not plan.sounds[name]:
            raise InputError(f"{name}: no file in {folder} belongs to a clip of {reference}; there the ids are "
                             f"{_some(list(references))}, here {_some(list(found))}. An ids.csv (file,id) in the "
                             "folder can name them")
        if ids is None:
            plan.unmatched[name] = [file.path.name for clip_id in sorted(set(found) - set(references))
                                    for file in found[clip_id]]
        plan.absent[name] = [clip_id for clip_id in references if clip_id not in found]
        if not skip_bad:
            _refuse(name, folder, reference, plan)
    return plan


def _refuse(name: str, folder: Path, reference: Path, plan: Plan) -> None:
    way_out = "mend the names, list ids.csv (file,id), or evaluate the rest with skip_bad=true"
    if plan.unmatched.get(name):
        raise InputError(f"{name}: {len(plan.unmatched[name])} files of {folder} belong to no clip of {reference}: "
                         f"{_some(plan.unmatched[name])}; {way_out}")
    if plan.absent[name]:
        raise InputError(f"{name}: {folder} has no sound for {len(plan.absent[name])} clips: "
                         f"{_some(plan.absent[name])}; {way_out}")


def _single(sounds: dict[str, list[SoundFile]], folder: Path) -> dict[str, list[SoundFile]]:
    for clip_id, samples in sounds.items():
        if len(samples) > 1:
            raise InputError(f"{folder} has {len(samples)} files for clip {clip_id!r} ({samples[0].path.name}, "
                             f"{samples[1].path.name}); there is one true sound")
    return sounds


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
