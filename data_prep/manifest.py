"""Write the manifest that extraction reads, from VGGSound's csv or from any folder of videos.

    python data_prep/manifest.py vggsound --csv vggsound.csv --videos DIR --out DIR/manifest.csv --val 500
    python data_prep/manifest.py folder --videos DIR --out DIR/manifest.csv --captions captions.csv
    python data_prep/manifest.py folder --videos DIR --out DIR/manifest.csv --recursive --caption-from folder --val 100

Skipped clips and the reasons are listed beside it in manifest.left_out.csv. No video is opened.
"""

import argparse
from pathlib import Path

from vta_sam.runtime.cli import run
from vta_sam.runtime.errors import InputError


def parser() -> argparse.ArgumentParser:
    from vta_sam.dataset.manifests.csv_tables import CUTS
    from vta_sam.dataset.manifests.folder import CAPTION_SOURCES

    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="vggsound | folder")
    vggsound = verbs.add_parser("vggsound", help="VGGSound's csv and a folder of its clips")
    folder = verbs.add_parser("folder", help="any folder of videos: AudioCaps, AVSync15, one's own")
    vggsound.add_argument("--csv", type=Path, required=True, help="as published: YouTube id, start, label, split")
    for verb in (vggsound, folder):
        verb.add_argument("--videos", type=Path, required=True, metavar="DIR", help="the folder of the videos")
        verb.add_argument("--out", type=Path, required=True, metavar="CSV", help="the manifest to write")
        verb.add_argument("--overwrite", action="store_true", help="also where there is one already")
        verb.add_argument("--val", type=int, default=0, metavar="N", help="move N clips of train to val")
        verb.add_argument("--cut", choices=CUTS, default="auto", help=(
            "are files the clips themselves (yes), or the whole videos that they were taken from (no)? auto: a name "
            "with the start (ID_000030.mp4, ID_30.mp4) is the clip, a bare ID.mp4 the whole video"))
    folder.add_argument("--test", type=int, default=0, metavar="N", help="move N clips of train to test")
    folder.add_argument("--recursive", action="store_true", help="look into folders inside it")
    folder.add_argument("--split", metavar="NAME", help=(
        "of all clips; default: what the captions say, or a folder named train, val or test, else train"))
    source = folder.add_mutually_exclusive_group()
    source.add_argument("--captions", type=Path, metavar="TABLE", help=(
        ".csv, .tsv or .json with the columns caption and file (or path, name, id, …), or AudioCaps' csv; "
        "objects (a;b), label and split are read too"))
    source.add_argument("--caption-from", choices=CAPTION_SOURCES, help=(
        "the folder's name is label and caption (dog_barking: dog barking), or the file's name is the caption"))
    folder.add_argument("--same-content", action="store_true", help="read files of equal size, and leave out copies")
    return made


@run
def main() -> None:
    arguments = parser().parse_args()
    from rich import print as show
    from rich.progress import Progress

    from vta_sam.dataset.manifests.folder import folder_draft
    from vta_sam.dataset.manifests.vggsound import vggsound_draft

    given = vars(arguments)
    verb, out, overwrite = given.pop("verb"), given.pop("out"), given.pop("overwrite")
    if out.exists() and not overwrite:
        raise InputError(f"{out} is there already; choose another --out, or give --overwrite")
    for name in ("val", "test"):
        if given.get(name, 0) < 0:
            raise InputError(f"--{name} {given[name]}: expected how many clips to move")
    if verb == "vggsound":
        draft = vggsound_draft(**given)
    else:
        with Progress(disable=not given["same_content"]) as bar:
            task = bar.add_task("files of equal size", total=None)
            draft = folder_draft(**given, progress=lambda done, files: bar.update(task, completed=done, total=files))
    left_out = draft.write(out)
    show(draft.summary(out, left_out))


if __name__ == "__main__":
    main()
