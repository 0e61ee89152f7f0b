"""Triton kernels for what megatron-core does in many passes over memory: SwiGLU and the rotary embedding.

For half precisions on a GPU. They compute in fp32 and round once, so they differ from megatron-core's by rounding.
"""

import os

import torch
import triton
import triton.language as tl


@triton.jit
def swiglu_kernel(x, out, width, BLOCK: tl.constexpr):
    """out [n, width] = silu(gate) * up of x [n, 2 * width], gate and up side by side."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, first = column < width, x + 2 * row * width + column
    gate, up = tl.load(first, inside).to(tl.float32), tl.load(first + width, inside).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), inside)


@triton.jit
def swiglu_gradient_kernel(x, gradient, out, width, BLOCK: tl.constexpr):
    """out [n, 2 * width]: the gradient of x from that of swiglu_kernel's result."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, place = column < width, 2 * row * width + column
    gate, up = tl.load(x + place, inside).to(tl.float32), tl.load(x + place + width, inside).to(tl.float32)
    gradient = tl.load(gradient + row * width + column, inside).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    of_gate = gradient * up * sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(out + place, of_gate.to(out.dtype.element_ty), inside)
    tl.store(out + place + width, (gradient * gate * sigmoid).to(out.dtype.element_ty), inside)


@triton.jit
def rotary_kernel(x, angles, out, batch, heads, x0, x1, x2, a0, a1, sign, HEADS: tl.constexpr, HALF: tl.constexpr):
    """out [n, batch, heads, 2 * HALF]: x turned by sign * angles; x0 … a1: strides of x and angles."""
    number = tl.program_id(0)
    token, item = (number // batch).to(tl.int64), number % batch
    head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (place < HALF)
    angle = tl.load(angles + token * a0 + item * a1 + place)
    cos, sin = tl.cos(angle), sign * tl.sin(angle)
    first = x + token * x0 + item * x1 + head * x2 + place
    one, two = tl.load(first, inside).to(tl.float32), tl.load(first + HALF, inside).to(tl.float32)
    to = out + (number.to(tl.int64) * heads + head) * 2 * HALF + place
    tl.store(to, (one * cos - two * sin).to(out.dtype.element_ty), inside)
    tl.store(to + HALF, (two * cos + one * sin).to(out.dtype.element_ty), inside)


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        ctx.save_for_backward(x)
        width = x.shape[-1] // 2
        out = x.new_empty(*x.shape[:-1], width)
        swiglu_kernel[x.shape[:-1].numel(), triton.cdiv(width, 1024)](x, out, width, BLOCK=1024)
        return out

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        width, out = x.shape[-1] // 2, torch.empty_like(x)
        grid = x.shape[:-1].numel(), triton.cdiv(width, 1024)
        swiglu_gradient_kernel[grid](x, gradient.contiguous(), out, width, BLOCK=1024)
        return out


def turn(x, angles, sign):
    n, batch, heads, size = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    angles = angles.expand(n, batch, 1, size)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = {"HEADS": triton.next_power_of_2(heads), "HALF": size // 2}
    rotary_kernel[(n * batch,)](x, angles, out, batch, heads, *x.stride()[:3], *angles.stride()[:2], sign, **sizes)
    return out


class Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, angles):
        ctx.save_for_backward(angles)
        return turn(x, angles, 1.0)

    @staticmethod
    def backward(ctx, gradient):
        return turn(gradient, *ctx.saved_tensors, -1.0), None


def swiglu(x, bias=None, *options):
    """In place of megatron-core's bias_swiglu_impl; Mistral and Llama have no bias."""
    return SwiGLU.apply(x if bias is None else x + bias)


def warm_up():
    """Uses once what a step uses: a first time takes nearly a second, most of it Triton's. For a thread, while weights
    are read."""
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # of this thread
    heads = torch.ones(16, 1, 2, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    turned = Rotary.apply(heads, torch.ones(16, 1, 1, 128, device="cuda"))[:, 0]
    ends = torch.tensor([0, 16], device="cuda", dtype=torch.int32)
    options = ends, ends, 16, 16, 0.0, True, False
    attended = torch.ops.aten._flash_attention_forward(turned, turned, turned, *options)[0].flatten(1)
    hidden = swiglu(torch.nn.functional.rms_norm(attended, attended.shape[1:]))
    torch.log_softmax(hidden @ hidden.mT, dim=-1, dtype=torch.float32).sum().backward()


def install():
    """Patches megatron-core and NeMo; the model needs bias_activation_fusion in its configuration."""
    from megatron.core.transformer import attention, mlp
    from nemo.collections.nlp.modules.common.megatron.adapters import mcore_mixins

    plain = attention.apply_rotary_pos_emb

    def apply_rotary_pos_emb(t, freqs, config, cu_seqlens=None, **options):
        """t [n, batch, heads, d], freqs [n or 1, batch or 1, 1, d]: angles, the same in both halves."""
        half = freqs.shape[-1] // 2
        if cu_seqlens is not None or options or config.rotary_interleaved or freqs.shape[-1] != t.shape[-1]:
            return plain(t, freqs, config=config, cu_seqlens=cu_seqlens, **options)
        return Rotary.apply(t, freqs) if half & (half - 1) == 0 else plain(t, freqs, config=config)

    for module in (attention, mcore_mixins):
        module.apply_rotary_pos_emb = apply_rotary_pos_emb
    for module in (mlp, mcore_mixins):
        module.bias_swiglu_impl = swiglu
