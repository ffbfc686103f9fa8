"""Kernel launches, counted in a program's text; and the steps' own, where XLA's compiler for GPUs is installed."""

import json
import os
import subprocess
import sys

import pytest

from jaxnet.bench.launches import STEPS
from jaxnet.devices.program_text import CompiledText, array_bytes

PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %tanh = f32[4]{0} tanh(%p)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %y = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  %z = f32[4]{0} custom-call(%y), custom_call_target="gemm"
  ROOT %next = (s32[], f32[4]{0}) tuple(%i, %z)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %start = s32[] constant(0)
  %copy.1 = f32[4]{0} copy(%a)
  %begin = (s32[], f32[4]{0}) tuple(%start, %copy.1)
  %loop = (s32[], f32[4]{0}) while(%begin), condition=%c, body=%body, TRIPS
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    trips = 'backend_config={"known_trip_count":{"n":"7"}}'
    program = CompiledText.read(PROGRAM.replace("TRIPS", trips))
    assert program.launches() == 1 + 7 * 2
    assert program.traffic() == (1 + 7 * 2) * 2 * 16


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="known number of steps"):
        CompiledText.read(PROGRAM.replace("TRIPS", "")).launches()


def test_a_loop_runs_from_0_to_the_constant_of_its_condition():
    condition = """
%c (state: (s32[], f32[4])) -> pred[] {
  %state = (s32[], f32[4]{0}) parameter(0)
  %bound = s32[] constant(7)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}
"""
    assert CompiledText.read(PROGRAM.replace("TRIPS", "") + condition).launches() == 1 + 7 * 2


SLICES = """
%part (p: f32[9,4], i: s32[]) -> f32[4] {
  %p = f32[9,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,4]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,4}
}

ENTRY %main (a: f32[9,4], i: s32[]) -> f32[8] {
  %a = f32[9,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,4]{1,0} fusion(%a, %i), kind=kLoop, calls=%part
  %put = f32[9,4]{1,0} dynamic-update-slice(%a, %row, %i, %i)
  %begun = (f32[1,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%row), dimensions={0}
  ROOT %all = f32[8,4]{1,0} all-gather-done(%begun)
}
"""


def test_of_an_array_that_a_kernel_slices_or_updates_the_part_is_moved():
    program = CompiledText.read(SLICES)
    row, index = 4 * 4, 4
    assert program.traffic() == (row + row + index) + (row + row + 2 * index) + (row + 8 * row)
    assert program.exchanges() == {"all-gather": (1, 8 * row)}
    assert array_bytes("(bf16[2,8]{1,0}, s32[], pred[3])") == 32 + 4 + 3


def test_what_a_tpu_keeps_beside_its_core_is_not_moved():
    program = """
ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %here = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %squared = f32[8,128]{1,0:T(8,128)S(1)} multiply(%here, %here)
  ROOT %out = f32[8,128]{1,0:T(8,128)} tanh(%squared)
}
"""
    sign = 4
    assert CompiledText.read(program).traffic() == 2 * 8 * 128 * 4 + sign


@pytest.mark.launches
@pytest.mark.parametrize("step", STEPS)
def test_a_step_by_hand_launches_no_more_than_autodiff(step, tmp_path):
    pytest.importorskip("jax_cuda12_plugin", reason="XLA's compiler for GPUs comes with the extra `launches`")
    file = tmp_path / "launches.json"
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-m", "jaxnet", "bench", "devices", "--only", step, "--json", str(file)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    hand, *by_autodiff = json.loads(file.read_text())["rows"]
    # A stack of blocks is one scan: it is held against autodiff's scan. Unrolled, a deep stack compiles for minutes.
    others = [row for row in by_autodiff if step != "gpt" or row["program"] == "autodiff, scan"]
    assert hand["program"] == "hand"
    assert others
    for row in others:
        assert hand["launches"] <= (0.6 if step == "gpt" else 1.1) * row["launches"], row
        assert hand["seconds"] <= (0.9 if step in ("gpt", "attention") else 1.1) * row["seconds"], row
    if step == "gpt":
        assert hand["temporary"] <= 0.3 * others[0]["temporary"]
    if step == "attention":
        assert hand["launches"] <= 5
