"""A model folder is data: it comes back as it was written, and what is foreign or damaged in it is refused by name."""

import os

import pytest
import torch
import yaml
from models import make_model_folder, make_recipe
from safetensors.torch import load_file, save_file

from vta_sam.checkpoints.model_folder import load_weights, read_recipe, refuse_foreign, save_model, uninitialised
from vta_sam.generation.build import build_part
from vta_sam.runtime.errors import InputError


@pytest.fixture()
def folder(tmp_path):
    return make_model_folder(tmp_path)


def edit(folder, change):
    path = folder / "model.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def test_round_trip(folder, tmp_path):
    recipe = read_recipe(folder)
    assert recipe == make_recipe()
    parts = {}
    for part in ("codec", "denoiser", "conditioner"):
        parts[part] = load_weights(build_part(recipe, part, folder), folder, part)
        stored = load_file(folder / f"{part}.safetensors")
        state = parts[part].state_dict()
        assert set(stored) == set(state) and all(torch.equal(stored[k], state[k]) for k in stored)
    save_model(tmp_path / "again", recipe, parts)
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_weights_that_are_about_to_be_loaded_are_not_drawn(folder):
    recipe, drawn = read_recipe(folder), torch.get_rng_state()
    with uninitialised():
        network = build_part(recipe, "denoiser", folder)
    assert torch.equal(torch.get_rng_state(), drawn), "no number was drawn"
    torch.nn.init.ones_(weights := torch.zeros(3))
    assert weights.sum() == 3, "afterwards layers draw again"
    copied = load_weights(build_part(recipe, "denoiser", folder), folder, "denoiser").state_dict()
    assigned = load_weights(network, folder, "denoiser", torch.device("cpu")).state_dict()
    assert all(torch.equal(assigned[key], copied[key]) and assigned[key].dtype == copied[key].dtype for key in copied)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in assigned.values()), "kernels get what they get elsewhere"
    path = folder / "denoiser.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(assigned[key], copied[key]) for key in copied), "the file may change"


def test_half_precision_on_disk_is_not_kept_in_memory(folder):
    recipe, path = read_recipe(folder), folder / "codec.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(path).items()}, path)
    codec = load_weights(build_part(recipe, "codec", folder), folder, "codec", torch.device("cpu"))
    assert {parameter.dtype for parameter in codec.parameters()} == {torch.float32}


def test_a_folder_that_is_not_whole_has_no_yaml(tmp_path):
    class Broken(torch.nn.Module):
        def state_dict(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "model", make_recipe(), {"codec": Broken()})
    assert not list((tmp_path / "model").iterdir())
    with pytest.raises(InputError, match="is no model folder: it has no model.yaml"):
        read_recipe(tmp_path / "model")


@pytest.mark.parametrize("target", [
    "os.system", "builtins.exec", "torch.nn.Linear", "vta_sam.mel.normalise", "vta_sam.vae.codec.MelCodec ", "",
    None, ["vta_sam.vae.codec.MelCodec"], {"a": 1},
])
@pytest.mark.parametrize("place", ["codec", "network", "vocoder", "about"])
def test_foreign_classes_are_refused(folder, target, place):
    def change(content):
        where = {"codec": content["codec"], "network": content["codec"]["network"], "vocoder": content["vocoder"],
                 "about": content["about"]}[place]
        where["_target_"] = target

    edit(folder, change)
    with pytest.raises(InputError, match=rf"model\.yaml.*{place}.* names the class .*not loaded"):
        read_recipe(folder)


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_", "_anything"])
def test_what_steers_hydra_is_refused(folder, key):
    edit(folder, lambda content: content["codec"]["network"].update({key: True}))
    with pytest.raises(InputError, match=f"has the key '{key}', which a model folder may not use"):
        read_recipe(folder)


@pytest.mark.parametrize("value", [
    "${oc.env:HOME}", "${oc.create:{_target_: subprocess.getoutput, cmd: 'id'}}", "${codec.network}", "x ${a} y",
])
def test_nothing_is_filled_in(folder, value):
    """An interpolation could make a recipe after the names in it were looked at."""
    edit(folder, lambda content: content["denoiser"]["config"].update({"down_block_types": ["DownBlock2D", value]}))
    with pytest.raises(InputError, match=r"denoiser\.config\.down_block_types\[1\] is .*not loaded"):
        read_recipe(folder)
    with pytest.raises(InputError, match="not loaded"):
        make_recipe(sampler={"_target_": "diffusion_sampler", "solver": value}).build("sampler")


@pytest.mark.parametrize("text", [
    "!!python/object/apply:os.system ['touch {out}']", "format_version: 1\nclip: !!python/object:object {{}}",
    "- !!python/name:os.system", "a: [", "\t", "\x00",
])
def test_yaml_that_would_run_or_cannot_be_read_is_refused(folder, tmp_path, text):
    (folder / "model.yaml").write_text(text.format(out=tmp_path / "ran"))
    with pytest.raises(InputError, match=r"model\.yaml (can't be read|is not a model)"):
        read_recipe(folder)
    assert not os.path.exists(tmp_path / "ran")


@pytest.mark.parametrize("change, words", [
    (lambda c: c.update(format_version=3), "not a model.yaml of format version 1 or 2"),
    (lambda c: c.pop("format_version"), "not a model.yaml of format version 1 or 2"),
    (lambda c: c.update(surprise=1), r"unknown keys \['surprise'\]"),
    (lambda c: c.pop("clip"), "lacks clip"),
    (lambda c: c["clip"].update(surprise=1), r"model\.yaml: its clip can't be used"),
    (lambda c: c["clip"].pop("fps"), r"model\.yaml: its clip can't be used"),
    (lambda c: c["clip"].update(fps="fast"), r"model\.yaml: its clip can't be used"),
    (lambda c: c["clip"].update(duration_s=1.3), r"model\.yaml: its clip can't be used: .*not a multiple"),
])
def test_a_yaml_of_another_form_is_refused(folder, change, words):
    edit(folder, change)
    with pytest.raises(InputError, match=words):
        read_recipe(folder)


def test_a_part_that_is_not_there_or_cannot_be_built(folder):
    with pytest.raises(InputError, match="has no condition_encoder"):
        read_recipe(folder).build("condition_encoder")
    edit(folder, lambda content: content["denoiser"].update(surprise=1))
    with pytest.raises(InputError, match=r"model\.yaml describes a denoiser that can't be built: .*surprise"):
        build_part(read_recipe(folder), "denoiser", folder)


def test_missing_weights(folder):
    (folder / "denoiser.safetensors").unlink()
    with pytest.raises(InputError, match=r"denoiser\.safetensors is missing"):
        load_weights(build_part(read_recipe(folder), "denoiser", folder), folder, "denoiser")


@pytest.mark.parametrize("content", [b"", b"not tensors at all", b"\x80\x04\x95", None])
def test_damaged_weights(folder, content):
    path = folder / "codec.safetensors"
    path.write_bytes(path.read_bytes()[:-64] if content is None else content)
    with pytest.raises(InputError, match=r"codec\.safetensors can't be read .*copy the model folder again"):
        load_weights(build_part(read_recipe(folder), "codec", folder), folder, "codec")


@pytest.mark.parametrize("change", ["other shape", "one more", "one less"])
def test_weights_of_another_model(folder, change):
    path = folder / "conditioner.safetensors"
    state = load_file(path)
    name = "to_token.bias"
    if change == "other shape":
        state[name] = torch.zeros(3)
    elif change == "one less":
        del state[name]
    else:
        name = "a.stranger"
        state[name] = torch.zeros(3)
    save_file(state, path)
    module = build_part(read_recipe(folder), "conditioner", folder)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    words = rf"conditioner\.safetensors doesn't fit .*1 keys differ, the first is '{name}'"
    with pytest.raises(InputError, match=words):
        load_weights(module, folder, "conditioner")
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())  # nothing is half loaded


def test_plain_values_pass():
    refuse_foreign({"a": [1, 2.5, None, True, "text", {"b": ("$", "{}")}]}, "here")
