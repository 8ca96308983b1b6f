"""What a program needs and how fast it can be, compiled for devices that are not there.

libtpu, topology   the TPU's compiler, and chips as their maker describes them
programs           the training step, prefill and decode on shapes alone
hlo ... traffic    the compiled program, read: what runs how often, calculates, moves, sends
memory, roofline   what fits, and what bounds a step
executable         compiled programs kept for the launch
suggest            meshes, microbatches and rematerialisation that fit, fastest first
"""
