"""Hand-made programs in XLA's notation, as the TPU's compiler prints them."""

# A loop of 12 turns around a gather, a product, a kernel and an update in place; then a reduction
# written as the TPU's compiler writes a scatter.
LOOP = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%product (a: bf16[128,64], b: bf16[64,32]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[128,32]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf
}

%pick (all: bf16[12,64,8], at: s32[]) -> bf16[64,8] {
  %all = bf16[12,64,8]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,64,8]{2,1,0} dynamic-slice(%all, %at, %zero, %zero), dynamic_slice_sizes={1,64,8}
  ROOT %flat = bf16[64,8]{1,0} bitcast(%one)
}

%put (into: bf16[12,128,32], new: bf16[128,32], at.1: s32[]) -> bf16[12,128,32] {
  %into = bf16[12,128,32]{2,1,0} parameter(0)
  %new = bf16[128,32]{1,0} parameter(1)
  %at.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %wide = bf16[1,128,32]{2,1,0} bitcast(%new)
  ROOT %done = bf16[12,128,32]{2,1,0} dynamic-update-slice(%into, %wide, %at.1, %zero.1, %zero.1)
}

%compared (i: s32[], n: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %n = s32[] parameter(1)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%condition (state: (s32[], bf16[12,64,8], bf16[128,64], bf16[12,128,32])) -> pred[] {
  %state = (s32[], bf16[12,64,8]{2,1,0}, bf16[128,64]{1,0}, bf16[12,128,32]{2,1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %turns = s32[] constant(12)
  ROOT %goes = pred[] fusion(%turn, %turns), kind=kLoop, calls=%compared
}

%body (state.1: (s32[], bf16[12,64,8], bf16[128,64], bf16[12,128,32])) -> (s32[], bf16[12,64,8], bf16[128,64], bf16[12,128,32]) {
  %state.1 = (s32[], bf16[12,64,8]{2,1,0}, bf16[128,64]{1,0}, /*index=3*/bf16[12,128,32]{2,1,0}) parameter(0)
  %turn.1 = s32[] get-tuple-element(%state.1), index=0
  %weights = bf16[12,64,8]{2,1,0} get-tuple-element(%state.1), index=1
  %x.1 = bf16[128,64]{1,0} get-tuple-element(%state.1), index=2
  %kept = bf16[12,128,32]{2,1,0} get-tuple-element(%state.1), index=3
  %mine = bf16[64,8]{1,0} fusion(%weights, %turn.1), kind=kLoop, calls=%pick
  %whole = bf16[64,32]{1,0} all-gather(%mine), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}
  %y.1 = bf16[128,32]{1,0:T(8,128)(2,1)S(1)} fusion(%x.1, %whole), kind=kOutput, calls=%product
  %my_kernel.3 = bf16[128,32]{1,0} custom-call(%y.1), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/my_kernel"}, backend_config={"custom_call_config":{"body":"QUJDREVG","cost_estimate":{"flops":"1000","transcendentals":"0","bytes_accessed":"5"}}}
  %kept.1 = bf16[12,128,32]{2,1,0} fusion(%kept, %my_kernel.3, %turn.1), kind=kLoop, calls=%put
  %step = s32[] constant(1)
  %next = s32[] add(%turn.1, %step)
  ROOT %out = (s32[], bf16[12,64,8]{2,1,0}, bf16[128,64]{1,0}, bf16[12,128,32]{2,1,0}) tuple(%next, %weights, %x.1, %kept.1)
}

%all-reduce-scatter.1 (g: f32[64,32]) -> f32[8,32] {
  %g = f32[64,32]{1,0} parameter(0)
  %reduced = f32[64,32]{1,0} all-reduce(%g), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %here = s32[] constant(0)
  ROOT %part = f32[8,32]{1,0} dynamic-slice(%reduced, %here, %here), dynamic_slice_sizes={8,32}
}

ENTRY %main (w: bf16[12,64,8], x.2: bf16[128,64], g.1: f32[64,32]) -> (bf16[12,128,32], f32[8,32]) {
  %w = bf16[12,64,8]{2,1,0} parameter(0)
  %x.2 = bf16[128,64]{1,0} parameter(1)
  %g.1 = f32[64,32]{1,0} parameter(2)
  %start = s32[] constant(0)
  %start.1 = s32[] copy(%start)
  %empty = bf16[] constant(0)
  %room = bf16[12,128,32]{2,1,0} broadcast(%empty), dimensions={}
  %first = (s32[], bf16[12,64,8]{2,1,0}, bf16[128,64]{1,0}, bf16[12,128,32]{2,1,0}) tuple(%start.1, %w, %x.2, %room)
  %loop = (s32[], bf16[12,64,8]{2,1,0}, bf16[128,64]{1,0}, bf16[12,128,32]{2,1,0}) while(%first), condition=%condition, body=%body
  %result = bf16[12,128,32]{2,1,0} get-tuple-element(%loop), index=3
  %scattered = f32[8,32]{1,0} fusion(%g.1), kind=kCustom, calls=%all-reduce-scatter.1
  %ring = f32[8,32]{1,0} collective-permute(%scattered), source_target_pairs={{0,1},{1,0}}
  ROOT %both = (bf16[12,128,32]{2,1,0}, f32[8,32]{1,0}) tuple(%result, %ring)
}
"""  # noqa: E501

# What the compiler says of a program that is too large, shortened.
OVERFLOW = """\
RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory \
in memory space hbm. Used 15.78G of 15.75G hbm. Exceeded hbm capacity by 29.22M.

Total hbm usage >= 16.03G:
    reserved        258.00M
    program           9.59G
    arguments         6.19G

  Largest program allocations in hbm:

  1. Size: 1.00G
     Operator: op_name="jit(train_step)/while/body/checkpoint/vmap(BTNH,BSNH->BNTS)/dot_general"
     Shape: f32[16,4096,4096]{1,2,0:T(8,128)}
     Unpadded size: 1.00G
     XLA label: fusion.1238 = fusion(custom-call.72), kind=kOutput, calls=fused_computation.26
     Allocation type: HLO temp
     ==========================

  2. Size: 392.00M
     Shape: bf16[100352,2048]{1,0:T(8,128)(2,1)}
     Unpadded size: 392.00M
     XLA label: fusion.758 = fusion(state_parameters__embedding__.1), kind=kLoop
     Allocation type: HLO temp
     ==========================

  Largest program arguments and outputs in hbm:

  1. Size: 784.00M
     Shape: f32[100352,2048]{1,0:T(8,128)}
     XLA label: Argument 12 index {}
     ==========================

  2. Size: 784.00M
     Shape: f32[100352,2048]{1,0:T(8,128)}
     XLA label: Output index {11}
     ==========================
"""
