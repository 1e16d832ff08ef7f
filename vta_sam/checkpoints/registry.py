"""Released weights: which files, from where, how large, which licence; and reading a checkpoint without pickle."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Literal

from ..runtime.errors import InputError


def read_state(path: Path, numpy_arrays: bool = False) -> dict[str, Any]:
    """A .pth, .ckpt, .bin or .safetensors file ⇒ the dict in it, on the CPU. Raises InputError where it is missing,
    damaged, or holds anything but tensors, numbers and texts (nothing in it is run). numpy_arrays: arrays of numbers
    may be among them."""
    # here, since the table is listed without torch
    import numpy as np
    import safetensors.torch
    import torch
    from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]

    allowed: list[Any] = [(_reconstruct, "numpy.core.multiarray._reconstruct"), _reconstruct, np.ndarray, np.dtype,
                          np.dtypes.Int64DType, np.dtypes.Float64DType, np.dtypes.Float32DType] if numpy_arrays else []
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals(allowed):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; `python data_prep/weights.py list` lists what there is") from None
    except MemoryError:
        raise
    except Exception as error:  # a foreign file makes torch's reader of tensors raise almost anything
        raise InputError(f"{path} can't be read as a file of weights ({str(error).strip().splitlines()[0]}); "
                         "`python data_prep/weights.py check` compares it with what was released") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a dict of weights")
    return state


def _is_zip(path: Path) -> bool:
    """Files of the format since torch 1.6 can be mapped, which saves a copy in memory; older ones can't."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def digest(path: Path) -> str:
    """The first 12 digits of a file's SHA-256: its name in fingerprints."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


_log = logging.getLogger(__name__)

VARIABLE = "VTA_SAM_WEIGHTS"
DEFAULT_FOLDER = "weights"


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository at one revision."""

    repository: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        """The address on huggingface.co, for a sentence; what is asked may be a mirror (HF_ENDPOINT)."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.path}"


@dataclass(frozen=True)
class ReleasedFile:
    """One file: its path below the folder of weights (with /), its address, its size and checksum where known.

    ``hub`` is set where the file lies on the Hugging Face hub.
    """

    path: str
    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    hub: HubFile | None = None


@dataclass(frozen=True)
class Entry:
    """What a loader asks for by name. Several files share a folder of their own."""

    name: str
    title: str  # as a sentence names it
    purpose: str
    licence: str
    source: str  # the page that its makers publish it on
    files: tuple[ReleasedFile, ...]

    @property
    def place(self) -> str:
        """Path below the folder of weights that a loader is given: the file, or the folder of several files."""
        return self.files[0].path if len(self.files) == 1 else str(PurePosixPath(self.files[0].path).parent)

    @property
    def size_bytes(self) -> int | None:
        """Of all files together; None if the size of any is unknown."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def _hub(name: str, repository: str, revision: str, files: dict[str, tuple[int | None, str | None]]
         ) -> tuple[ReleasedFile, ...]:
    """Files of a Hugging Face repository at one revision, kept in a folder called ``name``; file ⇒ (size, sha256)."""
    lying = {file: HubFile(repository, revision, file) for file in files}
    return tuple(ReleasedFile(f"{name}/{file}", lying[file].url, *known, lying[file]) for file, known in files.items())


_DINO = "https://github.com/IDEA-Research/GroundingDINO"
_SAM = "https://github.com/facebookresearch/segment-anything"
_TANGO = "https://raw.githubusercontent.com/declare-lab/tango"
_VTA_LDM = "https://raw.githubusercontent.com/ariesssxu/vta-ldm"
_PANNS = "https://zenodo.org/records/3987831"
_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"

_ENTRIES = (
    Entry(
        "groundingdino_swint_ogc", "Grounding DINO Swin-T",
        "grounding: which word is where", "Apache-2.0", _DINO,
        # size and sha256: metercai/simpleai_base, models_info.py; sha256 also: datamarkin/mozo, grounding_dino.py
        (ReleasedFile("groundingdino_swint_ogc.pth",
                      f"{_DINO}/releases/download/v0.1.0-alpha/groundingdino_swint_ogc.pth", 693_997_677,
                      "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799"),)),
    Entry(
        "groundingdino_swinb_cogcoor", "Grounding DINO Swin-B",
        "grounding, larger and slower", "Apache-2.0", _DINO,
        # sha256: datamarkin/mozo, grounding_dino.py, and ghostcipher1/GroundedDINO-VL, weights_manager.py; size:
        # cmullins853/AutoAnnotate, download_weights.py
        (ReleasedFile("groundingdino_swinb_cogcoor.pth",
                      f"{_DINO}/releases/download/v0.1.0-alpha2/groundingdino_swinb_cogcoor.pth", 938_057_991,
                      "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7"),)),
    # SAM, sha256: computational-cell-analytics/micro-sam, util.py; sizes and sha256: metercai/simpleai_base,
    # models_info.py. The file names end with the first digits of an md5.
    Entry(
        "sam_vit_b", "SAM ViT-B", "masks inside its boxes, smallest", "Apache-2.0", _SAM,
        (ReleasedFile("sam_vit_b_01ec64.pth", f"{_SAM_FILES}/sam_vit_b_01ec64.pth", 375_042_383,
                      "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),)),
    Entry(
        "sam_vit_l", "SAM ViT-L", "masks inside its boxes, larger", "Apache-2.0", _SAM,
        (ReleasedFile("sam_vit_l_0b3195.pth", f"{_SAM_FILES}/sam_vit_l_0b3195.pth", 1_249_524_607,
                      "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),)),
    Entry(
        "sam_vit_h", "SAM ViT-H", "masks inside its boxes, largest", "Apache-2.0", _SAM,
        (ReleasedFile("sam_vit_h_4b8939.pth", f"{_SAM_FILES}/sam_vit_h_4b8939.pth", 2_564_550_879,
                      "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),)),
    *(Entry(
        name, title, "masks that are carried from frame to frame", "Apache-2.0",
        f"https://huggingface.co/facebook/{name}",
        _hub(name, f"facebook/{name}", "main", dict.fromkeys(("config.json", "model.safetensors"), (None, None))))
      for name, title in (("sam2.1-hiera-tiny", "SAM 2.1 tiny"), ("sam2.1-hiera-large", "SAM 2.1 large"))),
    Entry(
        "bert-base-uncased", "BERT's configuration and tokenizer",
        # its weights are inside Grounding DINO's checkpoint
        "words into tokens for Grounding DINO", "Apache-2.0",
        "https://huggingface.co/google-bert/bert-base-uncased",
        _hub("bert-base-uncased", "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", {
            # VivekPanyam/carton, carton-runner-rust-bert (an earlier revision of the same file)
            "config.json": (570, "7160e1553ad2ca51d8c1cb066be533db31826e12d173824c1bb0cb1a4f187d20"),
            # infinityabundance/vole-document, tools/tokenizers
            "tokenizer.json": (466_062, "ce64fce797c24f68df90b40a3f74f579b336a493db14bd583fd520ea0d8c9a98"),
            # of the text {"do_lower_case": true, "model_max_length": 512}
            "tokenizer_config.json": (48, "a025160ef0431f1a392f6f050c1310f4c5d9fb6f275932dbccba73c4d214bf10"),
            # mantzaris/KeemenaSubwords.jl, at this revision
            "vocab.txt": (231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        })),
    Entry(
        "clip-vit-large-patch14", "CLIP ViT-L/14",
        "vectors of frames and of words", "MIT", "https://huggingface.co/openai/clip-vit-large-patch14",
        # sha256 of all: concil859856/kunoworld-subnet, image/safety-models/SHA256SUMS, at this revision
        _hub("clip-vit-large-patch14", "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", {
            "config.json": (4_519, "8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a"),
            "model.safetensors": (1_710_540_580, "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"),
            "preprocessor_config.json": (316, "910e70b3956ac9879ebc90b22fb3bc8a75b6a0677814500101a4c072bd7857bd"),
            "tokenizer.json": (2_224_003, "a83e0809aa4c3af7208b2df632a7a69668c6d48775b3c3fe4e1b1199d1f8b8f4"),
            "tokenizer_config.json": (905, "deef455e52fa5e8151e339add0582e4235f066009601360999d3a9cda83b1129"),
            "vocab.json": (961_143, "3f0c4f7d2086b61b38487075278ea9ed04edb53a03cbb045b86c27190fa8fb69"),
            "merges.txt": (524_619, "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
            "special_tokens_map.json": (389, "f8c0d6c39aee3f8431078ef6646567b0aba7f2246e9c54b8b99d55c22b707cbf"),
        })),
    *(Entry(
        name, title, "grounding of any word, in place of Grounding DINO", "Apache-2.0",
        f"https://huggingface.co/google/{name}",
        _hub(name, f"google/{name}", "main", dict.fromkeys(
            ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json", "vocab.json",
             "merges.txt", "special_tokens_map.json"), (None, None))))
      for name, title in (("owlv2-base-patch16-ensemble", "OWLv2 B/16"),
                          ("owlv2-large-patch14-ensemble", "OWLv2 L/14"))),
    Entry(
        "siglip2-base-patch16-224", "SigLIP 2 B/16",
        "vectors of frames and of words, in place of CLIP", "Apache-2.0",
        "https://huggingface.co/google/siglip2-base-patch16-224",
        # sizes and sha256: lightcraft's table of files of its search model, at this revision
        _hub("siglip2-base-patch16-224", "google/siglip2-base-patch16-224",
             "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2", {
                 "config.json": (None, None), "preprocessor_config.json": (None, None),
                 "model.safetensors": (
                     1_500_800_904, "612923381c76ec5a9bed335d1c48827e3f2e506ac31b044b63b2031fadee6a0b"),
                 "tokenizer.json": (34_363_039, "cb9140fae3ac5122c972d37adf83e1248471a38147ad76f8215c8872c6fd8322"),
                 "tokenizer_config.json": (None, None), "special_tokens_map.json": (None, None)})),
    Entry(
        "siglip2-so400m-patch14-384", "SigLIP 2 So400m/14", "the same, larger", "Apache-2.0",
        "https://huggingface.co/google/siglip2-so400m-patch14-384",
        _hub("siglip2-so400m-patch14-384", "google/siglip2-so400m-patch14-384", "main", dict.fromkeys(
            ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
             "special_tokens_map.json"), (None, None)))),
    Entry(
        "vggish", "VGGish", "evaluation: vectors of sounds, for FAD", "Apache-2.0",
        "https://github.com/harritaylor/torchvggish",
        (ReleasedFile("vggish-10086976.pth",
                      "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"),)),
    # sha256 of both: as a public loader of these checkpoints gives it; their front ends are in
    # metrics/backbones.py (FRONT_ENDS)
    Entry(
        "panns_16k", "PANNs Cnn14 at 16 kHz", "evaluation: vectors and 527 classes of sounds", "CC-BY-4.0", _PANNS,
        (ReleasedFile("Cnn14_16k_mAP=0.438.pth", f"{_PANNS}/files/Cnn14_16k_mAP=0.438.pth", None,
                      "e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6"),)),
    Entry(
        "panns_32k", "PANNs Cnn14 at 32 kHz", "evaluation: the same for sounds of 32 kHz", "CC-BY-4.0", _PANNS,
        (ReleasedFile("Cnn14_mAP=0.431.pth", f"{_PANNS}/files/Cnn14_mAP=0.431.pth", None,
                      "0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31"),)),
    Entry(
        "panns_events", "PANNs Cnn14, frame-wise", "evaluation: sound events", "CC-BY-4.0", _PANNS,
        # sha256 as in a public install script
        (ReleasedFile("Cnn14_DecisionLevelMax_mAP=0.385.pth", f"{_PANNS}/files/Cnn14_DecisionLevelMax_mAP=0.385.pth",
                      327_428_481, "dd3b4043a87d4ec13df8082c0fcfee3fb5084151808e47e060987a95eabdd142"),)),
    Entry(
        "clap-htsat-unfused", "CLAP", "evaluation: vectors of sounds and captions", "Apache-2.0",
        "https://huggingface.co/laion/clap-htsat-unfused",
        _hub("clap-htsat-unfused", "laion/clap-htsat-unfused", "main", dict.fromkeys(
            ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
             "vocab.json", "merges.txt", "special_tokens_map.json"), (None, None)))),
    Entry(
        "audioldm-s-full", "AudioLDM", "generation: the mel VAE and the vocoder inside it", "CC-BY-NC-4.0",
        "https://zenodo.org/records/7600541",
        # address: as in a public table of AudioLDM's checkpoints (ckpt_urls)
        (ReleasedFile("audioldm-s-full.ckpt", "https://zenodo.org/record/7600541/files/audioldm-s-full.ckpt"),)),
    Entry(
        "tango", "Tango", "generation from captions", "CC-BY-NC-ND-4.0", "https://huggingface.co/declare-lab/tango",
        # revision, sizes and sha256: the commit of that name at the source
        (*_hub("tango", "declare-lab/tango", "bf778eabe31d43cd23fa2cd25443f13e9f3f9137", {
            "main_config.json": (None, None), "vae_config.json": (None, None),
            "pytorch_model_main.bin": (4_829_066_707,
                                       "a79eba873b614adf5a25daa9a958e254bc520100f4ccd44babda5fbb4cc565db"),
            "pytorch_model_vae.bin": (442_713_669, "7d49e1881f38bd4f4fcaaf1c56686c02fb15f75e80dec5f773ae235b2cf1b61b"),
        }), ReleasedFile("tango/configs/diffusion_model_config.json",
                         f"{_TANGO}/ceb8bd5fd7599b6a8f820b2975d9cb85b85e50f6/configs/diffusion_model_config.json"))),
    Entry(
        "vta-ldm", "VTA-LDM", "generation from videos", "CC-BY-4.0",
        "https://huggingface.co/ariesssxu/vta-ldm-clip4clip-v-large",
        (*_hub("vta-ldm", "ariesssxu/vta-ldm-clip4clip-v-large", "9b9147f2a778c95538669cab9a468f83ec62b1a8",
               dict.fromkeys(("summary.jsonl", "pytorch_model_2.bin"), (None, None))),
         ReleasedFile("vta-ldm/configs/diffusion_model_config_large_2048.json",
                      f"{_VTA_LDM}/470e6a4ef518ea8832ead980467ce9093b0acb3d/configs/"
                      "diffusion_model_config_large_2048.json"))),
    Entry(
        "flan-t5-large", "FLAN-T5 large's configuration and tokenizer",
        # its weights are inside Tango's checkpoint
        "words into tokens for Tango", "Apache-2.0", "https://huggingface.co/google/flan-t5-large",
        _hub("flan-t5-large", "google/flan-t5-large", "8e45244f2ca27cf3b5956a0da3c989c8fe89054e", dict.fromkeys(
            ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"), (None, None)))),
    Entry(
        "stable-diffusion-2-1", "Stable Diffusion 2.1's scheduler", "the noise schedule of Tango and VTA-LDM",
        "OpenRAIL++", "https://huggingface.co/stabilityai/stable-diffusion-2-1",
        _hub("stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1", "main", {
            "scheduler/scheduler_config.json": (None, None)})),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
# a name that stands for several entries on the command line
GROUPS: dict[str, tuple[str, ...]] = {
    "extraction": ("groundingdino_swint_ogc", "bert-base-uncased", "clip-vit-large-patch14"),
    "grounded_sam": ("groundingdino_swint_ogc", "bert-base-uncased", "sam_vit_h"),
    "grounded_sam2": ("groundingdino_swint_ogc", "bert-base-uncased", "sam2.1-hiera-large"),
    "owlv2_siglip": ("owlv2-base-patch16-ensemble", "siglip2-base-patch16-224"),
    "evaluation": ("vggish", "panns_16k", "clap-htsat-unfused"),
    "tango_generation": ("tango", "flan-t5-large", "stable-diffusion-2-1"),
    "vta_ldm_generation": ("vta-ldm", "audioldm-s-full", "clip-vit-large-patch14", "stable-diffusion-2-1"),
}


def weights_folder(folder: str | os.PathLike | None = None) -> Path:
    """The folder of released weights: the one given, else $VTA_SAM_WEIGHTS, else ``weights`` where we are."""
    return Path(folder or os.environ.get(VARIABLE) or DEFAULT_FOLDER).expanduser()


def find_entry(name: str) -> Entry:
    """Name ⇒ entry; InputError with the names that there are."""
    if name not in ENTRIES:
        raise InputError(f"no released weights are called {name!r}; there are: {', '.join(ENTRIES)}")
    return ENTRIES[name]


def find_entries(names: list[str]) -> list[Entry]:
    """Names of entries and groups ⇒ entries, each once, in the order asked for; no names ⇒ all of them."""
    for name in names:
        if name not in ENTRIES and name not in GROUPS:
            raise InputError(f"no released weights are called {name!r}; there are: {', '.join(ENTRIES)}; "
                             f"and groups of them: {', '.join(GROUPS)}")
    members = [member for name in names for member in GROUPS.get(name, (name,))] or list(ENTRIES)
    return [ENTRIES[name] for name in dict.fromkeys(members)]


def require(name: str, folder: str | os.PathLike | None = None) -> Path:
    """Where the weights called ``name`` lie: a file, or the folder of several files.

    InputError says which file is missing and how to get it. No file is read. One of another size than was released is
    warned about, not refused: it may be broken off, and it may be weights that a user trained on under the old name.
    """
    entry, root = find_entry(name), weights_folder(folder)
    option = f" --folder {shlex.quote(str(root))}" if folder else ""
    command = f"python data_prep/weights.py fetch {name}{option}"
    others = []
    for file in entry.files:
        path = root / file.path
        if not path.is_file():
            raise InputError(f"{entry.title} is asked for, but {path} is missing; `{command}` gets it "
                             f"({readable(entry.size_bytes)}), or put the file there by hand: {file.url}")
        found = path.stat().st_size
        if file.size_bytes is not None and found != file.size_bytes:
            others.append(f"{path} holds {found} bytes, but {entry.title} as released has {file.size_bytes}")
    if others:
        more = f" (and {len(others) - 1} more files differ)" if len(others) > 1 else ""
        _log.warning("%s%s; unless it is meant to differ, `%s --again` gets it anew", others[0], more, command)
    return root / entry.place


def readable(size_bytes: int | None) -> str:
    """Bytes ⇒ 694 MB, 1.7 GB; None ⇒ size unknown."""
    if size_bytes is None:
        return "size unknown"
    from rich.filesize import decimal

    return decimal(size_bytes, precision=0 if size_bytes < 1e9 else 1)


# bytes done, bytes in all
Progress = Callable[[int, int], None]
State = Literal["present", "missing", "wrong"]
_BLOCK_BYTES = 1 << 20


def state(entry: Entry, folder: Path) -> State:
    """By the names and sizes of its files alone; nothing is read."""
    found = [_state_of(folder / file.path, file) for file in entry.files]
    return "wrong" if "wrong" in found else "missing" if "missing" in found else "present"


def _state_of(path: Path, file: ReleasedFile) -> State:
    if not path.is_file():
        return "wrong" if path.exists() else "missing"
    return "present" if file.size_bytes in (None, path.stat().st_size) else "wrong"


def fault(path: Path, file: ReleasedFile, progress: Progress | None = None) -> str | None:
    """What tells the file at ``path`` from the one released, in words; None if nothing that is known does."""
    if not path.is_file():
        return "it is no file"
    size = path.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        return f"it holds {size} bytes, but {file.size_bytes} were released"
    if file.sha256 is not None and (found := sha256(path, progress)) != file.sha256:
        return f"its sha256 is {found}, but that of the released file is {file.sha256}"
    return None


def sha256(path: Path, progress: Progress | None = None) -> str:
    """The checksum of a file of any size, read in blocks; 64 hexadecimal digits."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()
