"""The Triton kernels, by Triton's interpreter, which needs no GPU, against plain PyTorch in fp64."""

import subprocess
import sys

from helpers import environment

CODE = """
import torch
import torch.nn.functional as F
from nemo_image import fused

torch.manual_seed(0)


def compare(function, plain, x):
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    result, expected = function(x), plain(exact)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient.double())
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def swiglu(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


for shape in ((6, 1, 2 * 1500), (3, 2, 2 * 8)):  # more than a block, and less
    compare(fused.swiglu, swiglu, torch.randn(shape))
bias = torch.randn(16)
compare(lambda x: fused.swiglu(x, bias), lambda x: swiglu(x + bias.double()), torch.randn(2, 1, 16))

for n, batch, heads, d in ((5, 1, 3, 16), (1, 4, 8, 32)):  # tokens of rows at one position, a token of rows at several
    half = torch.rand(n, batch, 1, d // 2) * 900
    angles = torch.cat((half, half), dim=-1)

    def rotary(x):
        one, two = x.chunk(2, dim=-1)
        return x * angles.double().cos() + torch.cat((-two, one), dim=-1) * angles.double().sin()

    compare(lambda x: fused.Rotary.apply(x, angles), rotary, torch.randn(n, batch, heads, d))
    wide = torch.randn(n, batch, heads, 2 * d)[..., :d]  # as NeMo's keys are a part of its mixed layer
    torch.testing.assert_close(fused.Rotary.apply(wide, angles).double(), rotary(wide.double()), rtol=1e-5, atol=1e-5)
"""


def test_kernels():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment(TRITON_INTERPRET="1")
    )
    assert done.returncode == 0, done.stderr
