"""A fine-tuning: what it trains and what it leaves alone, and that the other commands take it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.evaluation.runs import measure, spec, write_nets, write_tiles
from tests.support.closeness import assert_near, near_metric
from tests.support.samples import SHAPED, save_ckpt, weights_of
from tests.training.runs import (
    BASE,
    IMAGES,
    TINY,
    assert_same_runs,
    bits,
    differences,
    load,
    metrics_of,
    state_of,
    train,
)
from vaeconv.errors import (
    CheckFailedError,
    InputError,
    MissingDependencyError,
    OutputError,
    OutputExistsError,
    UsageError,
)
from vaeconv.evaluation.protocol import preset
from vaeconv.models.compvis import CompVisAutoencoder
from vaeconv.parity.verify import verify
from vaeconv.training import loss as losses
from vaeconv.training.base import load_base
from vaeconv.training.finetune import finetune
from vaeconv.training.networks import TrainedPart
from vaeconv.training.options import RECIPES, FinetuneOptions
from vaeconv.weights.convert import convert
from vaeconv.weights.options import ConvertOptions, PruneOptions
from vaeconv.weights.prune import prune


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps that were not stopped, with a validation every two."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out, val=str(IMAGES), val_every=2)
    return out


# --- what is trained ---


def test_the_decoder_moves_and_the_encoder_does_not(run: Path) -> None:
    before, after = load_raw(BASE), state_of(run)
    weights = {name: one for name, one in after.items() if not name.startswith("model_ema.")}
    assert weights.keys() == before.keys()
    for name, one in weights.items():
        if name.startswith(("encoder.", "quant_conv.")):
            assert one.dtype == before[name].dtype and torch.equal(bits(one), bits(before[name]))
        else:
            assert one.dtype == torch.float32 and not torch.equal(one, before[name].float()), name


def load_raw(path: Path) -> dict[str, Tensor]:
    from tests.support.lightning import fake_lightning

    with fake_lightning():
        found = torch.load(path, weights_only=False)["state_dict"]
    return {
        name: one for name, one in found.items() if not name.startswith(("model_ema.", "loss."))
    }


def test_a_checkpoint_has_the_shape_of_lightnings(run: Path) -> None:
    found = load(run / "last.ckpt")
    assert list(found) == [
        "epoch", "global_step", "pytorch-lightning_version", "state_dict", "callbacks",
        "optimizer_states", "lr_schedulers", "hparams_name", "hyper_parameters",
    ]  # fmt: skip
    assert (found["epoch"], found["global_step"]) == (2, 4)  # 8 images of 4
    trained = [name for name in found["state_dict"] if name.startswith(("decoder", "post_quant"))]
    shadows = {name for name in found["state_dict"] if name.startswith("model_ema.")}
    assert shadows == {f"model_ema.{name.replace('.', '')}" for name in trained} | {
        "model_ema.decay", "model_ema.num_updates",
    }  # fmt: skip
    assert found["state_dict"]["model_ema.decay"].dtype == torch.float32
    assert found["state_dict"]["model_ema.num_updates"].dtype == torch.int32
    assert found["state_dict"]["model_ema.num_updates"] == 4
    (adam,) = found["optimizer_states"]
    assert len(adam["state"]) == len(trained) and adam["param_groups"][0]["betas"] == [0.5, 0.9]
    said = found["hyper_parameters"]
    assert said["ddconfig"]["ch_mult"] == [1, 1] and said["embed_dim"] == 4
    assert said["finetune"]["base_name"] == "tiny-kl.ckpt"
    assert str(run.parent) not in json.dumps(said) + (run / "run.json").read_text()


def test_other_commands_take_the_checkpoint(run: Path, tmp_path: Path) -> None:
    last = run / "last.ckpt"
    done = prune(last, tmp_path / "ema.safetensors", PruneOptions(ema=True))
    trained = sum(name.startswith(("decoder", "post_quant")) for name in load_raw(BASE))
    assert done.plan.ema_counts[0] == trained
    with pytest.warns(UserWarning, match="updated only 4 times|scaling"):
        convert(last, tmp_path / "out", ConvertOptions(ema=True))
    found = verify(last, drop_in_for=BASE, options=None)
    assert found.ok
    result = measure([spec(last, ema=True)], IMAGES, tmp_path / "parts")
    assert result["models"][0]["metrics"]["psnr"]["mean"] > 5


def test_both_layouts_of_a_base_give_the_same_bits(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    with pytest.warns(UserWarning):
        convert(BASE, folder)
    train(tmp_path / "run", base=folder, val=str(IMAGES), val_every=2)
    one, other = load(run / "last.ckpt"), load(tmp_path / "run" / "last.ckpt")
    for part in ("state_dict", "optimizer_states"):
        assert differences(one[part], other[part]) == []
    assert metrics_of(run) == metrics_of(tmp_path / "run")


def test_it_starts_from_the_ema_where_that_is_asked_for() -> None:
    reading = FinetuneOptions(steps=1).reading
    raw, ema = (load_base(str(BASE), reading, ema=ema, size=16) for ema in (False, True))
    assert raw.weights_sha256 != ema.weights_sha256
    weight = "decoder.conv_in.weight"
    assert not torch.equal(raw.model.state_dict()[weight], ema.model.state_dict()[weight])
    assert raw.discriminator.keys() == ema.discriminator.keys() != set()


# --- going on ---


def stopped_after(records: int) -> Callable[[Any], None]:
    seen = []

    def stop(record: Any) -> None:
        seen.append(record)
        if len(seen) == records:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("records", [1, 3, 4, 6])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(
    run: Path, tmp_path: Path, records: int, workers: int
) -> None:
    options = {"val": str(IMAGES), "val_every": 2, "workers": workers}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", on_record=stopped_after(records), **options)
    done = train(tmp_path / "run", **options)
    assert done.steps_taken == (4 if records < 5 else 2)
    assert_same_runs(tmp_path / "run", run)
    assert (tmp_path / "run" / "val" / "step-000000004.png").read_bytes() == (
        run / "val" / "step-000000004.png"
    ).read_bytes()


def test_a_stop_inside_of_a_save_leaves_the_last_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save

    def half(value: Any, file: Any) -> None:
        if value["global_step"] == 4:
            file.write(bytes(1000))
            raise KeyboardInterrupt
        real(value, file)

    options = {"val": str(IMAGES), "val_every": 2}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", half)
        train(tmp_path / "run", **options)
    assert [path.name for path in sorted((tmp_path / "run").glob("*.ckpt"))] == [
        "last.ckpt", "step-000000002.ckpt",
    ]  # fmt: skip
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 2
    train(tmp_path / "run", **options)
    assert_same_runs(tmp_path / "run", run)


def test_more_steps_go_on_and_fewer_are_refused(tmp_path: Path) -> None:
    train(tmp_path / "short", 2)
    train(tmp_path / "short", 4)
    train(tmp_path / "long", 4)
    assert differences(state_of(tmp_path / "short"), state_of(tmp_path / "long")) == []
    assert train(tmp_path / "long", 4).steps_taken == 0
    with pytest.raises(UsageError, match="has 4 steps already"):
        train(tmp_path / "long", 3)


def test_another_run_is_refused_and_restart_clears(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, 2, log_every=1)
    for options in ({"lr": 1e-2}, {"batch_size": 1}, {"recipe": "ft-mse", "lpips": 0}):
        with pytest.raises(UsageError, match="is another run"):
            train(run, 2, **options)
    more = write_tiles(tmp_path / "photos", 3)
    with pytest.raises(UsageError, match="other images"):
        train(run, 2, data=more)
    with pytest.raises(UsageError, match="other ema, base"):
        train(run, 2, ema=True)
    assert train(run, 2, batch_size=1, accumulate=2).steps_taken == 0  # the same images a step
    assert train(run, 2, lr=1e-2, restart=True).steps_taken == 2
    assert [one["step"] for one in metrics_of(run)] == [1, 2]
    with pytest.raises(OutputExistsError, match="something else than a run"):
        train(more, 2)


def test_a_base_in_the_folder_of_the_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", 1)
    last = tmp_path / "run" / "last.ckpt"
    with pytest.raises(UsageError, match="the base lies in the folder of the run"):
        train(tmp_path / "run", 2, base=last, restart=True)
    assert last.exists()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UsageError, match="the base lies in the folder of the run"):
        train(tmp_path / "link", 2, base=last)


def test_files_of_others_stay(tmp_path: Path) -> None:
    train(tmp_path / "run", 2, save_every=1, keep=1)
    for name in ("step-000000001-best.ckpt", "step-best.ckpt"):
        (tmp_path / "run" / name).write_bytes(b"mine")
    train(tmp_path / "run", 3, save_every=1, keep=1)
    found = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert found == ["step-000000001-best.ckpt", "step-000000003.ckpt", "step-best.ckpt"]


def test_a_run_may_be_a_link_and_begin_where_one_was_killed_at_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".vaeconv-0123456789ab-0123").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert train(tmp_path / "link", 1).step == 1
    assert (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("kind", ["steps", "shapes", "names"])
def test_a_checkpoint_that_is_not_of_the_run_is_refused(tmp_path: Path, kind: str) -> None:
    train(tmp_path / "run", 1)
    last = tmp_path / "run" / "last.ckpt"
    found = load(last)
    if kind == "steps":
        found["global_step"] = "1"
    elif kind == "shapes":
        found["state_dict"]["decoder.conv_out.weight"] = torch.zeros(2)
    else:
        del found["state_dict"]["decoder.conv_out.bias"]
    last.unlink()
    torch.save(found, last)
    with pytest.raises(InputError, match=r"not of this run|no number of steps"):
        train(tmp_path / "run", 2)


def test_a_strange_description_of_a_run_is_another_run(tmp_path: Path) -> None:
    train(tmp_path / "run", 1)
    (tmp_path / "run" / "run.json").write_text('{"run": []}')
    with pytest.raises(UsageError, match="is another run"):
        train(tmp_path / "run", 2)


def test_old_checkpoints_go(tmp_path: Path) -> None:
    train(tmp_path / "run", 5, save_every=1, keep=2)
    names = sorted(path.name for path in (tmp_path / "run").glob("*.ckpt"))
    assert names == ["last.ckpt", "step-000000004.ckpt", "step-000000005.ckpt"]


def test_two_lone_trainers_of_one_folder_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaeconv.checkpoint import system
    from vaeconv.training import run_folder

    monkeypatch.setattr(run_folder, "_PATIENCE", 0.2)
    (tmp_path / "run").mkdir()
    with system.locked(tmp_path / "run"), pytest.raises(OutputError, match="another run is train"):
        train(tmp_path / "run", 1)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = finetune(BASE, IMAGES, tmp_path / "run", FinetuneOptions(steps=4, **TINY),
                    dry_run=True)  # fmt: skip
    assert done is not None and done.is_dry and str(done).startswith("would fine-tune")
    assert list(tmp_path.iterdir()) == []


# --- what goes wrong ---


def test_nan_in_the_loss_stops_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(run, 2)
    before = (run / "last.ckpt").read_bytes()
    real = losses.reconstruction_loss

    def broken(images: Tensor, decoded: Tensor, **how: Any) -> losses.Loss:
        poison = torch.ones(len(images), 1, 1, 1)
        poison[1] = torch.nan
        return real(images, decoded * poison, **how)

    steps = []
    monkeypatch.setattr(losses, "reconstruction_loss", broken)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: steps.append(1))
    with pytest.raises(CheckFailedError, match=r"step 3, in the loss of \w+\.png") as caught:
        train(run, 4)
    assert caught.value.exit_code == 4 and not steps and str(run) in str(caught.value)
    assert (run / "last.ckpt").read_bytes() == before


def test_infinity_in_the_gradient_stops_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = losses.reconstruction_loss

    def broken(images: Tensor, decoded: Tensor, **how: Any) -> losses.Loss:
        found = real(images, decoded, **how)
        return found._replace(total=found.total * 1e38 * 1e38)

    monkeypatch.setattr(losses, "reconstruction_loss", broken)
    with pytest.raises(CheckFailedError, match="step 1, in the gradient; its images are "):
        train(tmp_path / "run", 1)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_fp16_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="65504 overflow"):
        FinetuneOptions(steps=1, precision="fp16")
    with pytest.raises(UsageError, match=r"precision 'fp8' is not known"):
        FinetuneOptions(steps=1, precision="fp8")


def test_options_without_effect_are_refused() -> None:
    for options in ({"adversarial_start": 5}, {"lpips": 0, "vgg_weights": "a"}):
        with pytest.raises(UsageError, match="has no effect"):
            FinetuneOptions(steps=1, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="do not go together"):
        FinetuneOptions(steps=1, adversarial=0.5, compiles=True)
    assert FinetuneOptions(steps=1, recipe="ft-mse").loss == RECIPES["ft-mse"] == ("mse", 0.1)
    assert FinetuneOptions(steps=1, recipe="ft-mse", pixel="l1").loss == ("l1", 0.1)


def test_lpips_without_weights_says_how_to_do_without(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="lpips 0 trains without"):
        train(tmp_path / "run", 1, lpips=1.0, may_download=False)


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="wandb is not installed; pip install wandb"):
        train(tmp_path / "run", 1, track="wandb")


# --- what a step costs, and what it keeps ---


def saved_bytes(work: Callable[[], Any]) -> int:
    """How much autograd keeps for backward, each storage once, weights left out."""
    kept: dict[int, int] = {}

    def pack(one: Tensor) -> Tensor:
        if not isinstance(one, torch.nn.Parameter):
            kept[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        work()
    return sum(kept.values())


def test_the_encoder_keeps_nothing_for_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CompVisAutoencoder.encode
    found = []

    def watched(model: CompVisAutoencoder, x: Tensor) -> Tensor:
        result: list[Tensor] = []
        found.append(saved_bytes(lambda: result.append(real(model, x))))
        assert not result[0].requires_grad
        return result[0]

    monkeypatch.setattr(CompVisAutoencoder, "encode", watched)
    train(tmp_path / "run", 2)
    assert found == [0, 0]


def part_of(recomputes: bool) -> TrainedPart:
    torch.manual_seed(3)
    return TrainedPart(CompVisAutoencoder(SHAPED.topology), recomputes=recomputes)


def test_checkpointing_keeps_less_than_half_for_the_same_gradient() -> None:
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    kept, gradients = [], []
    for recomputes in (False, True):
        part, decoded = part_of(recomputes), []
        kept.append(saved_bytes(lambda p=part, d=decoded: d.append(p(latents))))  # type: ignore[misc]
        decoded[0].square().sum().backward()
        gradients.append([one.grad for one in part.parameters()])
    assert kept[1] < kept[0] / 2
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert_near(other, one)


def test_bf16_keeps_weights_in_fp32(tmp_path: Path) -> None:
    """A weight of 1 moves by a step of 1e-4, which bf16 could not store beside it."""
    base = weights_of()
    base["decoder.norm_out.weight"] = torch.ones_like(base["decoder.norm_out.weight"])
    save_ckpt(tmp_path / "base.ckpt", base)
    seen: list[torch.dtype] = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: (
            seen.append(output.dtype) if isinstance(module, torch.nn.Conv2d) else None
        )
    )
    try:
        train(tmp_path / "run", 1, base=tmp_path / "base.ckpt", precision="bf16", lr=1e-4)
    finally:
        hook.remove()
    assert set(seen) == {torch.bfloat16}
    after = state_of(tmp_path / "run")
    assert all(one.dtype == torch.float32 for name, one in after.items() if "num_up" not in name)
    moved = (after["decoder.norm_out.weight"] - 1).abs()
    assert moved.max() > 0.5e-4 and moved.max() < 1.5e-4


def test_options_of_the_optimizer_have_their_effect(tmp_path: Path) -> None:
    train(tmp_path / "run", 4, warmup=4, clip=1e-3, lr=1e-3)
    records = metrics_of(tmp_path / "run")
    assert [one["lr"] for one in records] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert all(one["grad_norm"] > 1 for one in records)  # as it was before it was clipped
    (adam,) = load(tmp_path / "run" / "last.ckpt")["optimizer_states"]
    assert max(one["exp_avg"].abs().max() for one in adam["state"].values()) <= 1e-3


def test_posterior_mode_and_sample_differ(tmp_path: Path) -> None:
    for posterior in ("sample", "mode"):
        train(tmp_path / posterior, 1, posterior=posterior)
    sample, mode = (metrics_of(tmp_path / one)[0]["loss"] for one in ("sample", "mode"))
    assert sample != mode


# --- it learns ---


def test_it_learns(tmp_path: Path) -> None:
    base = weights_of(SHAPED)
    save_ckpt(tmp_path / "base.ckpt", base)
    photos, held_out = write_tiles(tmp_path / "photos", 20, width=64, height=64), tmp_path / "val"
    held_out.mkdir()
    for path in sorted(photos.iterdir())[-4:]:
        path.rename(held_out / path.name)
    done = train(tmp_path / "run", 20, base=tmp_path / "base.ckpt", data=photos, size=64,
                 batch_size=4, val=str(held_out), val_every=20, save_every=20,
                 ema_decay=0.5)  # fmt: skip
    assert done.validation is not None
    psnr = {kind: means["psnr"] for kind, means in done.validation.items()}
    assert psnr["raw"] > psnr["base"] + 0.8
    assert psnr["ema"] > psnr["raw"] - 0.3


@pytest.mark.slow
def test_the_trained_autoencoder_gets_better(tmp_path: Path) -> None:
    """By PSNR of photographs that neither was trained on; 0.18 dB where the figure was taken."""
    photos = FIXTURES / "photos"
    done = train(tmp_path / "run", 20, base=FIXTURES / "trained.ckpt", data=photos / "seen",
                 ema=True, pixel="mse", size=128, lr=5e-5, warmup=5, ema_decay=0.9,
                 save_every=20, val=str(photos / "held-out"), val_every=20)  # fmt: skip
    assert done.validation is not None
    psnr = {kind: means["psnr"] for kind, means in done.validation.items()}
    assert psnr["ema"] > psnr["base"] + 0.05


def test_validation_tells_raw_from_ema_as_eval_does(run: Path, tmp_path: Path) -> None:
    final = metrics_of(run)[-1]["val"]
    models = [spec(BASE, name="base"), spec(run / "last.ckpt", name="raw"),
              spec(run / "last.ckpt", name="ema", ema=True)]  # fmt: skip
    small = preset("card-256").changed(size=TINY["size"])
    found = measure(models, IMAGES, tmp_path / "parts", protocol=small)
    for model in found["models"]:
        for name, value in final[model["name"]].items():
            assert value == near_metric(name, model["metrics"][name]["mean"]), model["name"]
    assert final["base"]["psnr"] < final["ema"]["psnr"] < final["raw"]["psnr"]


def test_lpips_is_trained_and_measured(tmp_path: Path) -> None:
    networks = write_nets(tmp_path)
    files = {"vgg_weights": networks["vgg16"], "lpips_weights": networks["lpips linear weights"]}
    done = train(tmp_path / "run", 2, size=32, batch_size=1, lpips=1.0, val=str(IMAGES),
                 may_download=False, **files)  # fmt: skip
    assert done.validation is not None
    assert done.validation["base"].keys() == {"psnr", "ssim", "lpips"}
    assert metrics_of(tmp_path / "run")[1]["lpips"] > 0
    train(tmp_path / "without", 2, size=32, batch_size=1)
    one, other = state_of(tmp_path / "run"), state_of(tmp_path / "without")
    assert differences(one, other)
