"""Products of a few rows: right, and the same bits whatever stands beside a row."""

import pytest
import torch
import torch.nn.functional as F

from slmkit.infer import product
from slmkit.infer.product import BLOCK, FEW, compile_product, fastest_product


@pytest.fixture
def usual():
    """The library that other tests use; its name is the same in every directory."""
    return compile_product()


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """No library compiled yet, in this process or before."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    product._compiled.cache_clear()
    yield tmp_path
    product._compiled.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("classes", "width"), [(1, 1), (2, 7), (3, 8), (13, 33), (64, 64), (100, 896), (25, 4864)])
def test_it_is_the_product_in_any_number_of_rows(classes, width, dtype):
    """In one order up to FEW rows; of more, which have another one, float32 alone is ours."""
    generator = torch.Generator().manual_seed(classes)
    rows = torch.randn(BLOCK + 19, width, generator=generator).to(dtype)
    weight = torch.randn(classes, width, generator=generator).to(dtype)
    ours, exact = fastest_product(weight), rows.double() @ weight.double().T
    assert ours is not F.linear
    alone = torch.cat([ours(row[None], weight) for row in rows])
    whole = ours(rows, weight) if dtype == torch.float32 else alone
    bound = 1e-6 * width * rows.abs().max() * weight.abs().max() + torch.finfo(dtype).eps * exact.abs()
    for products in (alone, whole):
        assert products.dtype == dtype
        assert ((products - exact).abs() <= bound).all()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for count in range(1, FEW + 1):
                assert torch.equal(ours(rows[-count:], weight), alone[-count:])
            for count in (FEW + 1, 16, 17, 32, 33, 49, BLOCK + 1) if dtype == torch.float32 else ():
                assert torch.equal(ours(rows[-count:], weight), whole[-count:])
    finally:
        torch.set_num_threads(before)


def test_strided_inputs_are_what_they_show():
    rows, weight = torch.randn(10, 3).T, torch.randn(10, 5).T
    torch.testing.assert_close(fastest_product(weight)(rows, weight), rows @ weight.T)


def test_what_is_not_ours_is_the_libraries_product():
    assert fastest_product(torch.zeros(2, 2, dtype=torch.float16)) is F.linear
    rows, weight = torch.randn(FEW + 1, 7).bfloat16(), torch.randn(5, 7).bfloat16()
    assert torch.equal(fastest_product(weight)(rows, weight), F.linear(rows, weight))


def test_it_is_compiled_once(fresh):
    first = compile_product()
    assert list(fresh.iterdir()) == [first]
    made = first.stat().st_mtime_ns
    assert compile_product() == first
    assert first.stat().st_mtime_ns == made


@pytest.mark.parametrize("obstacle", ["no compiler", "broken compiler", "damaged library"])
def test_where_it_cannot_be_compiled_the_libraries_serve(usual, fresh, tmp_path, monkeypatch, caplog, obstacle):
    if obstacle == "damaged library":
        (fresh / usual.name).write_bytes(b"not a library")
    else:
        (tmp_path / "bin").mkdir()
        if obstacle == "broken compiler":
            (tmp_path / "bin/cc").write_text("#!/bin/sh\nexit 1\n")
            (tmp_path / "bin/cc").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(product.log, "propagate", True)
    assert fastest_product(torch.zeros(2, 2)) is F.linear
    assert "cannot compile product.c" in caplog.text
