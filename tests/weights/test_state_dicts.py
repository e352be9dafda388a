"""Several state dicts in one file: which is the autoencoder's, which its EMA, and what is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.autoencoder.topologies import make_topology
from vaeconv.errors import AmbiguousInputError, EmaError, NotACheckpointError, UsageError
from vaeconv.models.compvis import CompVisAutoencoder
from vaeconv.weights.convert import convert
from vaeconv.weights.inspect import inspect
from vaeconv.weights.options import ConvertOptions, InspectOptions, PruneOptions
from vaeconv.weights.prune import prune

State = dict[str, Tensor]
RAW, EMA, THIRD = 1.0, 2.0, 3.0
TOPOLOGY = make_topology((1,), 4, ch=32, layers=1)


def model_of(value: float) -> nn.Module:
    """An autoencoder whose parameters all have one value, which tells it from others."""
    with torch.device("meta"):
        model = CompVisAutoencoder(TOPOLOGY)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(value)
    return model


def state(value: float, prefix: str = "", only: str = "") -> State:
    return {
        prefix + name: tensor.clone()
        for name, tensor in model_of(value).state_dict().items()
        if name.startswith(only)
    }


def lit(value: float, prefix: str = "", only: str = "") -> State:
    return {prefix + name.replace(".", ""): t for name, t in state(value, only=only).items()}


def averaged(value: float) -> State:
    """What torch's own AveragedModel saves."""
    found: State = AveragedModel(model_of(value)).state_dict()
    return found


OTHER = {"blocks.0.weight": torch.ones(4, 4), "blocks.0.bias": torch.ones(4)}
OTHER_EMA = {name: t * 2 for name, t in OTHER.items()}
OPTIMIZER = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(3)}}, "param_groups": []}
LIGHTNING = {
    "state_dict": state(EMA), "current_model_state": state(RAW),
    "averaging_state": {"n_averaged": torch.tensor(7)}, "optimizer_states": [OPTIMIZER],
}  # fmt: skip

# Every one holds a raw autoencoder and its average.
FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "dit": lambda: {"model": state(RAW), "ema": state(EMA), "opt": OPTIMIZER},
    "ema first": lambda: {"ema": state(EMA), "model": state(RAW), "opt": OPTIMIZER},
    "callback": lambda: {"state_dict": state(RAW), "ema_state_dict": state(EMA)},
    "ema_weights": lambda: {"state_dict": state(RAW), "callbacks": {
        "EMACallback{'decay': 0.999}": {"ema_weights": state(EMA)}, "ModelCheckpoint": {"k": 1}}},
    "timm": lambda: {"state_dict": state(RAW), "state_dict_ema": state(EMA), "arch": "x"},
    "k-diffusion": lambda: {"model": state(RAW), "model_ema": state(EMA), "opt": OPTIMIZER},
    "basicsr": lambda: {"params": state(RAW), "params_ema": state(EMA)},
    "averaged model": lambda: {"model": state(RAW), "ema": averaged(EMA)},
    "swa": lambda: {"model": state(RAW), "swa_model": averaged(EMA)},
    "deepspeed": lambda: {"module": state(RAW), "ema": {"module": state(EMA)}},
    "both in modules": lambda: {"model": {"module": state(RAW)}, "ema": {"module": state(EMA)}},
    "lucidrains": lambda: {"step": 5, "model": state(RAW), "opt": OPTIMIZER, "ema": {
        "initted": torch.tensor(True), "step": torch.tensor(5),
        **state(RAW, "online_model."), **state(EMA, "ema_model.")}},
    "parallel": lambda: {"model": state(RAW, "module."), "ema": state(EMA)},
    "parallel ema": lambda: {"model": state(RAW), "ema": state(EMA, "module.")},
    "litema dict": lambda: {"model": state(RAW), "ema": {
        "decay": torch.tensor(0.9999), "num_updates": torch.tensor(5000), **lit(EMA)}},
    "litema": lambda: {"state_dict": {**state(RAW), **lit(EMA, "model_ema.")}},
    "first stage": lambda: {"state_dict": {**state(RAW, "first_stage_model."), **OTHER},
                            "ema_state_dict": state(EMA, "first_stage_model.")},
    "trainer": lambda: {"trainer": {"step": 3, "nets": {"model": state(RAW), "ema": state(EMA)}}},
    "inside": lambda: {**state(RAW), "ema": state(EMA)},
    "submodules": lambda: state(RAW, "model.") | state(EMA, "ema_model."),
    "a list": lambda: {"models": [state(RAW)], "ema_models": [state(EMA)]},
    "transformer": lambda: {"model": OTHER, "vae": state(RAW), "vae_ema": state(EMA)},
    "gan": lambda: {"generator": state(RAW), "generator_ema": state(EMA),
                    "discriminator": {"main.0.weight": torch.ones(3)}},
    "same object": lambda: {"model": (one := state(RAW)), "copy": one, "ema": state(EMA)},
}  # fmt: skip
FLAT = ["submodules", "litema", "first stage"]


def written(source: Path, output: Path, **options: Any) -> tuple[set[float], tuple[str, ...]]:
    """Convert, and tell which values came out, and what was said."""
    result = convert(source, output, ConvertOptions(overwrite=True, **options))
    found = load_file(output)
    assert len(found) == len(state(RAW))
    return {value for t in found.values() for value in t.unique().tolist()}, [
        str(note) for note in result.plan.notes
    ]


@pytest.mark.parametrize("form", FORMS)
def test_raw_is_read_and_said_and_ema_takes_the_average(form: str, tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    torch.save(FORMS[form](), source)
    values, notes = written(source, output)
    assert values == {RAW}
    assert any("which --ema uses" in note for note in notes)
    values, notes = written(source, output, ema=True)
    assert values == {EMA}
    assert not any("raw weights are used" in note or "equal to" in note for note in notes)

    result = prune(source, output, PruneOptions(dtype="keep", overwrite=True, vae_only=True))
    raw_rows = {row.name for row in result.plan.rows}
    assert {v for t in load_file(output).values() for v in t.unique().tolist()} == {RAW}
    result = prune(
        source, output, PruneOptions(dtype="keep", ema=True, overwrite=True, vae_only=True)
    )
    assert {v for t in load_file(output).values() for v in t.unique().tolist()} == {EMA}
    assert {row.name for row in result.plan.rows} == raw_rows == set(state(RAW))


@pytest.mark.parametrize("form", [form for form in FORMS if "litema" not in form])
def test_what_inspect_names_can_be_pasted(form: str, tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    torch.save(FORMS[form](), source)
    report = inspect(source)
    assert report.problem is None
    assert report.ema["autoencoder_tensors"] == report.ema["of"] == len(state(RAW))
    for name in (report.ema["prefix"], report.ema["prefix"].rstrip(".")):
        assert written(source, output, source_prefix=name)[0] == {EMA}
        assert written(source, output, source_prefix=name, ema=True)[0] == {EMA}
    wrapper = "".join(f"{key}." for key in report.wrapper)
    for prefix in (report.prefix, wrapper + (report.prefix or "") if form != "transformer" else ""):
        if prefix:
            assert written(source, output, source_prefix=prefix)[0] == {RAW}


@pytest.mark.parametrize("form", FORMS)
def test_prune_accounts_for_every_tensor(form: str, tmp_path: Path) -> None:
    document = FORMS[form]()
    torch.save(document, tmp_path / "m.pt")

    def count(value: Any) -> int:
        if isinstance(value, Tensor):
            return 1
        items = value.values() if isinstance(value, Mapping) else value
        return sum(map(count, items)) if isinstance(value, (Mapping, list)) else 0

    for ema in (False, True):
        result = prune(tmp_path / "m.pt", tmp_path / "o.pt", PruneOptions(ema=ema), dry_run=True)
        kept = {row.source.name for row in result.plan.rows}
        assert not kept & set(result.plan.dropped)
        stored = sum(g.tensors for g in result.groups if g.name != "not a tensor")
        if form != "same object":
            assert stored == count(document)


@pytest.mark.parametrize("name", FLAT)
def test_flat_names_of_safetensors_go_the_same_way(name: str, tmp_path: Path) -> None:
    document = FORMS[name]()
    flat: State = {}
    for key, value in document.items():
        flat |= {key: value} if isinstance(value, Tensor) else {
            (f"{key}." if key != "state_dict" else "") + n: t for n, t in value.items()
        }  # fmt: skip
    save_file(flat, tmp_path / "m.safetensors")
    for ema, value in ((False, RAW), (True, EMA)):
        got, _ = written(tmp_path / "m.safetensors", tmp_path / "o.safetensors", ema=ema)
        assert got == {value}


@pytest.mark.parametrize("make", [state, lit])
def test_an_average_of_the_decoder_alone_leaves_the_rest_raw(
    make: Callable[..., State], tmp_path: Path
) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    torch.save({"model": state(RAW), "ema": make(EMA, only="decoder.")}, source)
    values, notes = written(source, output, ema=True)
    assert values == {RAW, EMA}
    decoder = {n: t for n, t in load_file(output).items() if n.startswith("decoder.")}
    assert all((t == EMA).all() for t in decoder.values())
    assert (
        f"EMA weights for {len(decoder)} tensors, raw weights for {len(state(RAW)) - len(decoder)}"
        in notes[0]
    )


def test_lightning_averages_state_dict_itself(tmp_path: Path) -> None:
    source, output = tmp_path / "m.ckpt", tmp_path / "o.safetensors"
    torch.save(LIGHTNING, source)
    values, notes = written(source, output)
    assert values == {EMA}  # what load_from_checkpoint loads
    assert any("state_dict holds EMA weights" in note for note in notes)
    assert written(source, output, ema=True)[0] == {EMA}
    assert written(source, output, source_prefix="current_model_state")[0] == {RAW}
    assert written(source, output, source_prefix="state_dict")[0] == {EMA}
    report = inspect(source)
    assert report.ema["is_whole"]
    assert [s.name for s in report.siblings][:1] == ["current_model_state."]
    result = prune(
        source, output, PruneOptions(overwrite=True, source_prefix="current_model_state")
    )
    assert {row.name for row in result.plan.rows} == set(state(RAW))


def test_two_averages_are_a_choice_and_copies_are_none(tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    torch.save({"model": state(RAW), "ema": {0.99: state(EMA), 0.9999: state(THIRD)}}, source)
    assert written(source, output)[0] == {RAW}
    with pytest.raises(AmbiguousInputError, match=r"2 different EMAs.*'ema\.0\.99\.'"):
        written(source, output, ema=True)
    assert written(source, output, source_prefix="ema.0.9999")[0] == {THIRD}
    torch.save({"model": state(RAW), "ema": {0.99: state(EMA), 0.9999: state(EMA)}}, source)
    assert written(source, output, ema=True)[0] == {EMA}


def test_names_that_tell_nothing_are_a_choice_and_copies_are_none(tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    torch.save({"a": state(RAW), "b": state(EMA)}, source)
    with pytest.raises(AmbiguousInputError, match=r"'a\.', 'b\.'"):
        written(source, output)
    assert written(source, output, source_prefix="b")[0] == {EMA}
    torch.save({"a": state(RAW), "b": state(RAW)}, source)
    values, notes = written(source, output)
    assert values == {RAW}
    assert "2 times; 'a.' is used" in notes[0]


def test_a_state_dict_that_is_an_average_alone_is_used_and_said(tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    for document in (
        {"ema": state(EMA)},
        {"ema_model": averaged(EMA)},
        {"x": 1, "ema": {"module": state(EMA)}},
    ):
        torch.save(document, source)
        values, notes = written(source, output)
        assert values == {EMA}
        assert any("EMA weights" in note for note in notes)
        assert written(source, output, ema=True)[0] == {EMA}


def test_the_wrapper_decides_between_autoencoders_and_it_is_said(tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    torch.save({"state_dict": state(RAW), "best": state(THIRD)}, source)
    values, notes = written(source, output)
    assert values == {RAW}
    assert any("--source-prefix can select: best." in note for note in notes)
    assert written(source, output, source_prefix="best")[0] == {THIRD}
    with pytest.raises(UsageError, match=r"found: '', 'best\.'"):
        written(source, output, source_prefix="worst")


def test_a_transformers_average_is_folded_over_it_and_the_autoencoder_stays(tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    torch.save({"model": OTHER, "vae": state(RAW), "ema": OTHER_EMA, "opt": OPTIMIZER}, source)
    with pytest.raises(EmaError):
        written(source, output, ema=True)
    result = prune(source, output, PruneOptions(dtype="keep"))
    found = load_file(output)
    assert set(found) == {*OTHER, *state(RAW, "vae.")}
    assert found["blocks.0.weight"].unique().tolist() == [1]
    assert {r.value for r in result.plan.dropped.values()} == {"ema"}
    result = prune(source, output, PruneOptions(dtype="keep", ema=True, overwrite=True))
    found = load_file(output)
    assert found["blocks.0.weight"].unique().tolist() == [2]
    assert all((found[name] == RAW).all() for name in state(RAW, "vae."))


def test_other_state_dicts_are_dropped_by_a_rule_of_their_own(tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    torch.save({"state_dict": state(RAW), "teacher": OTHER}, source)
    result = prune(source, output, PruneOptions())
    assert set(load_file(output)) == set(state(RAW))
    assert {r.value for r in result.plan.dropped.values()} == {"other state dict"}


@pytest.mark.parametrize("place", ["ema", "model_ema", "ema_state"])
def test_an_average_without_names_is_named_as_unusable(place: str, tmp_path: Path) -> None:
    source, output = tmp_path / "m.pt", tmp_path / "o.safetensors"
    kept = EMAModel(model_of(EMA).parameters()).state_dict()  # as torch_ema: shadow_params
    torch.save({"model": state(RAW), place: kept}, source)
    assert written(source, output)[0] == {RAW}
    with pytest.raises(
        EmaError, match=rf"{place}\.shadow_params is a list of .*without names.*copy_to"
    ):
        written(source, output, ema=True)
    assert any("without names" in note for note in map(str, inspect(source).notes))
    torch.save(kept, source)
    with pytest.raises(NotACheckpointError, match="without names"):
        inspect(source)


def test_one_state_dict_under_many_keys_is_bounded(tmp_path: Path) -> None:
    one = state(RAW)
    deep: Any = one
    for _ in range(12):
        deep = {"x": deep, "y": deep, "z": deep}
    torch.save(
        {"model": one, **{f"k{i}": one for i in range(500)}, "deep": deep}, tmp_path / "m.pt"
    )
    report = inspect(tmp_path / "m.pt", InspectOptions(check=False))
    assert report.problem is None
    assert len(report.keys) <= 65 * len(one)


def test_names_of_averages() -> None:
    from vaeconv.common.ema_names import names_ema

    for name in ("ema", "model_ema.", "EMACallback", "netEMA.x", "a.swa_model", "averaging_state",
                 "shadow_params", "callbacks.EMA.ema_weights", "ema_0.9999", "EMA"):  # fmt: skip
        assert names_ema(name), name
    for name in ("model", "schema.x", "cinema", "online_model", "ema.online_model.", "remap",
                 "current_model_state", "semantic", "state_dict", "email"):  # fmt: skip
        assert not names_ema(name), name
