"""Inputs of a generation: videos, words and numbers, checked before any network is loaded; and the records of results,
by which a video finds its own again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..media import VIDEO_SUFFIXES
from ..runtime.cli import check_number
from ..runtime.errors import InputError
from ..runtime.files import printable, write_bytes

if TYPE_CHECKING:  # the command line is checked before torch is imported
    from ..clip import ClipFeatures, ClipSpec
    from ..diffusion.sampler import BaseSampler
    from ..perception.features import Words


RESULT_SUFFIXES = (".mp4", ".mkv", ".json", ".wav", ".png")  # of the files that one video may get
_LAST = 2  # index of the last of the names that a video may get
_MIB = 1 << 20
_WHOLE = 4 * _MIB  # a video of at most so many bytes is hashed as a whole


def videos_in(path: Path, out: Path | None = None) -> dict[str, Path]:
    """The videos of a file or a folder ⇒ {output name: video}, sorted.

    A video that has a result in ``out`` keeps its name. Every other is named by its stem, with its suffix behind it
    where another video has that stem, and a hash of its file name where that is another's too; names that differ in
    capitals or Unicode form alone count as the same. Results of former runs, by their records, are no input.

    Args:
        path: of a video, or of a folder of them.
        out: folder of the results; None: one in which nothing is.

    Raises:
        InputError: the path doesn't exist or can't be read, or the folder holds no video.
    """
    try:
        if not path.exists():
            raise InputError(f"{printable(path)} doesn't exist; name a video file, or a folder of videos")
        if not path.is_dir():
            return {name: video for video, name in _names([path], out).items()}
        videos = sorted(file for file in path.iterdir()
                        if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise InputError(f"{printable(path)} can't be read ({error.strerror}); name a video file, or a folder of "
                         "videos") from error
    inputs = [video for video in videos if not is_result(video)]
    if not inputs:
        only = f"; its {len(videos)} video files are results of generation, which are no input" if videos else ""
        raise InputError(f"{printable(path)} holds no video{only}; name a video file, or a folder with files such as "
                         ".mp4 or .mov")
    names = _names(inputs, out)
    return {names[video]: video for video in inputs}


def _names(videos: Sequence[Path], out: Path | None) -> dict[Path, str]:
    """{video: output name}, no two of them the same."""
    choices = {video: _choices(video) for video in videos}
    names = {}
    if out is not None:
        for video in videos:
            kept = [name for name in choices[video] if _is_of(read_record(out / f"{name}.json"), video)]
            if kept:
                names[video] = kept[0]

    def free_from(video: Path, level: int) -> int:
        others = (i for i in range(level, _LAST) if out is None or not _is_others(out, choices[video][i], video))
        return next(others, _LAST)

    taken = {_key(name) for name in names.values()}
    levels = {video: free_from(video, 0) for video in videos if video not in names}
    while True:  # of several videos with one name those give way that have not given way before
        users: dict[str, list[Path]] = defaultdict(list)
        for video, level in levels.items():
            users[_key(choices[video][level])].append(video)
        moved = []
        for key, sharing in users.items():
            lowest = min(levels[video] for video in sharing)
            if key in taken or len(sharing) > 1:
                moved += [video for video in sharing if levels[video] == lowest < _LAST]
        if not moved:
            return names | {video: choices[video][level] for video, level in levels.items()}
        for video in moved:
            levels[video] = free_from(video, levels[video] + 1)


def _choices(video: Path) -> list[str]:
    """Names that a video may get, in order. Bytes that are no UTF-8 are percent-encoded."""
    stem, suffix = (re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xdc00:02X}", text)
                    for text in (video.stem, video.suffix[1:]))
    return [stem, f"{stem}-{suffix}", f"{stem}-{suffix}-{hashlib.sha256(os.fsencode(video.name)).hexdigest()[:8]}"]


def _key(name: str) -> str:
    """Equal for names that a file system may take for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of a result's record; {} where the file is something else, None where there is none.

    A new record counts from the moment that it is whole, before its files have their own names.
    """
    try:
        place = new if (new := _hidden(path)).exists() else path
        content = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("asked"), dict) else {}


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write the json beside a result, atomically. Bytes of names that are no UTF-8 are escaped, and come back."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def finished_before(record: Path, settings: dict[str, Any]) -> str | None:
    """Name of the finished file that a record names, or None.

    Raises:
        InputError: the file was made with other settings.
    """
    content = read_record(record) or {}
    written = content.get("written")
    if not isinstance(written, str) or not ((record.parent / written).is_file() or _hidden(record).exists()):
        return None
    former = changed_settings(content["asked"], settings)
    if former:
        raise InputError(f"{record.parent / written} was made with {former}; name another folder with out=, or give "
                         "overwrite=true")
    return written


def changed_settings(before: dict[str, Any], settings: dict[str, Any]) -> str:
    """Settings of a record that differ from the present ones, as "key=former value, …"; "" where none does."""
    keys = [key for key in {**settings, **before} if before.get(key) != settings.get(key)]
    return ", ".join(f"{key}={before.get(key)}" for key in keys)


def _hidden(path: Path) -> Path:
    """Where a new file of a result waits until all of them are there. Its name is short whatever the result's is."""
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.stem)).hexdigest()[:16]}.next{path.suffix}")


class ResultFiles:
    """The files of one result, its record among them, which take the place of former ones together.

    They are written to hidden places beside them. The result counts once its record is in its hidden place. Then the
    files are renamed one by one, and the record last. A kill before that moment leaves the former result as it was;
    what a later kill interrupts is finished by :meth:`settle`.

    Args:
        folder: of the result.
        name: of its files, without a suffix.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.record = self.path(".json")

    def path(self, suffix: str) -> Path:
        """Where a file belongs."""
        return self.folder / f"{self.name}{suffix}"

    def new(self, suffix: str) -> Path:
        """Where to write it."""
        return _hidden(self.path(suffix))

    @property
    def there(self) -> list[str]:
        """Names of the files that exist."""
        return [path.name for suffix in RESULT_SUFFIXES if (path := self.path(suffix)).exists()]

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """A context in which new files are written. What is not committed when it ends is removed."""
        self._discard()
        try:
            yield
        finally:
            if not self.new(".json").exists():
                self._discard()

    def commit(self, content: dict[str, Any]) -> None:
        """Have the new files count, with this record, and rename them."""
        write_record(self.new(".json"), content)
        try:
            self.settle()
        except OSError:
            with suppress(OSError):
                self.settle()
            raise

    def settle(self) -> None:
        """Rename committed files to their places. A former video in another container is removed."""
        new = self.new(".json")
        if not new.exists():
            return
        written = (read_record(self.record) or {}).get("written")
        for suffix in RESULT_SUFFIXES:
            if suffix != new.suffix and self.new(suffix).exists():
                os.replace(self.new(suffix), self.path(suffix))
        for former in (self.path(".mp4"), self.path(".mkv")):
            if former.name != written and self._recorded_before() == former.name:
                former.unlink(missing_ok=True)
        os.replace(new, self.record)

    def _recorded_before(self) -> Any:
        """The name in the record that is being replaced."""
        try:
            return json.loads(self.record.read_text(encoding="utf-8"))["written"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _discard(self) -> None:
        for suffix in RESULT_SUFFIXES:
            with suppress(OSError):  # of a disk that became read-only, whose own error is the one to tell
                self.new(suffix).unlink(missing_ok=True)


def is_result(video: Path) -> bool:
    """Whether a record beside a file names it as a result, finished or not."""
    record = read_record(video.with_suffix(".json")) or {}
    unfinished = record.get("unfinished")
    return video.name in [record.get("written"), *(unfinished if isinstance(unfinished, list) else ())]


def _is_of(record: dict[str, Any] | None, video: Path) -> bool:
    """Whether a record is that of a video's result: of this name, and of the same folder or the same content. A record
    of before knows the name alone."""
    if not record or record["asked"].get("video") != video.name:
        return False
    source = record.get("source")
    if not isinstance(source, dict) or source.get("folder") == _folder_hash(video):
        return True
    try:
        return not is_recut(record, video)
    except OSError:  # told about when it is its turn
        return True


def _is_others(out: Path, name: str, video: Path) -> bool:
    """Whether files of this name belong to something else: another result, or, beside the video, anything without a
    record."""
    record = read_record(out / f"{name}.json")
    if record is not None:
        return not _is_of(record, video)
    try:
        beside = out.samefile(video.parent)
    except OSError:
        return False
    return beside and any((out / f"{name}{suffix}").exists() and f"{name}{suffix}" != video.name
                          for suffix in RESULT_SUFFIXES)


def source_of(video: Path) -> dict[str, Any] | None:
    """What a record keeps of its video: size, a hash of its content and one of its folder. None: there is no such file.

    Up to 4 MiB the whole file is hashed, else its size and its first, middle and last MiB.

    Raises:
        OSError: the file can't be read.
    """
    if not video.is_file():
        return None
    size = video.stat().st_size
    with open(video, "rb") as file:
        if size <= _WHOLE:
            content = hashlib.sha256(file.read())
        else:
            content = hashlib.sha256(str(size).encode())
            for start in (0, (size - _MIB) // 2, size - _MIB):
                file.seek(start)
                content.update(file.read(_MIB))
    return {"bytes": size, "sha256": content.hexdigest(), "folder": _folder_hash(video)}


def _folder_hash(video: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(video.parent))).hexdigest()[:16]


def is_recut(record: dict[str, Any], video: Path) -> bool:
    """Whether a video has another content than when its result was made; False where the record doesn't say."""
    before, now = record.get("source"), source_of(video)
    return isinstance(before, dict) and now is not None and (before.get("bytes"), before.get("sha256")) != (
        now["bytes"], now["sha256"])


@dataclass(frozen=True)
class Sampling:
    """Settings of a model's sampler; None: the model's own. A further one is a field here and in
    vta_sam/settings/, and a key of conf/generate.yaml.

    Args:
        guidance: classifier-free guidance scale.
        steps: evaluations of the denoiser.
        solver: of a sampler that has several.
        overlap: of neighbouring windows of a long video, as a share of a window.
    """

    guidance: float | None = None
    steps: int | None = None
    solver: str | None = None
    overlap: float | None = None

    def __post_init__(self) -> None:
        check_sampling(self.guidance, self.steps)
        if self.overlap is not None:
            check_number("overlap", self.overlap, 0, 0.95)

    def applied(self, sampler: BaseSampler) -> BaseSampler:
        """The sampler with these settings. InputError where it has no such setting."""
        from ..diffusion.sampler import with_settings

        return with_settings(sampler, **asdict(self))


def check_sampling(guidance: Any, steps: Any) -> None:
    """Raise InputError unless guidance is from 0 to 100 and steps from 1 to 1000, or None for the model's own."""
    if guidance is not None:
        check_number("guidance", guidance, 0, 100)
    if steps is not None:
        check_number("steps", steps, 1, 1000, whole=True)


def notes_on(prompts: Sequence[Words], features: ClipFeatures, spec: ClipSpec, finds_objects: bool) -> list[str]:
    """Sentences for the user about words that have no effect, and about a video that the model hardly fits.

    Args:
        prompts: the prompt, and the negative one if there is one.
        features: of the video.
        spec: the model's time base.
        finds_objects: whether the model reads objects.
    """
    words, notes = prompts[0], []
    if words.language:
        notes.append(f"the caption seems to be in {words.language}; name what sounds in English by objects=")
    elif finds_objects and words.caption and not words.objects:
        notes.append("the caption names no object that could be looked for; the sound follows the pictures alone")
    if words.negated:
        away = [list(words.negated)] == [prompt.objects for prompt in prompts[1:]]
        notes.append(f"no {', no '.join(words.negated)}: not looked for" +
                     (", and the sound is guided away from it" if away else ""))
    if words.dropped:
        notes.append(f"the caption has {len(words.objects) + words.dropped} nouns; the first {len(words.objects)} are "
                     f"used and {words.dropped} left out")
    if unknown := [word for word, row in zip(features.objects, features.object_embedding) if not row.any()]:
        notes.append(f"the model's encoder doesn't know {', '.join(unknown)}; they have no effect on the sound")
    if features.duration_s < spec.duration_s / 4:
        notes.append(f"the video lasts {features.duration_s:.2f} s, the model was trained on {spec.duration_s:g} s")
    return notes
