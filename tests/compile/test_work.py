"""FLOPs and transfers, on small programs written by hand."""

import pytest

from aromni_jax.compile.hlo import Program
from aromni_jax.compile.work import collectives, kernel_flops, matmul_flops

# A loop of three around a product in a fusion, a gather that is done in two parts, and what stands alone.
TEXT = """HloModule hand

%part (p.0: bf16[4,8], p.1: bf16[8,6]) -> bf16[4,6] {
  %p.0 = bf16[4,8]{1,0} parameter(0)
  %p.1 = bf16[8,6]{1,0} parameter(1)
  %all-gather.1 = bf16[16,8]{1,0} all-gather(%p.0), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}, \
frontend_attributes={chain_id="1"}
  ROOT %product = bf16[4,6]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[4,8], bf16[8,6])) -> (s32[], bf16[4,8], bf16[8,6]) {
  %state = (s32[], bf16[4,8]{1,0}, bf16[8,6]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %left = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %right = bf16[8,6]{1,0} get-tuple-element(%state), index=2
  %first = bf16[4,6]{1,0} fusion(%left, %right), kind=kOutput, calls=%part
  %second = bf16[4,6]{1,0} fusion(%left, %right), kind=kOutput, calls=%part
  ROOT %after = (s32[], bf16[4,8]{1,0}, bf16[8,6]{1,0}) tuple(%number, %left, %right)
}

%below (state.1: (s32[], bf16[4,8], bf16[8,6])) -> pred[] {
  %state.1 = (s32[], bf16[4,8], bf16[8,6]) parameter(0)
  %counter = s32[] get-tuple-element(%state.1), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%counter, %three), direction=LT
}

ENTRY %main (first.0: (s32[], bf16[4,8], bf16[8,6]), big: f32[64]) -> f32[64] {
  %first.0 = (s32[], bf16[4,8], bf16[8,6]) parameter(0)
  %big = f32[64]{0} parameter(1)
  %loop = (s32[], bf16[4,8], bf16[8,6]) while(%first.0), condition=%below, body=%body
  ROOT %last = f32[64]{0} negate(%big)
}
"""


def alone(line):
    """A program of this one instruction, on parameters of a few shapes."""
    given = {
        "big": "f32[64]",
        "x": "f32[8,4]",
        "y": "f32[8,4,1]",
        "z": "f32[3,5,4]",
        "w": "f32[8,2,4]",
        "v": "f32[2,4,5]",
    }
    lines = [f"  %{name} = {kind} parameter({n})" for n, (name, kind) in enumerate(given.items())]
    return Program("\n".join(["ENTRY %main (p: f32[]) -> f32[] {", *lines, f"  ROOT {line}", "}", ""]), trips=1)


def test_loops_multiply_and_a_transfer_in_parts_counts_once():
    program = Program(TEXT, trips=1)
    assert matmul_flops(program) == 3 * 2 * (2 * 4 * 6 * 8)
    assert collectives(program) == {"all-gather": 3 * (4 * 8 * 2) * 3}


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("%d = f32[8,8] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}", 2 * 8 * 8 * 4),
        # A weight of several heads as the TPU has it: of three positions of the window one is no padding.
        (
            "%c = f32[8,3,5] convolution(%y, %z), window={size=3 pad=2_2 rhs_reversal=1}, dim_labels=bf0_0oi->b0f",
            2 * 8 * 3 * 5 * 4,
        ),
        # Every second of five inputs is a hole, and the window's two positions meet one input each time.
        (
            "%c = f32[8,2,5] convolution(%w, %v), window={size=2 lhs_dilate=2 stride=1}, dim_labels=b0f_0io->b0f",
            2 * 8 * 2 * 5 * 4,
        ),
    ],
)
def test_products(line, flops):
    assert matmul_flops(alone(line)) == flops


def test_of_two_branches_the_dearer_one_is_visited():
    branches = [
        f"%{name} (p: f32[{n},{n}]) -> f32[{n},{n}] {{\n  %p = f32[{n},{n}] parameter(0)\n"
        f"  ROOT %d = f32[{n},{n}] dot(%p, %p), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}\n}}\n"
        for name, n in (("small", 4), ("large", 8))
    ]
    main = """ENTRY %main (q: pred[], a: f32[4,4], b: f32[8,8]) -> f32[] {
  %q = pred[] parameter(0)
  %a = f32[4,4] parameter(1)
  %b = f32[8,8] parameter(2)
  ROOT %c = f32[] conditional(%q, %a, %b), true_computation=%small, false_computation=%large
}
"""
    assert matmul_flops(Program("\n".join([*branches, main]), trips=1)) == 2 * 8**3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%g = f32[512] all-gather(%big), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}", 256 * 7),
        ("%g = f32[8] reduce-scatter(%big), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}", 256 * 7 / 8),
        ("%g = f32[64] all-reduce(%big), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%s", 2 * 256 * 3 / 4),
        ("%g = (f32[64], f32[64]) all-reduce-start(%big), replica_groups={{0,1}}, to_apply=%s", 256),
        ("%g = f32[64] collective-permute(%big), source_target_pairs={{0,1},{1,0}}", 256),
        ("%g = f32[64] all-to-all(%big), replica_groups={{0,1,2,3}}", 256 * 3 / 4),
    ],
)
def test_bytes_that_reach_a_chip(line, expected):
    assert sum(collectives(alone(line)).values()) == expected


def test_attention_kernels():
    """Text that breaks a line inside an instruction, as kernels' metadata does."""
    floats = "bf16[2,128,512]{2,1,0}, bf16[2,128,512]{2,1,0}, bf16[2,512,128]{2,1,0}, f32[2,1,512]{2,1,0}"
    operands = f"operand_layout_constraints={{s8[1,4,4]{{2,1,0}}, s8[1,4,4]{{2,1,0}}, {floats}}}"
    tail = 'frontend_attributes={kernel_metadata={\n"x":"{}"\n}}, metadata={op_name="k"}'
    call = f"f32[64] custom-call(%big), {operands}, {tail}"
    forward, backward = (alone(f"%splash_mha_{name}.1 = {call}") for name in ("fwd_segmented", "dkv_segmented"))
    one_product = 2 * (2 * 512 * 128) * 512 * 10 / 16  # of 16 blocks 6 lie above the diagonal
    assert kernel_flops(forward) == 2 * one_product and kernel_flops(backward) == 5 * one_product
