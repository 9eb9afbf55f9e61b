"""What reads programs and counts bytes, on examples counted by hand."""
import pytest

import nbcnn

from . import installed  # noqa: F401

pytestmark = pytest.mark.offline

# A turn: 3 instructions, one of three ways, 2 instructions. Left multiplies twice in 4 instructions, right twice in 3, or never.
SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDS R2, [R3] ;
        /*0020*/                   ISETP.GT.AND P0, PT, R2, 0x1, PT ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/                   FFMA R4, R2, R2, R4 ;
        /*0050*/                   FFMA R5, R2, R2, R5 ;
        /*0060*/                   MOV R6, R5 ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0080*/              @!P1 BRA `(.L_x_3) ;
        /*0090*/                   FFMA R4, R3, R3, R4 ;
        /*00a0*/                   FFMA R5, R3, R3, R5 ;
.L_x_3:
        /*00b0*/                   IADD3 R3, R3, 0x4, RZ ;
        /*00c0*/               @P2 BRA `(.L_x_1) ;
        /*00d0*/                   FADD R4, R4, R5 ;
        /*00e0*/                   EXIT ;
.L_x_4:
        /*00f0*/                   BRA `(.L_x_4) ;
"""

# An outer loop that divides around an inner one that does not.
PTX = """
        .reg .f64       %fd<3>;
        mov.b32         %f643, 0f00000000;
$L__BB0_1:
        div.s64         %rd3, %rd1, %rd2;
        mov.u64         %rd4, 0;
$L__BB0_2:
        add.s64         %rd4, %rd4, 1;
        setp.lt.s64     %p1, %rd4, %rd3;
        @%p1 bra        $L__BB0_2;
        add.f32         %f643, %f643, %f643;
        setp.lt.s64     %p2, %rd3, %rd2;
        @%p2 bra        $L__BB0_1;
        ret;
"""


def test_turn(offline):
    program = offline.Program.of_sass(SASS)
    (turn,) = program.multiplying()
    assert turn == (2, ((3 + 4 + 2) + (3 + 3 + 2)) / 2)     # the mean over the two ways that multiply
    assert len(program.loops) == 1                          # what follows the end is never reached


def test_loops(offline):
    program = offline.Program.of_ptx(PTX)
    inner, outer = sorted(program.loops, key=lambda loop: len(loop.blocks))
    assert (inner.inner, outer.inner) == (set(), inner.blocks)
    assert [program.opcodes[k] for k in program.instructions(inner.blocks)] == ["add.s64", "setp.lt.s64", "bra"]
    assert program.count(outer.blocks, "div") == 1 and program.count(inner.blocks, "div") == 0


def from_ptx(offline, ptx):
    """A kernel of which only the PTX is known."""
    code = object.__new__(offline.Compiled)
    code.ptx = ptx
    return code


def test_doubles_are_operations(offline):
    assert from_ptx(offline, PTX).doubles == []
    assert from_ptx(offline, PTX.replace("add.f32", "cvt.f64.f32")).doubles == ["cvt.f64.f32"]


def test_slow_divisions_are_in_inner_loops(offline):
    assert from_ptx(offline, PTX).slow_divisions == []
    assert from_ptx(offline, PTX.replace("add.s64", "rem.u64")).slow_divisions == ["rem.u64"]


def test_nothing_is_launched_or_left(offline):
    """Arrays that are not there stay inside; a model that was moved there is of no use afterwards."""
    from nbcnn.kernels.cuda import buffer, compat
    with offline.pretended_gpu() as launched:
        array = compat.to_device(nbcnn.kernels.normalization_table(None, None, 3, "float32"))
        buffer.nothing(array.dtype)
        assert array.shape == (3, 256) and array[1:].reshape(512).strides == (4,) and launched == []
        buffer.copy_of(array)
    assert [call.kernel.__name__ for call in launched] == ["copy_elements"]
    assert buffer.nothing.cache_info().currsize == 0


def test_figures_of_a_step(offline):
    """What the tables say of cifar10_quick, from its shapes."""
    n = 64
    with offline.pretended_gpu():
        calls = offline.training_calls(nbcnn.models.cifar10_quick(), n)
        moved = [offline.moved(call, n) for _, call in calls]
        issued = [sum(slots for _, slots in offline.issued(call, n)) for _, call in calls]
    names = [name for name, _ in calls]
    # As the CPU's step: 24.7 MFLOP forward, and a quarter of the dense gradients of the convolutions.
    assert sum(call.flop for _, call in calls) / n == pytest.approx(36.0e6, rel=0.003)
    conv2 = names.index("conv2+maxpool2")
    x, w, y = 32 * 16 * 16 * n, 32 * 32 * 5 * 5, 32 * 8 * 8 * n
    assert moved[conv2] == 4 * (x + w + 32 + y) + y         # and a byte for each winner
    assert issued[conv2] * 64 == calls[conv2][1].flop       # every thread has something to do
    # Warps multiply what the formula says, and more where threads have nothing to do.
    assert all(slots * 64 >= call.flop for slots, (_, call) in zip(issued, calls, strict=True))
