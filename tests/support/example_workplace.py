"""The folder that the examples in the commands' help are run in, with all that they name."""

from __future__ import annotations

import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.evaluation.runs import write_tiles
from tests.support.full_checkpoint import full_state
from tests.support.lightning import fake_lightning, make_checkpoint
from tests.support.litema import make_ema
from tests.support.samples import SHAPED, average, save_ckpt, weights_of
from vaeconv.cli import app

BASE = "ft-mse"  # the folder that is stabilityai/sd-vae-ft-mse on the Hub
IMAGES = {"photos": 2, "samples": 2, "val2017": 3}
TEXTS = {
    "card.toml": 'title = "My VAE"\nlicense = "mit"\nsummary = "An autoencoder for tests."\n',
    "models.toml": '[[model]]\npath = "last.ckpt"\nname = "EMA"\nema = true\n\n'
    '[[model]]\npath = "out"\nname = "raw"\n',
    "release.toml": '[source]\ncheckpoint = "last.ckpt"\nfamily = "sd1"\n\n'
    '[card]\nlicense = "mit"\n\n[push]\nrepo_id = "user/my-vae"\ntag = "{tag}"\n',
}
# What is made by vaeconv itself, from what stands above it.
MADE = """
convert last.ckpt out/
convert --ema model.ckpt ft-ema/
convert raw.ckpt ft-mse/
prune --ema last.ckpt ema.safetensors
prune --dtype fp32 last.ckpt my-vae.safetensors
latents photos/ refs.safetensors --model out/ --size 64 --device cpu
verify my-vae.safetensors out/ --report out/parity.json --device cpu
eval out/ --images photos/ --out coco.json --metrics psnr,ssim --size 64 --device cpu
eval out/ --images samples/ --out laion.json --metrics psnr,ssim --size 64 --device cpu
card out/ --meta card.toml --eval coco.json --parity out/parity.json
""".strip().splitlines()


def make_workplace(folder: Path) -> None:
    """Write everything but what a signature needs."""
    (folder / "pruned").mkdir(parents=True)
    for number, name in enumerate(("model", "a", "b", "c")):
        weights = weights_of(SHAPED, seed=31 + number)
        save_ckpt(folder / f"{name}.ckpt", weights | make_ema(weights, average))
    weights = weights_of(SHAPED)  # of a decoder that was trained on, from raw.ckpt
    decoder = {name: average(name, t) for name, t in weights.items() if name.startswith("decoder.")}
    save_ckpt(folder / "raw.ckpt", weights | decoder)
    with fake_lightning() as callback:
        state = weights | make_ema(weights, average)
        score = torch.tensor(0.1)
        last = make_checkpoint(state, callback=callback, best_score=score, config=SHAPED)
        torch.save(last, folder / "last.ckpt")
    save_file(weights_of(SHAPED, torch.float16, seed=41), folder / "sdxl_vae.safetensors")
    save_ckpt(folder / "v1-5-full.ckpt", full_state(SHAPED))
    save_file(full_state(SHAPED, ema=False), folder / "v1-5-pruned.safetensors")
    for name, count in IMAGES.items():
        write_tiles(folder / name, count)
    shutil.make_archive(str(folder / "val2017"), "zip", folder, "val2017")
    shutil.copy(min((folder / "photos").iterdir()), folder / "photo.png")
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in MADE:
            done = CliRunner().invoke(app, [*shlex.split(line), "--quiet"])
            assert done.exit_code == 0, (line, done.output)
    shutil.copy(folder / "out" / "parity.json", folder)


def sign(folder: Path, public: Path) -> None:
    """Sign a release with a new key, and write its public half."""
    from cryptography.hazmat.primitives import serialization as out
    from cryptography.hazmat.primitives.asymmetric import ec

    from vaeconv.publish.signing import sign_folder

    key = ec.generate_private_key(ec.SECP256R1())
    private = public.with_suffix(".pem")
    encoded = key.private_bytes(out.Encoding.PEM, out.PrivateFormat.PKCS8, out.NoEncryption())
    private.write_bytes(encoded)
    public.write_bytes(
        key.public_key().public_bytes(out.Encoding.PEM, out.PublicFormat.SubjectPublicKeyInfo)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of sigstore's imports
        sign_folder(folder, private)
    private.unlink()
