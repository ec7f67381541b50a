"""Bytes moved, on a program written by hand in which every rule plays a part."""

import pytest

from aromni_jax.compile.hlo import Program

# A loop of five over a stack of five weights [64, 4] in HBM, which updates a row of a cache in place.
TEXT = """HloModule hand, is_scheduled=true

%sliced (param_0: bf16[5,64,4], param_1: s32[]) -> bf16[64,4] {
  %param_0 = bf16[5,64,4]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one.slice = bf16[1,64,4]{2,1,0} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,64,4}
  ROOT %flat = bf16[64,4]{1,0:T(8,128)(2,1)S(1)} bitcast(%one.slice)
}

%updated (param_0.1: s8[8,16], param_1.1: s8[1,16], param_2.1: s32[]) -> s8[8,16] {
  %param_0.1 = s8[8,16]{1,0} parameter(0)
  %param_1.1 = s8[1,16]{1,0} parameter(1)
  %param_2.1 = s32[] parameter(2)
  %nought = s32[] constant(0)
  ROOT %new = s8[8,16]{1,0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2.1, %nought)
}

%body (state: (s32[], bf16[5,64,4], s8[8,16])) -> (s32[], bf16[5,64,4], s8[8,16]) {
  %state = (s32[]{:T(128)}, bf16[5,64,4]{2,1,0:T(8,128)}, s8[8,16]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %stack = bf16[5,64,4]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %cache = s8[8,16]{1,0} get-tuple-element(%state), index=2
  %weights = bf16[64,4]{1,0:T(8,128)S(1)} fusion(%stack, %number), calls=%sliced, x={"estimated_cycles":"7"}
  %row = s8[1,16]{1,0} fusion(%weights), calls=%nothing, backend_config={"estimated_cycles":"3"}
  %written = s8[8,16]{1,0} fusion(%cache, %row, %number), calls=%updated
  %step = s32[] constant(1)
  ROOT %after = (s32[]{:T(128)}, bf16[5,64,4]{2,1,0:T(8,128)}, s8[8,16]{1,0}) tuple(%step, %stack, %written)
}

%nothing (param_0.2: bf16[64,4]) -> s8[1,16] {
  %param_0.2 = bf16[64,4]{1,0} parameter(0)
  ROOT %made = s8[1,16]{1,0} convert(%param_0.2)
}

%below (state.1: (s32[], bf16[5,64,4], s8[8,16])) -> pred[] {
  %state.1 = (s32[], bf16[5,64,4], s8[8,16]) parameter(0)
  %counter = s32[] get-tuple-element(%state.1), index=0
  %five = s32[] constant(5)
  ROOT %less = pred[]{:T(512)S(6)} compare(%counter, %five), direction=LT
}

ENTRY %main (first: (s32[], bf16[5,64,4], s8[8,16]), big: f32[100]) -> f32[100] {
  %first = (s32[], bf16[5,64,4], s8[8,16]) parameter(0)
  %big = f32[100]{0} parameter(1)
  %loop = (s32[], bf16[5,64,4], s8[8,16]) while(%first), condition=%below, body=%body
  %copy-start = (f32[100]{0:S(1)}, f32[100]{0}, u32[]{:S(2)}) copy-start(%big)
  %copy-done = f32[100]{0:S(1)} copy-done(%copy-start)
  ROOT %copied = f32[100]{0} copy(%copy-done)
}
"""
SLICE = 64 * 4 * 2 + 4  # one layer's weights, and the index
ROW = 16  # written from on-chip weights
UPDATE = 2 * 16 + 4  # read, written, and the index
COMPARED = 2 * 4  # counter and limit; the result is on the chip
OUTSIDE = 2 * 400  # one half in, the other out


def test_slices_loops_updates_and_memory_on_the_chip():
    program = Program(TEXT, trips=99)
    assert program.outside_loops().bytes == OUTSIDE
    assert program.traffic().bytes == 5 * (SLICE + ROW + UPDATE + COMPARED) + OUTSIDE
    assert program.traffic().cycles == 5 * (7 + 3)


def test_what_a_fusion_reads_behind_an_update_and_a_change_of_shape():
    """The row is written in place, and all of the updated buffer is read, by way of a fusion inside the fusion."""
    more = """%shaped (param_0.3: s8[8,16]) -> s8[128] {
  %param_0.3 = s8[8,16]{1,0} parameter(0)
  ROOT %line = s8[128]{0} bitcast(%param_0.3)
}

%both (param_0.4: s8[8,16], param_1.4: s8[1,16], param_2.4: s32[]) -> (s8[8,16], f32[]) {
  %param_0.4 = s8[8,16]{1,0} parameter(0)
  %param_1.4 = s8[1,16]{1,0} parameter(1)
  %param_2.4 = s32[] parameter(2)
  %at = s8[8,16]{1,0} dynamic-update-slice(%param_0.4, %param_1.4, %param_2.4, %param_2.4)
  %flat.4 = s8[128]{0} fusion(%at), kind=kLoop, calls=%shaped
  %sum = f32[]{:S(1)} reduce(%flat.4, %param_2.4), dimensions={0}
  ROOT %two = (s8[8,16]{1,0}, f32[]{:S(1)}) tuple(%at, %sum)
}

"""
    line = "ROOT %r = (s8[8,16]{1,0}, f32[]{:S(1)}) fusion(%kept, %row, %n), kind=kLoop, calls=%both"
    entry = "ENTRY %main (kept: s8[8,16], row: s8[1,16], n: s32[]) -> f32[] {\n  %kept = s8[8,16]{1,0} parameter(0)\n"
    entry += f"  %row = s8[1,16]{{1,0:S(1)}} parameter(1)\n  %n = s32[]{{:S(6)}} parameter(2)\n  {line}\n}}\n"
    assert Program(more + entry, trips=1).traffic().bytes == 8 * 16 + 16


def test_a_loop_of_unknown_length_runs_as_often_as_the_caller_says():
    text = TEXT.replace("direction=LT", "direction=NE")
    assert Program(text, trips=2).traffic().cycles == 2 * (7 + 3)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%x = f32[4]{0} add(%big, %big)", 400 + 400 + 16),
        ("%x = f32[4]{0:S(1)} slice(%big), slice={[0:4]}", 16),
        ("%x = ((f32[100]{0}), f32[4]{0:S(1)}, s32[]{:S(2)}) slice-start(%big), slice={[0:4]}", 16),
        ("%x = (f32[100]{0}, f32[100]{0}) all-gather-start(%big), channel_id=1", 800),
        ('%x = pred[100]{0} custom-call(%big), custom_call_target="f"', 500),
        ("%x = f32[100]{0} bitcast(%big)", 0),
    ],
)
def test_one_instruction(line, expected):
    entry = f"ENTRY %main (big: f32[100]) -> f32[] {{\n  %big = f32[100]{{0}} parameter(0)\n  ROOT {line}\n}}\n"
    text = TEXT[: TEXT.index("ENTRY")] + entry
    assert Program(text, trips=1).traffic().bytes == expected


def test_the_dearer_branch_counts():
    wide = (
        "%wide (p: f32[100]) -> f32[100] {\n  %p = f32[100]{0} parameter(0)\n  ROOT %n = f32[100]{0} negate(%p)\n}\n\n"
    )
    choice = "ROOT %c = s8[1,16] conditional(%x, %big), branch_computations={%nothing, %wide}"
    text = TEXT.replace("ROOT %copied = f32[100]{0} copy(%copy-done)", choice).replace("ENTRY", wide + "ENTRY")
    assert Program(text, trips=1).outside_loops().bytes == 400 + 800
