"""The same verification on an accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.make_fixtures import FOLDER as FIXTURES
from tests.support.closeness import assert_near, near
from tests.support.pairs import (
    assert_same,
    change_diffusers,
    check,
    failure_of,
    one_epsilon,
    run,
    same,
)
from vaeconv.models.devices import describe_environment, pick_device, reproducible
from vaeconv.parity.compare_outputs import Decoded
from vaeconv.parity.distance import TOLERANCES
from vaeconv.parity.report.document import report_document

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_pair_is_the_same_on_the_gpu(dtype: str) -> None:
    pair = (FIXTURES / "tiny-kl.ckpt", FIXTURES / "tiny-diffusers")
    result = check(*pair, device="cuda", dtype=dtype)
    assert_same(result, tensors=120)
    assert {one.dtype for one in same(result).outcomes} == {"fp32", dtype}
    for outcome in same(result).outcomes:
        assert outcome.limit == near(
            TOLERANCES[outcome.dtype] * max(1.0, outcome.distance.largest or 0.0), "fp64"
        )


def test_the_gpu_is_the_one_that_auto_takes_and_the_report_names(refs: Path, ckpt: Path) -> None:
    assert str(pick_device("auto")) == "cuda:0"
    environment = check(ckpt, ckpt, refs, device="auto").environment
    assert environment["device"] == "cuda:0"
    assert environment["gpu"] == torch.cuda.get_device_name(0)
    assert environment["gpu_memory"] > 1 << 30
    assert environment["cuda"] == torch.version.cuda
    assert environment["cudnn"] == torch.backends.cudnn.version()
    driver = environment["driver"]
    assert driver is None or driver.replace(".", "").isdigit()
    assert environment["cudnn_allow_tf32"] is False


def test_a_gpu_of_high_number_is_not_there(refs: Path, ckpt: Path) -> None:
    result = run("verify", ckpt, ckpt, "--latents", refs, "--device", "cuda:63")
    assert result.exit_code == 7


def test_tf32_is_off() -> None:
    """Its 10 bits would be seen in a product and in a convolution alike."""
    torch.manual_seed(1)
    a, b = torch.randn(256, 256, device="cuda"), torch.randn(256, 256, device="cuda")
    x, w = torch.randn(1, 64, 32, 32, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    cudnn: Any = torch.backends.cudnn
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        with reproducible(), torch.inference_mode():
            product, image = a @ b, torch.nn.functional.conv2d(x, w)
        assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (True, "high")
    finally:
        cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
    for found, judged in (
        (product, a.double() @ b.double()),
        (image, torch.nn.functional.conv2d(x.double(), w.double())),
    ):
        assert_near(found, judged)  # TF32 makes it about 5e-4


def test_two_runs_on_the_gpu_give_the_same_numbers(refs: Path, ckpt: Path, out: Path) -> None:
    one, other = (
        report_document(check(ckpt, out, refs, device="cuda", dtype="bf16")) for _ in range(2)
    )
    assert one["same"] == other["same"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_defect_is_found_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, refs: Path, ckpt: Path, out: Path, dtype: str
) -> None:
    change_diffusers(monkeypatch, one_epsilon)
    result = check(ckpt, out, refs, device="cuda", dtype=dtype)
    failure_of(result)
    assert "first layer that differs is decoder.up.2.block.0.norm2" in result.problems[1]


def test_the_gpu_decodes_what_the_cpu_decodes(refs: Path, ckpt: Path, out: Path) -> None:
    found: dict[str, list[Decoded]] = {"cpu": [], "cuda": []}
    for device, pictures in found.items():
        assert check(ckpt, out, refs, device=device, on_image=pictures.append).ok
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        for mine, theirs in zip(one.images, other.images, strict=True):
            assert_near(mine, theirs)


def test_batches_fit_the_memory_by_themselves(refs: Path, ckpt: Path, out: Path) -> None:
    auto = check(ckpt, out, refs, device="cuda")
    single = check(ckpt, out, refs, device="cuda", batch_size=1)
    names = [[one.name for one in same(result).outcomes] for result in (auto, single)]
    assert names[0] == names[1]
    assert auto.ok
    assert single.ok
    assert describe_environment(torch.device("cuda:0"))["gpu"]


def test_latents_are_encoded_on_the_gpu(tmp_path: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "p.png")
    made = {}
    for device in ("cpu", "cuda"):
        target = tmp_path / f"{device}.safetensors"
        args = ("--model", FIXTURES / "tiny-diffusers", "--size", 32, "--device", device)
        assert run("latents", tmp_path / "p.png", target, *args).exit_code == 0
        made[device] = load_file(target)["latent.p"]
    assert_near(made["cuda"], made["cpu"])
